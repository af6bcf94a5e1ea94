"""A random stretch of a recording, for tasks that crop."""

import random
from pathlib import Path

from torch import Tensor

from s3prl_varan.audio import SAMPLE_RATE, header_samples, read_audio


def random_stretch(
    path: Path,
    num_samples: int,
    rng: random.Random,
    *,
    start: float = 0.0,
    end: float | None = None,
) -> Tensor:
    """`num_samples` (at 16 kHz) from anywhere in a file; all of it where it has no more.

    start, end: seconds, of the part of the file that it is taken from.
    """
    whole = header_samples(path)
    last = whole if end is None else min(whole, round(SAMPLE_RATE * end))
    spare = last - round(SAMPLE_RATE * start) - num_samples
    if spare <= 0:
        return read_audio(path, start=start, end=end)
    start += rng.randint(0, spare) / SAMPLE_RATE
    wave = read_audio(path, start=start, end=start + num_samples / SAMPLE_RATE)
    return wave[:num_samples]  # resampling may have rounded up
