"""LibriSpeech's layout: its length tables, and everything that can be wrong with it."""

import shutil

import pytest
from tones import table, tone

from s3prl_varan.corpora import dictionary, librispeech
from s3prl_varan.errors import UserError


def test_librispeech_tables(small_libri):
    summary = librispeech.prepare_librispeech(small_libri)
    rows = table(small_libri / "meta_data" / "train-x.csv")
    assert [row["file_path"] for row in rows] == [
        f"train-x/1/10/1-10-000{i}.{s}" for i, s in ((2, "ogg"), (1, "wav"), (0, "flac"))
    ]
    assert [int(row["length"]) for row in rows] == [30, 20, 10]
    assert [(row.split, row.utterances, row.words) for row in summary.rows] == [
        ("test-x", 3, 6),
        ("train-x", 3, 6),
    ]
    librispeech.prepare_librispeech(small_libri, splits=["test-x"], out=small_libri / "other")
    assert [p.name for p in (small_libri / "other").iterdir()] == ["test-x.csv"]


def test_librispeech_lists_everything_wrong(small_libri, tmp_path):
    train, test = small_libri / "train-x" / "1" / "10", small_libri / "test-x" / "2" / "10"
    (train / "1-10-0000.flac").write_bytes(b"fLaC and no more")
    tone(train / "1-10-0009.flac")
    tone(train / "1-10-0010.v2.flac")
    tone(train / "1-10-0011.flac", 0.01)
    tone(train / "1-10-0012.flac", 0.1, 8000)
    with open(train / "1-10.trans.txt", "a") as file:
        file.write("1-10-0007 NO AUDIO\n1-10-0008\n1-10-0010.v2 A\n1-10-0011 A\n1-10-0012 A\n")
    tone(train / "1-10-0008.flac")
    (test / "2-10.trans.txt").write_text(
        "2-10-0000 FINE\n2-10-0001 ROOM 101\n2-10-0001 AGAIN\n2-10-0002 FINE\n"
    )
    tone(small_libri / "test-x" / "2" / "11" / "2-11-0000.flac")
    with pytest.raises(UserError) as raised:
        librispeech.prepare_librispeech(small_libri, tmp_path / "out")
    message = str(raised.value)
    for part in (
        "1-10-0000.flac: not readable as audio",
        "1-10-0009.flac: no text in 1-10.trans.txt",
        "1-10-0010.v2.flac: a dot in the name",
        "1-10-0011.flac: too short",
        "1-10-0012.flac: 8000 Hz, 1 channel(s)",
        "1-10-0007 has no recording",
        "1-10-0008 has an empty text",
        "2-10-0001 appears twice",
        "1 recordings but no 2-11.trans.txt",
    ):
        assert part in message
    assert not list(tmp_path.glob("out/*"))
    summary = librispeech.prepare_librispeech(small_libri, tmp_path / "out", skip_bad=True)
    assert [row.utterances for row in summary.rows] == [3, 2]


def test_librispeech_characters_outside_the_alphabet(small_libri, tmp_path):
    text = small_libri / "train-x" / "1" / "10" / "1-10.trans.txt"
    text.write_text("1-10-0000 ÜBER ALLES\n1-10-0001 ÜBEL\n1-10-0002 OK\n")
    said = (
        r"'Ü' \(latin capital letter u with diaeresis\): 2 times in 2 utterances.*\n.*--build_dict"
    )
    with pytest.raises(UserError, match=said):
        librispeech.prepare_librispeech(small_libri, tmp_path / "out")
    summary = librispeech.prepare_librispeech(small_libri, tmp_path / "out", build_dict=True)
    assert summary.dictionary and "Ü" in dictionary.load_alphabet(summary.dictionary)
    text.write_text("1-10-0000 ÜBER 4\n1-10-0001 ÜBEL\n1-10-0002 OK\n")
    with pytest.raises(UserError, match="digit four"):
        librispeech.prepare_librispeech(small_libri, tmp_path / "out", build_dict=True)


def test_librispeech_wrong_folder_or_split(small_libri):
    with pytest.raises(UserError, match=f"Give {small_libri}"):
        librispeech.prepare_librispeech(small_libri.parent)
    with pytest.raises(UserError, match="is itself a split"):
        librispeech.prepare_librispeech(small_libri / "train-x")
    with pytest.raises(UserError, match=r"'trian-x'. Did you mean 'train-x'\?"):
        librispeech.prepare_librispeech(small_libri, splits=["trian-x"])


def test_names_must_be_unique_because_s3prl_looks_texts_up_by_name(small_libri, tmp_path):
    shutil.copytree(small_libri / "train-x", small_libri / "copy-x")
    with pytest.raises(UserError, match="the name 1-10-0000 is used 2 times"):
        librispeech.prepare_librispeech(small_libri, tmp_path)


def test_real_librispeech_in_s3prls_dataset(shared_dir, tmp_path, check_s3prls_dataset):
    root = shared_dir / "data" / "librispeech" / "LibriSpeech"
    summary = librispeech.prepare_librispeech(root, tmp_path)
    assert {row.split: (row.utterances, row.speakers) for row in summary.rows} == {
        "dev-mini": (10, 1),
        "test-mini": (20, 2),
        "train-mini": (70, 7),
    }
    assert sum(row.hours for row in summary.rows) * 60 == pytest.approx(12.8, abs=0.1)
    check_s3prls_dataset(root, tmp_path, "test-mini", 20)


def test_the_texts_of_a_chapter(tmp_path):
    chapter, problems = tmp_path / "train" / "1" / "10", []
    chapter.mkdir(parents=True)
    assert librispeech.transcript_file(chapter) == chapter / "1-10.trans.txt"
    lines = ["u1 hello\tWorld ", "", "u2", "u3  über   alles", "u1 AGAIN"]
    (chapter / "1-10.trans.txt").write_text("\n".join(lines), encoding="utf-8")
    texts = librispeech.read_transcripts(chapter, problems)
    assert texts == {"u1": "AGAIN", "u2": "", "u3": "ÜBER ALLES"}
    assert problems == [f"{chapter / '1-10.trans.txt'}: u1 appears twice"]
    (chapter / "1-10.trans.txt").write_bytes("u1 ÜBER".encode("latin-1"))
    for folder in (chapter, tmp_path / "train" / "1" / "11"):
        problems.clear()
        assert librispeech.read_transcripts(folder, problems) == {}
        assert len(problems) == 1 and "cannot be read as UTF-8 text" in problems[0]


def test_a_prepared_split_is_read_with_its_texts(small_libri):
    librispeech.prepare_librispeech(small_libri)
    problems: list[str] = []
    tables = small_libri / "meta_data"
    found = librispeech.read_prepared(small_libri, tables / "train-x.csv", problems)
    assert not problems
    assert [u.name for u in found] == ["1-10-0002", "1-10-0001", "1-10-0000"]
    assert [u.length for u in found] == [30, 20, 10] and {u.text for u in found} == {"HELLO WORLD"}
    assert all(u.path.is_file() and u.path.stem == u.name for u in found)


def test_what_is_wrong_with_a_prepared_split_is_said(small_libri):
    librispeech.prepare_librispeech(small_libri)
    tables, problems = small_libri / "meta_data", []
    (small_libri / "train-x" / "1" / "10" / "1-10.trans.txt").write_text("1-10-0000 HELLO\n")
    found = librispeech.read_prepared(small_libri, tables / "train-x.csv", problems)
    assert [u.name for u in found] == ["1-10-0000"] and len(problems) == 2
    assert "1-10-0002.ogg: no transcript for it in" in problems[0]
    for text in ("", "file_path,length\n", "path,length\na,1\n", "file_path,length\na,long\n"):
        (tables / "bad.csv").write_text(text)
        problems.clear()
        assert librispeech.read_prepared(small_libri, tables / "bad.csv", problems) == []
        assert len(problems) == 1 and "columns file_path and length" in problems[0]
    problems.clear()
    librispeech.read_prepared(small_libri, tables / "trian-x.csv", problems)
    assert problems == [f"{tables / 'trian-x.csv'}: no such table. Did you mean 'train-x'?"]
