"""Mixtures of two speakers: where speakers are found, what is mixed, and what is refused."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

from s3prl_varan.audio import read_audio
from s3prl_varan.corpora.kaldi import read_kaldi
from s3prl_varan.corpora.labels import prepare_labels
from s3prl_varan.corpora.metadata import SPLITS
from s3prl_varan.corpora.mixtures import prepare_mixtures
from s3prl_varan.errors import UserError
from tests.tasks.corpora import make_voices

FEW = {"train": 4, "dev": 2, "test": 2}


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    return make_voices(tmp_path_factory.mktemp("voices"))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def speakers(out):
    return {
        split: {turn.speaker for each in read_kaldi(out / split, "rttm") for turn in each.turns}
        for split in SPLITS
    }


def test_a_seed_says_all_and_no_speaker_is_in_two_splits(voices, tmp_path):
    made = [prepare_mixtures(voices, tmp_path / name, seed=7, **FEW) for name in ("a", "b")]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    prepare_mixtures(voices, tmp_path / "c", seed=8, **FEW)
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    found = speakers(tmp_path / "a")
    assert len(set.union(*found.values())) == 6 and all(len(each) == 2 for each in found.values())
    assert made[0].data == tmp_path / "a" and str(made[0]).replace(f"{tmp_path}/a", "") == str(
        made[1]
    ).replace(f"{tmp_path}/b", "")
    assert [(row.split, row.clips) for row in made[0].rows] == list(FEW.items())


def test_turns_are_where_it_is_loud(voices, tmp_path):
    """The voices have no quiet moments, so what is said of a mixture can be heard in it."""
    prepare_mixtures(voices, tmp_path / "out", train=12, dev=1, test=1)
    alone = both = 0.0
    for recording in read_kaldi(tmp_path / "out" / "train", "segments"):
        wave = read_audio(recording.path).numpy()
        assert soundfile.info(recording.path).subtype == "PCM_16" and np.abs(wave).max() < 0.95
        count = np.zeros(len(wave), int)
        for turn in recording.turns:
            count[round(16000 * turn.start) + 16 : round(16000 * turn.end) - 16] += 1
        assert len({turn.speaker for turn in recording.turns}) == 2 and count.max() <= 2
        near = np.convolve(count, np.ones(65), "same") > 0
        assert np.abs(wave[~near]).max(initial=0) == 0
        windows = [np.arange(at, at + 160) for at in range(0, len(wave) - 160, 160)]
        for window in windows:
            if count[window].min() > 0:
                assert np.sqrt(np.mean(wave[window] ** 2)) > 0.004
        alone, both = alone + (count == 1).sum(), both + (count == 2).sum()
    assert both > 0.05 * alone


def test_speakers_of_a_table_keep_its_splits(voices, tmp_path):
    rows = ["path\tlabel\tspeaker\tsplit\tstart\tend"]
    for number, split in enumerate(("dev", "train", "test", "test", "train", "dev")):
        for clip in range(3):
            path = f"speaker {number}/{clip}.wav"
            rows.append(f"{path}\tx{clip % 2}\tspeaker {number}\t{split}\t0.05\t0.25")
    (tmp_path / "labels.tsv").write_text("\n".join(rows))
    prepare_labels(tmp_path / "labels.tsv", tmp_path / "prepared", audio_root=voices)
    expected = {
        "train": {"speaker_1", "speaker_4"},
        "dev": {"speaker_0", "speaker_5"},
        "test": {"speaker_2", "speaker_3"},
    }
    for place in ("prepared", "prepared/prepared_labels.tsv"):
        summary = prepare_mixtures(tmp_path / place, tmp_path / "out", **FEW)
        assert speakers(tmp_path / "out") == expected and not summary.notes
        turns = [t for each in read_kaldi(tmp_path / "out/train", "rttm") for t in each.turns]
        assert all(turn.end - turn.start == pytest.approx(0.2, abs=2e-3) for turn in turns)
        shutil.rmtree(tmp_path / "out")


def test_librispeechs_layout(voices, tmp_path):
    splits = ("train-x", "train-y", "dev-x", "dev-x", "test-x", "test-y")
    for number, split in enumerate(splits):
        chapter = tmp_path / "libri" / split / str(number) / "7"
        shutil.copytree(voices / f"speaker {number}", chapter)
        (chapter / f"{number}-7.trans.txt").write_text("")
    prepare_mixtures(tmp_path / "libri", tmp_path / "out", **FEW)
    assert speakers(tmp_path / "out") == {
        "train": {"0", "1"},
        "dev": {"2", "3"},
        "test": {"4", "5"},
    }
    shutil.move(tmp_path / "libri" / "dev-x" / "3", tmp_path / "libri" / "train-x" / "3")
    summary = prepare_mixtures(tmp_path / "libri", tmp_path / "again", **FEW)
    assert "splits were drawn" in str(summary)
    assert all(len(each) == 2 for each in speakers(tmp_path / "again").values())


def test_what_is_refused_leaves_nothing(voices, tmp_path):
    out = tmp_path / "out"

    def refused(root, **options):
        with pytest.raises(UserError) as error:
            prepare_mixtures(root, out, **{**FEW, **options})
        assert not list(out.glob("*")) and not list(tmp_path.glob(".*"))
        return str(error.value)

    assert "expected at least 1 each" in refused(voices, dev=0)
    assert "no folder at" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "a folder for each speaker" in refused(tmp_path / "empty")
    five = tmp_path / "five"
    shutil.copytree(voices, five)
    shutil.rmtree(five / "speaker 3")
    assert "six speakers are needed" in refused(five)
    copy = tmp_path / "copy"
    shutil.copytree(voices, copy)
    for number in (1, 2):
        (copy / f"speaker {number}" / "0.wav").write_bytes(b"RIFF")
    message = refused(copy)
    assert "2 problems" in message and "speaker 1/0.wav" in message and "--skip_bad" in message
    summary = prepare_mixtures(copy, out, skip_bad=True, **FEW)
    assert len(summary.skipped) == 2 and "left out (2)" in str(summary)
    before = contents(out)
    with pytest.raises(UserError, match="not empty"):
        prepare_mixtures(voices, out, **FEW)
    assert contents(out) == before


def test_a_break_in_the_middle_leaves_nothing(voices, tmp_path, monkeypatch):
    def breaks(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("s3prl_varan.corpora.mixtures.write_texts", breaks)
    with pytest.raises(KeyboardInterrupt):
        prepare_mixtures(voices, tmp_path / "out", **FEW)
    assert not list(tmp_path.rglob("*.*")) and not list((tmp_path / "out").iterdir())


def test_silence_is_mixed_without_a_fuss(voices, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(voices, copy)
    for path in copy.rglob("*.wav"):
        soundfile.write(path, np.zeros(8000), 16000)
    prepare_mixtures(copy, tmp_path / "out", **FEW)
    wave = read_audio(next((tmp_path / "out" / "dev" / "wav").iterdir()))
    assert torch.isfinite(wave).all() and wave.abs().max() == 0
