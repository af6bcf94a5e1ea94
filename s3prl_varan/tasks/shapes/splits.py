"""What is odd about a corpus's splits, for warnings before training."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Splits = Mapping[str, Sequence[Any]]  # its name -> its clips, Items of base.py
FEW = 50  # dev clips
SHOWN = 5


def overlaps(clips: Splits, *, speakers: bool) -> Iterator[str]:
    """Recordings that two splits have, and speakers that one has with training."""
    stretches = {
        split: {(item.path.resolve(), item.start, item.end) for item in items}
        for split, items in clips.items()
    }
    talkers = {split: {item.speaker for item in items} - {None} for split, items in clips.items()}
    for one, other in combinations(clips, 2):
        shared = {path.name for path, _, _ in stretches[one] & stretches[other]}
        if shared:
            yield f"recordings in {one} and in {other}: {_some(shared)}"
        both = {str(each) for each in talkers[one] & talkers[other]}
        if speakers and both and any(each.startswith("train") for each in (one, other)):
            yield f"speakers in {one} and in {other}: {_some(both)}"


def small_dev(clips: Splits) -> Iterator[str]:
    """A dev split on which the best checkpoint is chosen by luck."""
    for split, items in clips.items():
        if split.startswith("dev") and len(items) < FEW:
            error = 100 * math.sqrt(0.25 / len(items))
            yield (
                f"{split} has {len(items)} clips, few to choose the best checkpoint on: an "
                f"accuracy of 50 % has a standard error of {error:.0f} points there"
            )


def unlearned(clips: Splits, names: Sequence[str]) -> Iterator[str]:
    """Classes (the places in `names`) of which there is no training clip, and who has some."""
    counts = {split: Counter(item.target for item in items) for split, items in clips.items()}
    trained = [split for split in counts if split.startswith("train")]
    missing = set(range(len(names))).difference(*(counts[split] for split in trained))
    if trained and missing:
        yield f"classes without a training clip: {_some(names[index] for index in missing)}"
        for split, count in counts.items():
            asked = sum(count[index] for index in missing)
            if asked:
                yield f"clips of these classes in {split}: {asked}"


def _some(names: Iterable[str]) -> str:
    """How many, and the first few."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
