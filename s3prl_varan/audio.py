"""Reading and checking audio files. Everything downstream of here is 16 kHz mono float32."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_varan.errors import UserError
from s3prl_varan.files import atomic_path

if TYPE_CHECKING:
    import soundfile
    import torch

SAMPLE_RATE = 16000
# The receptive field of the wav2vec 2.0 family's convolutions: a shorter clip gives no frame.
MIN_SAMPLES = 400
# What libsndfile reads and s3prl's datasets do.
AUDIO_SUFFIXES = frozenset({".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"})
RATES = range(1000, 400_001)  # Hz
_known_samples: dict[str, int] = {}  # of each file, at 16 kHz


@dataclass(frozen=True)
class AudioInfo:
    """Length and form of a file as its header states them."""

    num_samples: int  # per channel, at `rate`
    rate: int  # Hz
    channels: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_samples / self.rate

    @property
    def samples_16k(self) -> int:
        """Samples after resampling to 16 kHz (rounded up, as the resampler does)."""
        return -(-self.num_samples * SAMPLE_RATE // self.rate)

    @property
    def is_16k_mono(self) -> bool:
        """True when the file can be used as it is."""
        return self.rate == SAMPLE_RATE and self.channels == 1


@dataclass(frozen=True)
class CheckedFile:
    """A file and what is wrong with it, if anything."""

    path: Path
    info: AudioInfo | None  # None when the file cannot be read
    problem: str | None  # starts with the path


def read_audio(path: str | Path, *, start: float = 0.0, end: float | None = None) -> "torch.Tensor":
    """Read a file as [num_samples] float32 at 16 kHz: channels averaged, other rates resampled.

    start, end: seconds; only this stretch is read (None: to the end of the file; an end past it is
    cut off there). Raises UserError naming the file when it is missing, unreadable, without samples
    in that stretch, or holds values that are not finite.
    """
    import torch

    data, rate = _decode(path, start, end)
    return to_16k(torch.from_numpy(data).mean(dim=1), rate)


def to_16k(wave: "torch.Tensor", rate: int) -> "torch.Tensor":
    """[num_samples] at `rate` Hz, resampled to 16 kHz where it is another rate."""
    import torchaudio

    return wave if rate == SAMPLE_RATE else torchaudio.functional.resample(wave, rate, SAMPLE_RATE)


@contextmanager
def open_audio(path: str | Path) -> "Iterator[soundfile.SoundFile]":
    """An open audio file.

    UserError naming it when it is missing, broken off, or cannot be read on the way.
    """
    import soundfile

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(str(path)) as file:
            missing = _missing_bytes(path)
            if missing:
                raise UserError(f"{path}: broken off, {missing} bytes fewer than its header says")
            if file.samplerate not in RATES:
                raise UserError(f"{path}: its header says {file.samplerate} Hz, no rate of speech")
            yield file
    # TypeError: .raw, without a header. MemoryError: a damaged one that promises too much.
    except (soundfile.SoundFileError, TypeError, MemoryError) as error:
        reason = str(error).rsplit(": ", 1)[-1].rstrip(".") or type(error).__name__
        raise UserError(f"{path}: not readable as audio ({reason})") from error


def require_samples(path: str | Path, data) -> None:  # noqa: ANN001 - a numpy array
    """Raise UserError when there are none, or some that are not finite."""
    import numpy

    if len(data) == 0:
        raise UserError(f"{path}: empty, no samples")
    if not numpy.isfinite(data).all():
        raise UserError(f"{path}: holds values that are not finite (NaN or infinity)")


def header_samples(path: str | Path) -> int:
    """How many samples `read_audio` gives for the whole file, from its header.

    What was looked at (or examined) in this process is known: datasets and samplers ask often.
    """
    key = str(path)
    if key not in _known_samples:
        _known_samples[key] = audio_info(path).samples_16k
    return _known_samples[key]


def audio_info(path: str | Path) -> AudioInfo:
    """Length, rate and channels from the header, without decoding.

    Raises UserError when there is no readable header.
    """
    with open_audio(path) as file:
        return AudioInfo(int(file.frames), int(file.samplerate), int(file.channels))


def audio_files(folder: Path, *, below: bool = False) -> list[Path]:
    """Sorted audio files in a folder, by suffix; below: also in the folders in it.

    Hidden ones are passed over: macOS leaves ._NAME.wav beside NAME.wav.
    """
    found = folder.rglob("*") if below else folder.iterdir()
    return sorted(path for path in found if is_audio(path) and path.is_file())


def is_audio(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in AUDIO_SUFFIXES and path.name[0] != "."


def examine_audio_files(
    paths: Iterable[str | Path], min_samples: int = MIN_SAMPLES, *, decode: bool = True
) -> list[CheckedFile]:
    """Each file's length and form, and its problem where it has one, in the order given.

    A problem: missing, unreadable, broken off, or shorter than `min_samples` at 16 kHz.
    decode=False trusts the headers: much faster, but a file cut off in the middle passes.
    """
    # Threads are enough: libsndfile releases the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: _examine(Path(path), min_samples, decode), paths))


def convert_to_16k_mono(source: str | Path, target: str | Path) -> AudioInfo:
    """Write `source` as 16 kHz mono 16-bit `target`, .wav or .flac by its suffix."""
    wave = read_audio(source)
    write_audio(target, wave.clamp(-1.0, 1.0).numpy())
    return AudioInfo(len(wave), SAMPLE_RATE, 1)


def write_audio(path: str | Path, samples) -> None:  # noqa: ANN001 - a numpy array [num_samples]
    """Write float or int16 samples at 16 kHz as 16-bit audio; whole or not at all."""
    import soundfile

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16")


def _examine(path: Path, min_samples: int, decode: bool) -> CheckedFile:
    try:
        info = audio_info(path)
        if decode and info.num_samples:
            data, rate = _decode(path)
            info = AudioInfo(len(data), rate, data.shape[1])
    except UserError as error:
        return CheckedFile(path, None, str(error))
    _known_samples[str(path)] = info.samples_16k
    if info.num_samples == 0:
        return CheckedFile(path, info, f"{path}: empty, no samples")
    if info.samples_16k < min_samples:
        shortest = 1000 * min_samples / SAMPLE_RATE
        return CheckedFile(
            path,
            info,
            f"{path}: too short, {1000 * info.seconds:.1f} ms (at least {shortest:g} ms needed)",
        )
    return CheckedFile(path, info, None)


def _missing_bytes(path: str | Path) -> int:
    """How much of a torn .wav is gone: libsndfile reads what is left of one without a word.

    (A torn flac fails to decode; a torn ogg passes.)
    """
    with open(path, "rb") as file:
        head = file.read(8)
    stated = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or stated >= 0x7FFF0000:  # written to a pipe: the length was not known
        return 0
    return max(0, stated + 8 - os.path.getsize(path))


def _decode(path: str | Path, start: float = 0.0, end: float | None = None):  # noqa: ANN202
    """(float32 numpy array [num_samples, channels], rate in Hz) of the stretch, in seconds."""
    with open_audio(path) as file:
        # In GSM and G.72x libsndfile cannot seek, nor read without a number of frames.
        rate, frames = int(file.samplerate), file.frames
        if start != 0.0 or end is not None:
            first, stop = _stretch(path, start, end, file.frames, rate)
            file.seek(first) if file.seekable() else file.read(first)
            frames = stop - first
        data = file.read(frames, dtype="float32", always_2d=True)
    require_samples(path, data)
    return data, rate


def _stretch(
    path: str | Path, start: float, end: float | None, frames: int, rate: int
) -> tuple[int, int]:
    """First frame and the one after the last. UserError when there is none between them."""
    first = round(start * rate)
    stop = frames if end is None else min(frames, round(end * rate))
    if start < 0 or first >= stop:
        last = "its end" if end is None else f"{end:g} s"
        raise UserError(
            f"{path}: no samples from {start:g} s to {last}; the file has {frames / rate:.3f} s. "
            "Give a start that is not negative, before the end and inside the file."
        )
    return first, stop
