"""What rooms share about clips: every problem of a corpus at once, and random stretches."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from s3prl_varan.audio import SAMPLE_RATE, examine_audio_files, header_samples, read_audio
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.shapes.base import Item


def clip_problems(items: Callable[[str], list[Item]], splits: Sequence[str]) -> list[str]:
    """What is wrong with the lists of all `splits`, then with the files that they name.

    items: of a task; its UserError has a problem in each line. A line that several splits have in
    common (no corpus at all, say) comes once.
    """
    found: dict[str, None] = {}
    paths: dict[Path, None] = {}
    for split in splits:
        try:
            paths |= dict.fromkeys(item.path for item in items(split))
        except UserError as error:
            found |= dict.fromkeys(str(error).splitlines())
    checked = examine_audio_files(paths, decode=False)
    return [*found, *(file.problem for file in checked if file.problem)]


def random_stretch(path: Path, num_samples: int, rng: random.Random) -> Tensor:
    """`num_samples` (at 16 kHz) from anywhere in a file; all of it where it has no more."""
    spare = header_samples(path) - num_samples
    if spare <= 0:
        return read_audio(path)
    start = rng.randint(0, spare) / SAMPLE_RATE
    wave = read_audio(path, start=start, end=start + num_samples / SAMPLE_RATE)
    return wave[:num_samples]  # resampling may have rounded up
