"""Preparing corpora: what is written, who lands in which split, and every way in which a corpus can be wrong."""

import csv
import hashlib
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from s3prl_varan import audio
from s3prl_varan.corpora import (
    dictionary,
    iemocap,
    librispeech,
    manifest,
    metadata,
    ravdess,
    synthetic,
)
from s3prl_varan.errors import UserError

SCRIPT = Path(__file__).resolve().parents[1] / "run" / "prepare_data.py"


def tone(path, seconds=0.05, rate=16000, channels=1):
    """A quiet tone whose pitch depends on the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = numpy.arange(int(seconds * rate)) / rate
    wave = 0.3 * numpy.sin(2 * numpy.pi * (200 + sum(path.stem.encode()) % 200) * time)
    soundfile.write(path, numpy.stack([wave] * channels, axis=1), rate)
    return path


def read_meta(out, fold, split):
    return json.loads((out / fold / f"{split}_meta_data.json").read_text())


def speakers(out, fold, split):
    return {int(row["speaker"]) for row in read_meta(out, fold, split)["meta_data"]}


# ---------------------------------------------------------------- audio


def test_read_audio_mixes_down_and_resamples(tmp_path):
    rate, time = 48000, numpy.arange(48000) / 48000
    wave = numpy.sin(2 * numpy.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", numpy.stack([wave, numpy.zeros_like(wave)], axis=1), rate)
    read = audio.read_audio(tmp_path / "a.wav")
    assert (read.dtype, read.shape) == (torch.float32, (16000,))
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    assert (read - expected)[200:-200].abs().max() < 0.01


def test_audio_info_reads_the_header(tmp_path):
    info = audio.audio_info(tone(tmp_path / "a.flac", 0.5, 44100, 2))
    assert (info.num_samples, info.rate, info.channels, info.is_16k_mono) == (
        22050,
        44100,
        2,
        False,
    )
    assert info.samples_16k == 8000


def test_samples_16k_is_the_length_read(tmp_path):
    path = tone(tmp_path / "a.wav", 0.1234, 44100)
    assert audio.audio_info(path).samples_16k == len(audio.read_audio(path))


def test_every_bad_file_is_reported_with_its_path(tmp_path):
    good = tone(tmp_path / "good.wav")
    bad = {
        "corrupt.wav": "not readable",
        "torn.flac": "not readable",
        "torn.wav": "broken off, 16044 bytes",
        "empty.wav": "empty",
        "gone.wav": "no such",
    }
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF....WAVE and then nothing of use")
    whole = tone(tmp_path / "whole.flac", 2.0).read_bytes()
    (tmp_path / "torn.flac").write_bytes(whole[: len(whole) // 2])
    whole = tone(tmp_path / "whole.wav", 1.0).read_bytes()
    (tmp_path / "torn.wav").write_bytes(whole[:16000])
    soundfile.write(tmp_path / "empty.wav", numpy.zeros(0), 16000)
    tone(tmp_path / "short.wav", 0.01)
    soundfile.write(tmp_path / "nan.wav", numpy.full(800, numpy.nan), 16000, subtype="FLOAT")
    bad |= {"short.wav": "too short, 10.0 ms", "nan.wav": "not finite"}
    problems = audio.check_audio_files([good, *(tmp_path / name for name in bad)])
    assert len(problems) == len(bad)
    for problem, (name, reason) in zip(problems, bad.items(), strict=True):
        assert problem.startswith(str(tmp_path / name))
        assert reason in problem
    for name in ("corrupt.wav", "gone.wav", "empty.wav"):
        with pytest.raises(UserError, match=name):
            audio.read_audio(tmp_path / name)


def test_conversion_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(UserError):
        audio.convert_to_16k_mono(tmp_path / "bad.wav", tmp_path / "out" / "a.wav")
    assert not list(tmp_path.glob("out/*"))


# ---------------------------------------------------------------- RAVDESS


@pytest.fixture
def small_ravdess(tmp_path):
    """24 actors, each with a clip of every emotion code."""
    root = tmp_path / "ravdess"
    for actor in range(1, 25):
        for emotion in range(1, 9):
            tone(root / f"Actor_{actor:02d}" / f"03-01-{emotion:02d}-01-01-01-{actor:02d}.wav")
    return root


def test_ravdess_folds_keep_speakers_apart_and_sexes_even(small_ravdess, tmp_path):
    out = tmp_path / "meta"
    summary = ravdess.prepare_ravdess(small_ravdess, out)
    tested = []
    for fold in ("Session1", "Session2", "Session3", "Session4"):
        train, dev, test = (speakers(out, fold, split) for split in ("train", "dev", "test"))
        assert (len(train), len(dev), len(test)) == (14, 4, 6)
        assert train | dev | test == set(range(1, 25))
        assert sum(a % 2 for a in test) == 3 and sum(a % 2 for a in dev) == 2
        tested += sorted(test)
    assert sorted(tested) == list(range(1, 25))
    assert speakers(out, "released", "train") == set(range(1, 20))
    assert speakers(out, "released", "dev") == {20, 21} and speakers(out, "released", "test") == {
        22,
        23,
    }
    meta = read_meta(out, "Session1", "train")
    assert list(meta["labels"]) == "neutral happy sad angry fearful disgust surprised".split()
    assert list(meta["labels"].values()) == list(range(7))
    row = summary.rows[0]
    assert (row.fold, row.split, row.clips, row.speakers) == ("fold1", "train", 112, 14)
    assert row.counts["neutral"] == 28 and row.counts["happy"] == 14  # calm counts as neutral
    assert row.hours == pytest.approx(112 * 0.05 / 3600)
    assert any("1440" in note for note in summary.notes)
    assert "fold4" in str(summary) and "surprised" in str(summary)


def test_ravdess_default_output_and_nested_zip_folder(small_ravdess, tmp_path):
    outer = tmp_path / "outer"
    shutil.move(small_ravdess, outer / "Audio_Speech_Actors_01-24")
    for _ in range(2):  # the second run must not take its own output for a part of the corpus
        summary = ravdess.prepare_ravdess(outer)
    assert summary.clips == 192
    path = read_meta(outer / "meta_data", "Session1", "test")["meta_data"][0]["path"]
    assert path.startswith("Audio_Speech_Actors_01-24/Actor_") and (outer / path).is_file()


def test_ravdess_passes_over_song_video_and_hidden_files(small_ravdess, tmp_path):
    folder = small_ravdess / "Actor_01"
    tone(folder / "03-02-03-01-01-01-01.wav")
    tone(folder / "02-01-03-01-01-02-01.wav")
    (folder / "._03-01-03-01-01-01-01.wav").write_bytes(b"left by macOS")
    (folder / "notes.txt").write_text("hello")
    assert ravdess.prepare_ravdess(small_ravdess, tmp_path / "meta").clips == 192


def test_ravdess_lists_all_problems_and_writes_nothing(small_ravdess, tmp_path):
    out, folder = tmp_path / "meta", small_ravdess / "Actor_03"
    (folder / "03-01-03-01-01-01-03.wav").write_bytes(b"not a wav")
    soundfile.write(folder / "03-01-04-01-01-01-03.wav", numpy.zeros(0), 16000)
    tone(folder / "angry.wav")
    tone(folder / "03-01-09-01-01-01-03.wav")
    tone(folder / "03-01-05-01-01-02-04.wav")
    with pytest.raises(UserError) as raised:
        ravdess.prepare_ravdess(small_ravdess, out)
    message = str(raised.value)
    for part in (
        "5 problems",
        "03-01-03-01-01-01-03.wav: not readable as audio",
        "03-01-04-01-01-01-03.wav: empty",
        "angry.wav: not named like",
        "03-01-09-01-01-01-03.wav: emotion 09",
        "names actor 04 but lies in Actor_03",
        "--skip_bad",
    ):
        assert part in message
    assert not list(out.rglob("*.json"))
    summary = ravdess.prepare_ravdess(small_ravdess, out, skip_bad=True)
    assert summary.clips == 190 and len(summary.skipped) == 5
    assert "angry.wav" in str(summary)


def test_ravdess_converts_stereo_and_other_rates(small_ravdess, tmp_path):
    odd = {
        "03-01-03-01-01-01-01.wav": (48000, 1),
        "03-01-04-01-01-01-01.wav": (16000, 2),
        "03-01-05-01-01-01-01.wav": (8000, 2),
    }
    for name, (rate, channels) in odd.items():
        tone(small_ravdess / "Actor_01" / name, 0.05, rate, channels)
    for out in (tmp_path / "meta", small_ravdess / "meta_data"):
        summary = ravdess.prepare_ravdess(small_ravdess, out)
        assert summary.converted == 3 and "converted 3 clips" in str(summary)
        rows = read_meta(out, "released", "train")["meta_data"]
        paths = {Path(row["path"]).name: small_ravdess / row["path"] for row in rows}
        for name in odd:
            info = audio.audio_info(paths[name])
            assert info.is_16k_mono and info.num_samples == 800
    assert not Path(rows[0]["path"]).is_absolute()


def test_s3prls_emotion_dataset_reads_what_was_written(small_ravdess, tmp_path):
    from s3prl_varan.compat import import_downstream

    tone(small_ravdess / "Actor_01" / "03-01-03-01-01-01-01.wav", 0.05, 44100, 2)
    out = tmp_path / "meta"
    ravdess.prepare_ravdess(small_ravdess, out)
    dataset_class = import_downstream("emotion").IEMOCAPDataset
    for split in ("train", "dev", "test"):
        dataset = dataset_class(
            str(small_ravdess), str(out / "Session2" / f"{split}_meta_data.json"), pre_load=False
        )
        assert dataset.class_num == 7
        for wave, label, _ in dataset:
            assert wave.shape == (800,) and 0 <= label < 7


def test_ravdess_without_actors_or_with_too_few(tmp_path):
    with pytest.raises(UserError, match="no folder at .*nowhere"):
        ravdess.prepare_ravdess(tmp_path / "nowhere")
    (tmp_path / "some" / "thing").mkdir(parents=True)
    with pytest.raises(UserError, match="no folders Actor_01 .. Actor_24.*found thing"):
        ravdess.prepare_ravdess(tmp_path / "some")
    for actor in (1, 2, 3):
        tone(tmp_path / "few" / f"Actor_{actor:02d}" / f"03-01-03-01-01-01-{actor:02d}.wav")
    with pytest.raises(UserError, match=r"found 2 and 1: 01, 02, 03"):
        ravdess.prepare_ravdess(tmp_path / "few")


def test_folds_work_for_every_number_of_actors_from_eight():
    for count in range(8, 25):
        clips = [metadata.Clip(Path(f"{a}.wav"), "happy", f"{a:02d}") for a in range(1, count + 1)]
        folds = ravdess.speaker_folds(clips)
        tested = sorted(int(c.speaker) for splits in folds.values() for c in splits["test"])
        assert tested == list(range(1, count + 1))
        for splits in folds.values():
            assert all(splits.values())
            assert sum(len(part) for part in splits.values()) == count


def test_a_dev_file_of_an_earlier_preparation_goes_away(tmp_path):
    out = tmp_path / "meta"
    clips = [metadata.Clip(tmp_path / "a.wav", "neu", "Ses01F", audio.AudioInfo(16000, 16000, 1))]
    summary = metadata.CorpusSummary("x", tmp_path, out)
    metadata.write_emotion_metadata(
        summary, iemocap.LABELS, {"fold1": {"train": clips, "dev": clips, "test": clips}}
    )
    metadata.write_emotion_metadata(
        summary, iemocap.LABELS, {"fold1": {"train": clips, "test": clips}}
    )
    assert sorted(p.name for p in (out / "Session1").iterdir()) == [
        "test_meta_data.json",
        "train_meta_data.json",
    ]
    assert any("no training clip of class hap" in note for note in summary.notes)


def test_real_ravdess(shared_dir, tmp_path):
    root = shared_dir / "data" / "ravdess"
    summary = ravdess.prepare_ravdess(root, tmp_path)
    assert (summary.clips, summary.converted, summary.skipped, summary.notes) == (1440, 0, [], [])
    fold1 = [row for row in summary.rows if row.fold == "fold1"]
    assert [row.clips for row in fold1] == [840, 240, 360]
    assert list(fold1[2].counts.values()) == [72, 48, 48, 48, 48, 48, 48]
    assert sum(row.hours for row in fold1) == pytest.approx(89 / 60, rel=0.01)


# ---------------------------------------------------------------- IEMOCAP


@pytest.fixture
def small_iemocap(tmp_path):
    """Five sessions of two dialogues; six emotions of which five are used."""
    root = tmp_path / "IEMOCAP_full_release"
    for session in range(1, 6):
        folder = root / f"Session{session}"
        for dialog in (f"Ses{session:02d}F_impro01", f"Ses{session:02d}M_script01_1"):
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for turn, emotion in enumerate(["neu", "exc", "hap", "ang", "sad", "fru"]):
                name = f"{dialog}_F{turn:03d}"
                lines += [
                    f"[{turn}.0000 - {turn}.9000]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]",
                    "C-E2:\tNeutral;\t()",
                    "",
                ]
                tone(folder / "sentences" / "wav" / dialog / f"{name}.wav")
            (folder / "dialog" / "EmoEvaluation").mkdir(parents=True, exist_ok=True)
            (folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt").write_text("\n".join(lines))
            (folder / "dialog" / "EmoEvaluation" / f"._{dialog}.txt").write_bytes(
                b"\x00\x05\x16\x07"
            )
    return root


def test_iemocap_leaves_one_session_out(small_iemocap, tmp_path):
    out = tmp_path / "meta"
    summary = iemocap.prepare_iemocap(small_iemocap, out)
    assert summary.clips == 50 and any("5531" in note for note in summary.notes)
    for session in range(1, 6):
        train, test = (read_meta(out, f"Session{session}", split) for split in ("train", "test"))
        assert train["labels"] == test["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
        assert len(train["meta_data"]) == 40 and len(test["meta_data"]) == 10
        assert all(
            row["path"].startswith(f"Session{session}/sentences/wav/") for row in test["meta_data"]
        )
        assert not any(row["path"].startswith(f"Session{session}/") for row in train["meta_data"])
        assert not (out / f"Session{session}" / "dev_meta_data.json").exists()
    labels = [row["label"] for row in test["meta_data"]]
    assert labels.count("hap") == 4 and {row["speaker"] for row in test["meta_data"]} == {
        "Ses05F",
        "Ses05M",
    }


def test_iemocap_equals_s3prls_own_preprocessing(small_iemocap, tmp_path, monkeypatch):
    from s3prl_varan import compat

    for path in small_iemocap.rglob("._*"):  # s3prl's script would read these
        path.unlink()
    with compat._stand_ins():
        from s3prl.downstream.emotion import IEMOCAP_preprocess as theirs
    theirs.main(str(small_iemocap))
    out = tmp_path / "ours"
    iemocap.prepare_iemocap(small_iemocap, out)
    for session in range(1, 6):
        for split in ("train", "test"):
            expected = read_meta(small_iemocap / "meta_data", f"Session{session}", split)
            found = read_meta(out, f"Session{session}", split)
            assert found["labels"] == expected["labels"]
            key = lambda row: row["path"]  # noqa: E731 - theirs are in the order of os.listdir
            assert sorted(found["meta_data"], key=key) == sorted(expected["meta_data"], key=key)


def test_iemocap_layout_problems(small_iemocap, tmp_path):
    out = tmp_path / "meta"
    with pytest.raises(UserError, match=f"found 0 of them. Give {small_iemocap}"):
        iemocap.prepare_iemocap(small_iemocap.parent, out)
    gone = next(
        (small_iemocap / "Session2" / "sentences" / "wav" / "Ses02F_impro01").glob("*F000.wav")
    )
    gone.unlink()
    shutil.rmtree(small_iemocap / "Session3" / "dialog")
    with pytest.raises(UserError) as raised:
        iemocap.prepare_iemocap(small_iemocap, out)
    assert "Ses02F_impro01_F000 has no recording" in str(raised.value)
    assert "EmoEvaluation: no such folder" in str(raised.value)
    assert not list(out.rglob("*.json"))


# ---------------------------------------------------------------- the synthetic corpus

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader not installed"
)


def digest(root):
    files = sorted(root.glob("Actor_*/*.wav"))
    return len(files), hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@needs_espeak
def test_synthetic_corpus_is_prepared_like_ravdess_and_repeats_itself(tmp_path):
    count = synthetic.synthesise_corpus(tmp_path / "a", actors=8)
    assert count == 8 * 8 * 2 == digest(tmp_path / "a")[0]
    synthetic.synthesise_corpus(tmp_path / "b", actors=8)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    synthetic.synthesise_corpus(tmp_path / "b", actors=8, seed=1)
    assert digest(tmp_path / "a")[1] != digest(tmp_path / "b")[1]
    summary = ravdess.prepare_ravdess(tmp_path / "a")
    assert (summary.name, summary.clips, summary.converted) == ("synthetic corpus", 128, 0)
    assert not any("1440" in note for note in summary.notes)
    assert "ynthetic" in (tmp_path / "a" / "SYNTHETIC.txt").read_text()


@needs_espeak
def test_synthetic_emotions_differ_in_rate_and_loudness(tmp_path):
    synthetic.synthesise_corpus(tmp_path / "a", actors=8)

    def mean(emotion, value):
        return numpy.mean(
            [value(soundfile.read(p)[0]) for p in (tmp_path / "a").glob(f"*/03-01-{emotion}-*.wav")]
        )

    assert mean("04", len) > 1.2 * mean("06", len)  # sad is slow, fearful is hasty
    assert mean("05", numpy.std) > 1.3 * mean("04", numpy.std)  # angry is loud, sad is soft


def test_synthetic_plan_gives_every_actor_a_voice_of_its_own():
    plan = synthetic.plan(24, 1, 0)
    assert len(plan) == 384 and plan == synthetic.plan(24, 1, 0)
    voices = {name[-2:]: item["voice"] for name, item in plan.items()}
    assert len(set(voices.values())) == 24


def test_synthetic_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="not empty and not a synthetic corpus"):
        synthetic.synthesise_corpus(tmp_path)
    with pytest.raises(UserError, match="actors must be 8 to 24"):
        synthetic.synthesise_corpus(tmp_path / "new", actors=4)


def test_synthetic_names_the_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match="pip install espeakng-loader"):
        synthetic.synthesise_corpus(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- dictionaries and texts


def test_text_is_normalised():
    assert (
        dictionary.normalise_text("Don’t  stop -- it's 'e-mail', (really)…\t")
        == "DON'T STOP IT'S 'E MAIL' REALLY"
    )
    assert dictionary.normalise_text("- ' -") == ""
    assert dictionary.unknown_symbols("PRESS 1 & 11", dictionary.load_alphabet()) == {
        "1": 3,
        "&": 1,
    }
    assert dictionary.drop_symbols("PRESS 1 & GO", dictionary.load_alphabet()) == "PRESS GO"
    assert not dictionary.unknown_symbols("GRÜßE ÇA", None) and dictionary.unknown_symbols(
        "Ü2", None
    ) == {"2": 1}


@pytest.fixture
def s3prl_dictionary():
    from s3prl.downstream.asr.dictionary import Dictionary

    return Dictionary


def test_shipped_dictionary_loads_in_s3prl(s3prl_dictionary):
    loaded = s3prl_dictionary.load(str(dictionary.CHAR_DICT))
    assert (loaded.bos(), loaded.pad(), loaded.eos(), loaded.unk(), len(loaded)) == (0, 1, 2, 3, 32)
    assert (
        set(loaded.symbols[4:])
        == {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ'|"}
        == dictionary.load_alphabet() | {"|"}
    )
    encoded = loaded.encode_line("H I | Y O U |", line_tokenizer=str.split)
    assert encoded[-1] == loaded.eos() and len(loaded) == 32  # nothing was added on the way
    assert loaded.string(encoded.tolist()) == "H I | Y O U |"


def test_own_dictionary_loads_in_s3prl(s3prl_dictionary, tmp_path):
    counts = dictionary.build_dictionary(["GRÜẞE AN ALLE", "ÄH"])
    dictionary.write_dictionary(tmp_path / "d" / "char.dict", counts)
    loaded = s3prl_dictionary.load(str(tmp_path / "d" / "char.dict"))
    assert loaded.symbols[4:] == list(counts) and loaded.symbols[4] == "|" and counts["|"] == 4
    assert dictionary.load_alphabet(tmp_path / "d" / "char.dict") == set("GRÜẞEANLÄH")
    (tmp_path / "bad").write_text("A 1\nBC 2\n")
    with pytest.raises(UserError, match="bad, line 2"):
        dictionary.load_alphabet(tmp_path / "bad")


# ---------------------------------------------------------------- LibriSpeech


@pytest.fixture
def small_libri(tmp_path):
    root = tmp_path / "libri"
    for split, speaker in (("train-x", 1), ("test-x", 2)):
        folder = root / split / str(speaker) / "10"
        names = [f"{speaker}-10-{i:04d}" for i in range(3)]
        for i, name in enumerate(names):
            tone(folder / f"{name}.{('flac', 'wav', 'ogg')[i]}", 0.1 * (i + 1))
        (folder / f"{speaker}-10.trans.txt").write_text(
            "".join(f"{name} HELLO WORLD\n" for name in names)
        )
    return root


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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
    with pytest.raises(
        UserError,
        match=r"'Ü' \(latin capital letter u with diaeresis\): 2 times in 2 utterances.*\n.*--build_dict",
    ):
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


def test_real_librispeech_in_s3prls_dataset(shared_dir, tmp_path):
    root = shared_dir / "data" / "librispeech" / "LibriSpeech"
    summary = librispeech.prepare_librispeech(root, tmp_path)
    assert {row.split: (row.utterances, row.speakers) for row in summary.rows} == {
        "dev-mini": (10, 1),
        "test-mini": (20, 2),
        "train-mini": (70, 7),
    }
    assert sum(row.hours for row in summary.rows) * 60 == pytest.approx(12.8, abs=0.1)
    check_s3prls_dataset(root, tmp_path, "test-mini", 20)


def check_s3prls_dataset(root, tables, split, count):
    """Read a prepared split through s3prl's own dataset; every utterance arrives, with letters of the dictionary only."""
    pytest.importorskip("pandas")  # s3prl's dataset reads its tables with it
    from s3prl_varan.compat import import_downstream

    expert = import_downstream("asr")
    symbols = expert.Dictionary.load(str(dictionary.CHAR_DICT))
    dataset = expert.SequenceDataset("test", 1, symbols, str(root), str(tables), test=[split])
    batches = list(dataset)
    # s3prl drops a last batch of one; with batches of one that is the whole split but for the dropped ones
    assert sum(len(names) for _, _, names in batches) == count
    assert len(symbols) == 32
    for waves, labels, _ in batches:
        assert waves[0].ndim == 1 and len(waves[0]) >= audio.MIN_SAMPLES
        assert labels[0][-1] == symbols.eos() and labels[0][:-1].min() > symbols.unk()


# ---------------------------------------------------------------- manifests


@pytest.fixture
def small_manifest(tmp_path):
    folder = tmp_path / "prompts"
    rows = []
    for i in range(20):
        tone(folder / f"p {i}.wav", 0.1)
        rows.append(f"p {i}.wav\tPrompt no. {'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}, please!")
    (folder / "list.tsv").write_text("\n".join(rows) + "\n")
    return folder / "list.tsv"


def edit(path, number, row):
    rows = path.read_text().splitlines()
    rows[number] = row
    path.write_text("\n".join(rows))


def test_manifest_makes_a_corpus_in_librispeechs_layout(small_manifest, tmp_path):
    tone(small_manifest.parent / "p 0.wav", 0.1, 44100, 2)
    out = tmp_path / "out"
    summary = manifest.prepare_manifest(small_manifest, out)
    assert {row.split: row.utterances for row in summary.rows} == {"train": 16, "dev": 2, "test": 2}
    assert summary.converted == 1
    again = librispeech.prepare_librispeech(out, tmp_path / "again")
    assert sum(row.utterances for row in again.rows) == 20
    for split in ("train", "dev", "test"):
        assert table(out / f"{split}.csv") == table(tmp_path / "again" / f"{split}.csv")
    texts = "".join(path.read_text() for path in out.rglob("*.trans.txt"))
    assert "p-3 PROMPT NO DK PLEASE\n" in texts
    check_s3prls_dataset(out, out, "test", 2)


def test_manifest_split_is_the_same_every_time_and_keeps_texts_together():
    lines = [manifest.Line(f"{i}.wav", Path(f"{i}.wav"), f"TEXT {i // 3}") for i in range(300)]
    parts = manifest.split_by_text(lines, 0.1, 0.1, seed=0)
    shuffled = random.Random(1).sample(lines, len(lines))
    for split, rows in manifest.split_by_text(shuffled, 0.1, 0.1, seed=0).items():
        assert {row.shown for row in rows} == {row.shown for row in parts[split]}
    texts = [{row.text for row in rows} for rows in parts.values()]
    assert sum(len(part) for part in texts) == len(set.union(*texts)) == 100
    assert [len(parts[s]) for s in ("train", "dev", "test")] == [240, 30, 30]
    other = manifest.split_by_text(lines, 0.1, 0.1, seed=1)
    assert {row.shown for row in other["test"]} != {row.shown for row in parts["test"]}


def test_manifest_refuses_digits_until_told_what_to_do(small_manifest, tmp_path):
    edit(small_manifest, 0, "p 0.wav\tPress 1 or 11 & wait")
    edit(small_manifest, 1, "p 1.wav\t42")
    with pytest.raises(UserError) as raised:
        manifest.prepare_manifest(small_manifest, tmp_path / "out")
    for part in (
        "'1' (digit one): 3 times in 1 utterances: p 0.wav",
        "'&' (ampersand)",
        "'4'",
        "--unknown drop_symbol",
    ):
        assert part in str(raised.value)
    assert not (tmp_path / "out").exists()
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", unknown="drop_symbol")
    texts = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.trans.txt"))
    assert "p-0 PRESS OR WAIT\n" in texts and sum(row.utterances for row in summary.rows) == 19
    assert (
        len(summary.skipped) == 1
        and "p 1.wav" in summary.skipped[0]
        and "digit one" in str(summary)
    )
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", unknown="drop_utterance")
    assert sum(row.utterances for row in summary.rows) == 18 and len(summary.skipped) == 2
    assert not any("p-0 " in path.read_text() for path in (tmp_path / "out").rglob("*.trans.txt"))


def test_manifest_lists_all_bad_lines(small_manifest, tmp_path):
    edit(small_manifest, 0, "p 0.wav Press the key")
    edit(small_manifest, 1, "nowhere.wav\tGone")
    edit(small_manifest, 2, "p 2.wav\t...")
    edit(small_manifest, 4, "p 3.wav\tTwice")
    (small_manifest.parent / "p 5.wav").write_bytes(b"noise")
    with pytest.raises(UserError) as raised:
        manifest.prepare_manifest(small_manifest, tmp_path / "out")
    for part in (
        "5 problems",
        "line 1: expected path TAB text",
        "nowhere.wav: no such file",
        "line 3: p 2.wav has no words",
        "line 5: p 3.wav is listed twice",
        "p 5.wav: not readable",
    ):
        assert part in str(raised.value)
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", skip_bad=True)
    assert sum(row.utterances for row in summary.rows) == 15 and len(summary.skipped) == 5


def test_manifest_of_another_language_gets_its_dictionary(small_manifest, tmp_path):
    edit(small_manifest, 0, "p 0.wav\tHören Sie, bitte")
    with pytest.raises(UserError, match="'Ö'.*\n.*--build_dict"):
        manifest.prepare_manifest(small_manifest, tmp_path / "out")
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", build_dict=True)
    assert "Ö" in dictionary.load_alphabet(tmp_path / "out" / "char.dict") and "dict_path=" in str(
        summary
    )
    edit(small_manifest, 0, "p 0.wav\tHoeren Sie, bitte")
    manifest.prepare_manifest(small_manifest, tmp_path / "out")
    assert not (tmp_path / "out" / "char.dict").exists()  # a stale one would not fit


def test_manifest_keeps_its_hands_off_a_foreign_folder(small_manifest, small_libri):
    (small_libri / "train-x").rename(small_libri / "train")
    with pytest.raises(UserError, match="of another origin"):
        manifest.prepare_manifest(small_manifest, small_libri)
    assert (small_libri / "train" / "1").is_dir()


def test_manifest_options_and_missing_file(small_manifest, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        manifest.prepare_manifest(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="Did you mean 'drop_symbol'"):
        manifest.prepare_manifest(small_manifest, unknown="drop_symbols")
    with pytest.raises(UserError, match="less than 1"):
        manifest.prepare_manifest(small_manifest, dev_ratio=0.5, test_ratio=0.5)
    with pytest.raises(UserError, match="test would be empty"):
        manifest.prepare_manifest(small_manifest, test_ratio=0.01)
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", dev_ratio=0)
    assert [row.split for row in summary.rows] == ["train", "test"]


def test_real_prompts(shared_dir, tmp_path):
    path = shared_dir / "data" / "asterisk_en" / "transcripts.tsv"
    summary = manifest.prepare_manifest(path, tmp_path, unknown="drop_symbol")
    assert {row.split: row.utterances for row in summary.rows} == {
        "train": 443,
        "dev": 55,
        "test": 55,
    }
    assert summary.converted == 0 and not summary.skipped


# ---------------------------------------------------------------- the command


def command(*args, cwd):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_runs_from_anywhere_and_reports_mistakes_without_a_traceback(small_libri, tmp_path):
    done = command("librispeech", small_libri, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0 and "train-x" in done.stdout, done.stderr
    assert (tmp_path / "out" / "train-x.csv").is_file()
    failed = command("ravdess", tmp_path / "nowhere", cwd=tmp_path)
    assert failed.returncode == 2 and failed.stdout == ""
    assert (
        failed.stderr.startswith("error: RAVDESS: no folder at")
        and "Traceback" not in failed.stderr
    )


def test_command_help_needs_no_heavy_import(tmp_path):
    code = f"import runpy, sys; sys.argv = ['x', '--help']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "usage: prepare_data.py" in done.stdout
    assert not imported & {"torch", "torchaudio", "numpy", "soundfile"}


@pytest.mark.parametrize("corpus", ["ravdess", "iemocap", "librispeech", "manifest", "synthetic"])
def test_every_command_reaches_its_preparation(corpus, monkeypatch, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "corpus" / "x"
    file.parent.mkdir()
    file.write_text("no tab here")
    target = file if corpus == "manifest" else file.parent
    assert module.main([corpus, str(target)]) == 2
    message = capsys.readouterr().err
    expected = {
        "manifest": "path TAB text",
        "synthetic": "not empty",
        "iemocap": "Session1",
        "librispeech": "layout",
    }
    assert expected.get(corpus, "Actor_01") in message
