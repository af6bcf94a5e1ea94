"""Reading and checking audio files. Everything downstream of here is 16 kHz mono float32."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_varan.errors import UserError

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16000
MIN_SAMPLES = (
    400  # receptive field of the wav2vec 2.0 family's convolutions: a shorter clip gives no frame
)
AUDIO_SUFFIXES = frozenset({".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"})


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


def read_audio(path: str | Path) -> "torch.Tensor":
    """Read a file as [num_samples] float32 at 16 kHz: channels are averaged, other rates resampled.

    Raises UserError naming the file when it is missing, unreadable, empty or holds values that are not finite.
    """
    import torch
    import torchaudio

    data, rate = _decode(path)
    wave = torch.from_numpy(data).mean(dim=1)
    if rate != SAMPLE_RATE:
        wave = torchaudio.functional.resample(wave, rate, SAMPLE_RATE)
    return wave


def audio_info(path: str | Path) -> AudioInfo:
    """Length, rate and channels from the header, without decoding. Raises UserError when there is no readable header."""
    import soundfile

    _require_file(path)
    try:
        found = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: not readable as audio ({_reason(error)})") from error
    return AudioInfo(int(found.frames), int(found.samplerate), int(found.channels))


def check_audio_files(
    paths: Iterable[str | Path], min_samples: int = MIN_SAMPLES, *, decode: bool = True
) -> list[str]:
    """One line per file that is missing, unreadable, or shorter than `min_samples` at 16 kHz; it starts with the path.

    decode=False trusts the headers: much faster, but a file cut off in the middle passes.
    """
    return [
        file.problem
        for file in examine_audio_files(paths, min_samples, decode=decode)
        if file.problem
    ]


def examine_audio_files(
    paths: Iterable[str | Path], min_samples: int = MIN_SAMPLES, *, decode: bool = True
) -> list[CheckedFile]:
    """As `check_audio_files`, with what was learnt about every file, in the order given."""
    todo: Sequence[Path] = [Path(path) for path in paths]
    with ThreadPoolExecutor(
        max_workers=min(8, os.cpu_count() or 1)
    ) as pool:  # libsndfile releases the interpreter lock
        return list(pool.map(lambda path: _examine(path, min_samples, decode), todo))


def convert_to_16k_mono(source: str | Path, target: str | Path) -> AudioInfo:
    """Write `source` as 16 kHz mono 16-bit `target` (.wav or .flac, by its suffix); whole or not at all."""
    wave = read_audio(source)
    write_audio(target, wave.clamp(-1.0, 1.0).numpy())
    return AudioInfo(len(wave), SAMPLE_RATE, 1)


def write_audio(path: str | Path, samples) -> None:  # noqa: ANN001 - a float or int16 numpy array [num_samples]
    """Write 16 kHz 16-bit audio through a temporary file in the same folder."""
    import soundfile

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-", suffix=target.suffix)
    os.close(handle)
    try:
        soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16")
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _examine(path: Path, min_samples: int, decode: bool) -> CheckedFile:
    try:
        info = audio_info(path)
        if decode and info.num_samples:
            data, rate = _decode(path)
            info = AudioInfo(len(data), rate, data.shape[1])
    except UserError as error:
        return CheckedFile(path, None, str(error))
    if info.num_samples == 0:
        return CheckedFile(path, info, f"{path}: empty, no samples")
    missing = _missing_bytes(path)
    if missing:
        return CheckedFile(
            path, info, f"{path}: broken off, {missing} bytes fewer than its header says"
        )
    if info.samples_16k < min_samples:
        shortest = 1000 * min_samples / SAMPLE_RATE
        return CheckedFile(
            path,
            info,
            f"{path}: too short, {1000 * info.seconds:.1f} ms (at least {shortest:g} ms needed)",
        )
    return CheckedFile(path, info, None)


def _missing_bytes(path: Path) -> int:
    """How much of a torn .wav is gone; libsndfile reads what is left without a word. (Torn flac fails; a torn ogg passes.)"""
    with open(path, "rb") as file:
        head = file.read(8)
    stated = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or stated >= 0x7FFF0000:  # written to a pipe: the length was not known
        return 0
    return max(0, stated + 8 - path.stat().st_size)


def _decode(path: str | Path):  # noqa: ANN202 - (float32 numpy array [num_samples, channels], rate)
    import numpy
    import soundfile

    _require_file(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            data = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: not readable as audio ({_reason(error)})") from error
    if len(data) == 0:
        raise UserError(f"{path}: empty, no samples")
    if not numpy.isfinite(data).all():
        raise UserError(f"{path}: holds values that are not finite (NaN or infinity)")
    return data, int(rate)


def _require_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1].rstrip(".") or type(error).__name__
