"""Recordings of any length, for inference: found by name, read in pieces, in bounded memory.

A recording is cut at the quietest moment of the last third of every stretch as long as a piece may
be; together its pieces are the whole recording.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s3prl_varan.audio import (
    AUDIO_SUFFIXES,
    SAMPLE_RATE,
    audio_files,
    examine_audio_files,
    open_audio,
    read_audio,
    require_samples,
    to_16k,
)
from s3prl_varan.errors import UserError, problems_error

EARLIEST_CUT = 2 / 3  # of a piece's longest duration
QUIET = 0.08  # seconds: the stretch that must be quiet


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording."""

    path: Path
    start: float  # seconds
    wave: Tensor  # [num_samples], 16 kHz
    last: bool  # of its recording

    @property
    def end(self) -> float:
        """Seconds."""
        return self.start + len(self.wave) / SAMPLE_RATE


def find_audio(names: Iterable[str]) -> list[Path]:
    """Audio files, and those under the folders among `names`.

    UserError that lists everything that cannot be read.
    """
    paths: list[Path] = []
    problems: list[str] = []
    for name in names:
        place = Path(name).expanduser()
        inside = audio_files(place, below=True) if place.is_dir() else [place]
        if not inside:
            kinds = ", ".join(sorted(AUDIO_SUFFIXES))
            problems.append(f"{place}: no audio files ({kinds}) in it")
        paths += inside
    checked = examine_audio_files(paths, min_samples=1, decode=False)
    problems += [file.problem for file in checked if file.problem]
    if problems:
        raise problems_error("not all of these recordings can be read:", problems)
    return paths


def read_all(paths: Iterable[Path], longest: float | None) -> Iterator[Piece]:
    """Pieces of all recordings, in order, each at most `longest` seconds (None: uncut)."""
    for path in paths:
        start, pieces = 0.0, read_pieces(path, longest)
        wave = next(pieces, None)
        if wave is None:
            raise UserError(f"{path}: its header promises samples, but none can be decoded.")
        while wave is not None:
            following = next(pieces, None)
            piece = Piece(path, start, wave, last=following is None)
            yield piece
            start, wave = piece.end, following


def read_pieces(path: Path, longest: float | None) -> Iterator[Tensor]:
    """[num_samples] at 16 kHz, mono, each at most `longest` seconds (None: uncut); in order.

    Nothing is read twice, and no more than about two pieces are held. UserError as `read_audio`.
    """
    if longest is None:
        yield read_audio(path)
        return
    with open_audio(path) as file:
        rate, most = file.samplerate, int(longest * file.samplerate)
        held = torch.empty(0)
        # Until nothing comes: a header need not know the length.
        while len(block := file.read(most, dtype="float32", always_2d=True)):
            require_samples(path, block)
            held = torch.cat([held, torch.from_numpy(block).mean(dim=1)])
            while len(held) > most:
                cut = quietest(held, rate, longest)
                yield to_16k(held[:cut], rate)
                held = held[cut:]
        if len(held):
            yield to_16k(held, rate)


def quietest(wave: Tensor, rate: int, longest: float) -> int:
    """Sample in the middle of the quietest stretch where a piece may be cut.

    wave: [num_samples] at `rate` Hz, longer than `longest` seconds.
    """
    size, start, end = int(QUIET * rate), int(EARLIEST_CUT * longest * rate), int(longest * rate)
    step = max(1, size // 2)
    energy = wave[start:end].square().unfold(0, size, step).mean(dim=1)
    return start + int(energy.argmin()) * step + size // 2
