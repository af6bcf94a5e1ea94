"""A random stretch of a recording, for tasks that crop."""

import random
from pathlib import Path

from torch import Tensor

from s3prl_varan.audio import SAMPLE_RATE, header_samples, read_audio


def random_stretch(path: Path, num_samples: int, rng: random.Random) -> Tensor:
    """`num_samples` (at 16 kHz) from anywhere in a file; all of it where it has no more."""
    spare = header_samples(path) - num_samples
    if spare <= 0:
        return read_audio(path)
    start = rng.randint(0, spare) / SAMPLE_RATE
    wave = read_audio(path, start=start, end=start + num_samples / SAMPLE_RATE)
    return wave[:num_samples]  # resampling may have rounded up
