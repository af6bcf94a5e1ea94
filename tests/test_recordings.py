"""Recordings of any length: every sample in some piece, once, and no more held than needed."""

import numpy as np
import pytest
import soundfile
import torch

from s3prl_varan import recordings
from s3prl_varan.audio import read_audio
from s3prl_varan.errors import UserError


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(int(16000 * seconds))).astype("float32")


def test_pieces_are_the_whole_recording(tmp_path):
    wave = noise(95)
    wave[16000 * 25 : 16000 * 25 + 1600] = 0  # a pause
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    pieces = list(recordings.read_pieces(tmp_path / "a.wav", 30.0))
    assert torch.equal(torch.cat(pieces), torch.from_numpy(wave))
    assert max(map(len, pieces)) <= 30 * 16000
    assert min(map(len, pieces[:-1])) >= 20 * 16000
    assert 25.0 * 16000 <= len(pieces[0]) <= 25.1 * 16000, "cut in the pause"
    soundfile.write(tmp_path / "b.wav", wave[: 16000 * 2], 16000)
    (only,) = recordings.read_pieces(tmp_path / "b.wav", 30.0)
    torch.testing.assert_close(only, read_audio(tmp_path / "b.wav"))


def test_a_task_that_takes_any_length_gets_it_uncut(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(70), 16000)
    (only,) = recordings.read_pieces(tmp_path / "a.wav", None)
    assert torch.equal(only, read_audio(tmp_path / "a.wav"))


def test_pieces_of_another_form_come_at_16_khz(tmp_path):
    wave = np.repeat(noise(10)[:, None], 2, axis=1)
    soundfile.write(tmp_path / "a.wav", wave, 8000)  # 20 s
    pieces = list(recordings.read_pieces(tmp_path / "a.wav", 6.0))
    assert sum(map(len, pieces)) == 20 * 16000 and max(map(len, pieces)) <= 6 * 16000
    torch.testing.assert_close(
        pieces[0][:-50], read_audio(tmp_path / "a.wav")[: len(pieces[0])][:-50]
    )


def test_long_files_are_read_piece_by_piece(tmp_path, monkeypatch):
    """However long a file, two pieces' worth at most is read before the first piece is out."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16000 * 300, dtype="int16"), 16000)
    asked = []
    original = soundfile.SoundFile.read

    def counting(self, frames=-1, **kwargs):
        asked.append(frames)
        return original(self, frames, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    next(recordings.read_pieces(tmp_path / "a.wav", 30.0))
    assert 0 < sum(asked) <= 60 * 16000 and min(asked) > 0


def test_pieces_of_several_recordings_say_where_they_lie(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(25), 16000)
    soundfile.write(tmp_path / "b.wav", noise(1), 16000)
    pieces = list(recordings.read_all([tmp_path / "a.wav", tmp_path / "b.wav"], 10.0))
    first = [piece for piece in pieces if piece.path.name == "a.wav"]
    assert len(first) >= 3 and pieces[: len(first)] == first
    assert [piece.last for piece in pieces] == [False] * (len(first) - 1) + [True, True]
    assert first[0].start == 0 and first[-1].end == 25
    for before, after in zip(first, first[1:], strict=False):
        assert before.end == after.start
    assert (pieces[-1].start, pieces[-1].end) == (0, 1)


def test_files_and_folders_are_found_or_all_problems_named(tmp_path):
    (tmp_path / "talks" / "inner").mkdir(parents=True)
    paths = [
        tmp_path / "talks" / "inner" / "b.wav",
        tmp_path / "talks" / "z.flac",
        tmp_path / "a.wav",
    ]
    for path in paths:
        soundfile.write(path, noise(0.01), 16000)  # however short: the model says what it can take
    (tmp_path / "talks" / "notes.txt").write_text("hello")
    assert recordings.find_audio([str(tmp_path / "talks"), str(paths[2])]) == paths
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(UserError) as raised:
        recordings.find_audio(str(tmp_path / name) for name in ("empty", "no.wav", "bad.wav"))
    for part in ("empty: no audio files", "no.wav: no such file", "bad.wav: not readable"):
        assert part in str(raised.value)


def test_bad_samples_in_the_middle_are_named(tmp_path):
    wave = noise(25)
    wave[16000 * 22] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    pieces = recordings.read_pieces(tmp_path / "a.wav", 10.0)
    next(pieces)
    with pytest.raises(UserError, match="a.wav: holds values that are not finite"):
        list(pieces)
