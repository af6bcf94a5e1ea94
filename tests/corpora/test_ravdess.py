"""RAVDESS: what is written, who lands in which split, and every way it can be wrong."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import soundfile
from tones import tone

from s3prl_varan import audio
from s3prl_varan.corpora import metadata, ravdess
from s3prl_varan.errors import UserError


def read_meta(out, fold, split):
    return json.loads((out / fold / f"{split}_meta_data.json").read_text())


def speakers(out, fold, split):
    return {int(row["speaker"]) for row in read_meta(out, fold, split)["meta_data"]}


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
        assert summary.converted == 3 and "converted 3 recordings" in str(summary)
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


def test_real_ravdess(shared_dir, tmp_path):
    root = shared_dir / "data" / "ravdess"
    summary = ravdess.prepare_ravdess(root, tmp_path)
    assert (summary.clips, summary.converted, summary.skipped, summary.notes) == (1440, 0, [], [])
    fold1 = [row for row in summary.rows if row.fold == "fold1"]
    assert [row.clips for row in fold1] == [840, 240, 360]
    assert list(fold1[2].counts.values()) == [72, 48, 48, 48, 48, 48, 48]
    assert sum(row.hours for row in fold1) == pytest.approx(89 / 60, rel=0.01)
