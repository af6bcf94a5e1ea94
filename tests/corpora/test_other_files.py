"""Preparations say which files of a corpus they do not read."""

import shutil

from s3prl_varan.corpora.librispeech import prepare_librispeech
from s3prl_varan.corpora.ravdess import prepare_ravdess
from tests.tasks.corpora import make_letters


def test_hidden_and_foreign_files_are_listed(tone_corpus, tmp_path):
    root = tmp_path / "corpus"
    shutil.copytree(tone_corpus, root)
    assert "not read" not in str(prepare_ravdess(root))
    (root / "Actor_01" / "._03-01-03-01-01-01-01.wav").write_bytes(b"left by macOS")
    (root / "Actor_02" / "notes.txt").write_text("hello")
    expected = (
        "hidden files and others that are not read: 2 (._03-01-03-01-01-01-01.wav, notes.txt)"
    )
    assert f"note: {expected}" in str(prepare_ravdess(root)).splitlines()
    for number in range(9):
        (root / "Actor_03" / f"{number}.mp4").touch()
    assert "not read: 11 (._03-01-03-01-01-01-01.wav, notes.txt, 0.mp4, " in str(
        prepare_ravdess(root)
    )


def test_transcripts_are_not_foreign(tmp_path):
    root = make_letters(tmp_path / "letters")
    assert "not read" not in str(prepare_librispeech(root))
    (root / "train" / "0" / "7" / "cover.jpg").touch()
    assert "not read: 1 (cover.jpg)" in str(prepare_librispeech(root))
