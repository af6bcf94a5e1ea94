"""Reading, checking and writing audio files."""

import numpy
import pytest
import soundfile
import torch
from tones import tone

from s3prl_varan import audio
from s3prl_varan.errors import UserError
from s3prl_varan.recordings import read_pieces


def test_read_audio_mixes_down_and_resamples(tmp_path):
    rate, time = 48000, numpy.arange(48000) / 48000
    wave = numpy.sin(2 * numpy.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", numpy.stack([wave, numpy.zeros_like(wave)], axis=1), rate)
    read = audio.read_audio(tmp_path / "a.wav")
    assert (read.dtype, read.shape) == (torch.float32, (16000,))
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    assert (read - expected)[200:-200].abs().max() < 0.01


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_stretch_is_that_part_of_the_whole(tmp_path, suffix):
    path = tone(tmp_path / f"a.{suffix}", 0.5)
    whole = audio.read_audio(path)
    for start, end in ((0.1, 0.3), (0.0, 0.2), (0.25, None), (0.4, 9.0)):
        last = 8000 if end is None else min(8000, round(16000 * end))
        expected = whole[round(16000 * start) : last]
        found = audio.read_audio(path, start=start, end=end)
        torch.testing.assert_close(found, expected, atol=1e-3 if suffix == "ogg" else 0.0, rtol=0.0)


def test_a_stretch_at_another_rate_is_in_seconds_all_the_same(tmp_path):
    path = tone(tmp_path / "a.wav", 1.0, 44100, 2)
    part = audio.read_audio(path, start=0.25, end=0.75)
    assert part.shape == (8000,)
    assert (part - audio.read_audio(path)[4000:12000])[50:-50].abs().max() < 1e-3


def test_a_stretch_reads_nothing_else(tmp_path, monkeypatch):
    path, asked = tone(tmp_path / "a.wav", 2.0), []
    original = soundfile.SoundFile.read

    def counting(self, frames=-1, **kwargs):
        asked.append(frames)
        return original(self, frames, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    audio.read_audio(path, start=1.0, end=1.5)
    assert asked == [8000]


@pytest.mark.parametrize("start, end", [(1.0, None), (2.0, 3.0), (0.3, 0.3), (0.4, 0.2), (-0.1, 1)])
def test_a_stretch_without_samples_is_a_mistake(tmp_path, start, end):
    path = tone(tmp_path / "a.wav", 0.5)
    with pytest.raises(UserError, match="a.wav: no samples from .* the file has 0.500 s"):
        audio.read_audio(path, start=start, end=end)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_header_samples_is_the_length_read(tmp_path, rate):
    path = tone(tmp_path / "a.wav", 0.1234, rate, 2)
    assert audio.header_samples(path) == len(audio.read_audio(path))


def test_header_samples_looks_once_and_names_what_is_missing(tmp_path):
    path = tone(tmp_path / "a.wav")
    assert audio.header_samples(path) == 800
    path.unlink()
    assert audio.header_samples(path) == 800
    with pytest.raises(UserError, match="gone.wav: no such file"):
        audio.header_samples(tmp_path / "gone.wav")


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
    (tmp_path / "noise.raw").write_bytes(b"\0" * 3200)
    bad["noise.raw"] = "not readable"
    bad |= {"short.wav": "too short, 10.0 ms", "nan.wav": "not finite"}
    checked = audio.examine_audio_files([good, *(tmp_path / name for name in bad)])
    problems = [file.problem for file in checked if file.problem]
    assert checked[0].problem is None and checked[0].info == audio.audio_info(good)
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


def test_writing_that_fails_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tone(tmp_path / "a.wav")
    before = path.read_bytes()

    def half(file, *rest, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(soundfile, "write", half)
    with pytest.raises(OSError, match="disk full"):
        audio.write_audio(path, numpy.zeros(800))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_audio_files_are_found_but_for_hidden_ones(tmp_path):
    (tmp_path / "inner").mkdir()
    paths = [tone(tmp_path / name) for name in ("b.wav", "a.FLAC")]
    paths.append(tone(tmp_path / "inner" / "c.ogg"))
    (tmp_path / "._b.wav").write_bytes(b"left by macOS")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder.wav").mkdir()
    assert audio.audio_files(tmp_path) == sorted(paths[:2])
    assert audio.audio_files(tmp_path, below=True) == sorted(paths)


@pytest.mark.parametrize("codec", ["GSM610", "G721_32", "NMS_ADPCM_16", "IMA_ADPCM"])
def test_telephone_codecs_are_read_where_libsndfile_cannot_seek(tmp_path, codec):
    wave, path = tone(tmp_path / "plain.wav", 1.0), tmp_path / "a.wav"
    soundfile.write(path, audio.read_audio(wave).numpy(), 16000, subtype=codec)
    whole = audio.read_audio(path)
    assert len(whole) == audio.header_samples(path) >= 16000
    assert (whole[:16000] - audio.read_audio(wave)).abs().mean() < 0.1
    part = audio.read_audio(path, start=0.25, end=0.5)
    assert part.shape == (4000,) and (part - whole[4000:8000]).abs().max() < 0.2
    assert audio.examine_audio_files([path])[0].problem is None


def test_a_codec_that_cannot_be_decoded_blocks_one_file_by_name(tmp_path):
    good, path = tone(tmp_path / "good.wav"), tmp_path / "a.wav"
    content = bytearray(good.read_bytes())
    content[20:22] = (0x0055).to_bytes(2, "little")  # says that it holds MP3
    path.write_bytes(content)
    soundfile.write(tmp_path / "b.aiff", numpy.zeros(800), 16000, subtype="DWVW_16")
    found = audio.examine_audio_files([good, path, tmp_path / "b.aiff"])
    assert [bool(file.problem) for file in found] == [False, True, True]
    for file in found[1:]:
        assert file.problem.startswith(f"{file.path}: ")


def test_a_header_that_promises_too_much_blocks_one_file_by_name(tmp_path):
    path = tone(tmp_path / "a.flac")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4  # 2**36 - 1 samples
    path.write_bytes(content)
    slow = tone(tmp_path / "slow.wav", rate=16000)
    slow.write_bytes(slow.read_bytes().replace((16000).to_bytes(4, "little"), b"\x01\0\0\0", 1))
    found = audio.examine_audio_files([path, slow])
    assert all(file.problem.startswith(f"{file.path}: ") for file in found)
    assert "says 1 Hz" in found[1].problem


def test_a_broken_off_wav_is_the_same_everywhere(tmp_path):
    path = tone(tmp_path / "a.wav", 1.0)
    path.write_bytes(path.read_bytes()[:16000])
    (whole,) = audio.examine_audio_files([path])
    (header,) = audio.examine_audio_files([path], decode=False)
    said = {whole.problem, header.problem}
    for read in (
        lambda: audio.read_audio(path),
        lambda: audio.read_audio(path, start=0.1, end=0.2),
        lambda: audio.header_samples(path),
        lambda: audio.convert_to_16k_mono(path, tmp_path / "b.wav"),
        lambda: next(read_pieces(path, 0.5)),
    ):
        with pytest.raises(UserError) as raised:
            read()
        said.add(str(raised.value))
    assert said == {f"{path}: broken off, 16044 bytes fewer than its header says"}
