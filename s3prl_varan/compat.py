"""Makes s3prl's unmodified downstream experts run on today's packages.

s3prl's datasets call torchaudio's `load`, `info` and `sox_effects`. torchaudio >= 2.9 reads audio
only through torchcodec (which needs FFmpeg's libraries) and has dropped the other two; 2.8 has
them, but without libsox on the machine its effects fail when they are called. Here all three are
served by soundfile. Call `patch_torchaudio()` before the first import of an s3prl downstream:
several of them copy `load` into their own namespace. `import_downstream` does both.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from s3prl_varan.edit_distance import edit_distance
from s3prl_varan.errors import UserError

if TYPE_CHECKING:
    import torch

# Of the extra `experts`: what s3prl's downstreams import beyond what this program needs.
EXTRA = ("asteroid", "dtw-python", "h5py", "librosa", "lxml", "six", "sox")
_AUDIO_SUFFIXES = {".aac", ".au", ".flac", ".m4a", ".mp3", ".ogg", ".wav"}
Source = str | Path | IO[bytes]
# Bits of a sample, by libsndfile's name of the encoding.
BITS = {
    **{"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32},
    **{"FLOAT": 32, "DOUBLE": 64},
}


@dataclass(frozen=True)
class AudioMetaData:
    """What `torchaudio.info` used to return."""

    sample_rate: int
    num_frames: int  # samples per channel
    num_channels: int
    bits_per_sample: int  # 0 where it has no meaning
    encoding: str


def load_audio(
    uri: Source,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> tuple["torch.Tensor", int]:
    """`torchaudio.load` on soundfile: (waveform [channels, num_samples], sample_rate).

    The waveform is float32 in [-1, 1]; normalize=False keeps 16- and 32-bit PCM as integers.
    frame_offset, num_frames: where to start and how many samples to read (-1: to the end). format,
    buffer_size and backend change nothing. Raises what soundfile raises for a file that cannot be
    read.
    """
    import soundfile
    import torch

    dtype = "float32"
    with soundfile.SoundFile(uri) as file:
        if not normalize:
            dtype = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}.get(
                file.subtype, "float32"
            )
        if frame_offset:
            file.seek(min(frame_offset, file.frames))
        data = file.read(frames=num_frames, dtype=dtype, always_2d=True)
        rate = int(file.samplerate)
    wave = torch.from_numpy(data)
    return (wave.t().contiguous() if channels_first else wave), rate


def audio_metadata(uri: Source, format: str | None = None, **_: Any) -> AudioMetaData:
    """`torchaudio.info` on soundfile; reads the header only."""
    import soundfile

    found = soundfile.info(uri)
    encoding = {"WAV": "PCM_S", "WAVEX": "PCM_S"}.get(found.format, found.format)
    if found.subtype in ("FLOAT", "DOUBLE"):
        encoding = "PCM_F"
    bits = BITS.get(found.subtype, 0)
    return AudioMetaData(found.samplerate, found.frames, found.channels, bits, encoding)


def apply_effects_tensor(
    tensor: "torch.Tensor",
    sample_rate: int,
    effects: Sequence[Sequence[str]],
    channels_first: bool = True,
) -> tuple["torch.Tensor", int]:
    """The sox effects that s3prl's experts ask for: `channels 1`, `rate N`, `gain DB`, `norm [DB]`.

    tensor: [channels, num_samples] (or transposed when not channels_first). Raises UserError for
    any other effect.
    """
    import torchaudio

    wave = tensor if channels_first else tensor.t()
    for name, *args in effects:
        if name == "channels" and args == ["1"]:
            wave = wave.mean(dim=0, keepdim=True)
        elif name == "rate" and len(args) == 1:
            target = int(float(args[0]))
            wave, sample_rate = torchaudio.functional.resample(wave, sample_rate, target), target
        elif name == "gain" and len(args) == 1 and not args[0].startswith("-n"):
            wave = wave * 10 ** (float(args[0]) / 20)
        elif name == "norm" and len(args) <= 1:
            peak = wave.abs().max().clamp_min(1e-9)
            wave = wave / peak * 10 ** (float(args[0] if args else 0) / 20)
        else:
            shown = " ".join([name, *args])
            raise UserError(
                f"sox effect '{shown}' is not available: torchaudio has no sox here, and only "
                "'channels 1', 'rate', 'gain' and 'norm' are replaced. Apply it to the files "
                "beforehand."
            )
    return (wave if channels_first else wave.t()), sample_rate


def apply_effects_file(
    path: Source,
    effects: Sequence[Sequence[str]],
    normalize: bool = True,
    channels_first: bool = True,
    **_: Any,
) -> tuple["torch.Tensor", int]:
    """Read a file and apply `effects`; see `apply_effects_tensor`."""
    wave, rate = load_audio(path)
    wave, rate = apply_effects_tensor(wave, rate, effects)
    return (wave if channels_first else wave.t()), rate


def patch_torchaudio() -> None:
    """Serve torchaudio.load and info from soundfile, and sox_effects where sox is not usable.

    May be called again.
    """
    import torchaudio

    if torchaudio.load is load_audio:
        return
    torchaudio.load = load_audio
    torchaudio.info = audio_metadata
    if not _has_sox():
        effects = _module("torchaudio.sox_effects", apply_effects_file, apply_effects_tensor)
        sys.modules["torchaudio.sox_effects"] = effects
        torchaudio.sox_effects = effects


def _has_sox() -> bool:
    """Does torchaudio find libsox? Without it the module can be imported, but not asked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 2.8 announces that it will be removed
            return bool(importlib.import_module("torchaudio.sox_effects").effect_names())
    except (ImportError, OSError, RuntimeError, AttributeError):
        return False


def import_downstream(name: str) -> types.ModuleType:
    """Import `s3prl.downstream.<name>.expert` with torchaudio patched.

    Raises UserError when a package that this expert needs is not installed. An unknown `name` is
    the caller's to check: it ends as the ordinary ModuleNotFoundError.
    """
    patch_torchaudio()
    module = f"s3prl.downstream.{name}.expert"
    try:
        with _stand_ins():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "s3prl"):
            raise
        raise UserError(
            f"downstream '{name}' needs the package '{missing}', which is not installed: "
            f"{_remedy(missing)}"
        ) from error


def _remedy(package: str) -> str:
    """What to install where an expert lacks `package`."""
    if package == "fairseq":
        return (
            "pip install fairseq-fixed sacrebleu sentencepiece (fairseq's own last release does "
            "not work on Python 3.11; s3prl's run_downstream.py does not start here either)"
        )
    if package in (*EXTRA, "dtw"):
        listed = ", ".join(EXTRA)
        return f'pip install "s3prl_varan[experts]" has what s3prl\'s experts need: {listed}'
    return f"pip install {package}"


def find_files(directory: str, *_: Any, **__: Any) -> list[str]:
    """librosa.util.find_files with its defaults: sorted audio files under `directory`."""
    found = [each for each in Path(directory).rglob("*") if each.suffix.lower() in _AUDIO_SUFFIXES]
    return sorted(map(str, found))


def _module(name: str, *members: Callable[..., Any] | type) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    for member in members:
        setattr(module, member.__name__, member)
    return module


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Two large packages from which s3prl's experts take a single name, where not installed.

    They are replaced while importing and leave `sys.modules` again, so that nobody else takes the
    stand-in for the real thing.
    """
    added: list[str] = []
    if importlib.util.find_spec("librosa") is None:
        added += _enter("librosa", "librosa.util", find_files)
        sys.modules["librosa"].__getattr__ = _no_librosa  # type: ignore[method-assign]
    if importlib.util.find_spec("catalyst") is None:
        added += _enter("catalyst", "catalyst.data", "catalyst.data.sampler", _sampler_wrapper())
    if importlib.util.find_spec("editdistance") is None:  # no wheels for Python 3.13
        added += _enter("editdistance", edit_distance)
        sys.modules["editdistance"].eval = edit_distance  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


def _no_librosa(attribute: str) -> Any:
    """What the stand-in has not, an expert asks for only when it runs."""
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    raise UserError(f"this expert needs the package 'librosa': {_remedy('librosa')}")


def _enter(*parts: Any) -> list[str]:
    """Put modules a, a.b, a.b.c into sys.modules; the last of `parts` goes into the innermost."""
    *names, member = parts
    for name in names:
        sys.modules[name] = _module(name)
    setattr(sys.modules[names[-1]], member.__name__, member)
    return names


def _sampler_wrapper() -> type:
    from torch.utils.data import DistributedSampler, Sampler

    class DistributedSamplerWrapper(DistributedSampler):
        """Deals out the indices that `sampler` draws, a share to each process.

        Every process must draw the same ones.
        """

        def __init__(self, sampler: Sampler, **kwargs: Any) -> None:
            self.sampler = sampler
            super().__init__(list(sampler), **kwargs)  # type: ignore[arg-type]

        def __iter__(self) -> Iterator[int]:
            drawn = list(self.sampler)
            return iter([drawn[index] for index in super().__iter__()])

    return DistributedSamplerWrapper
