"""How many samples the clips of an s3prl dataset have, from file headers, without decoding; for batches by length and caches."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLE_RATE = 16000


def item_samples(dataset: Any) -> list[list[int]] | None:
    """16 kHz samples of every clip in each item: [items][clips in the item]. None for datasets of a form unknown here.

    An item is what dataset[index] gives: one clip, or for s3prl's ASR dataset a batch that it has put together itself.
    """
    indices = None
    while hasattr(dataset, "indices") and hasattr(
        dataset, "dataset"
    ):  # torch's Subset, as random_split makes them
        indices = (
            list(dataset.indices)
            if indices is None
            else [dataset.indices[index] for index in indices]
        )
        dataset = dataset.dataset
    reader = next((read for fits, read in _READERS if fits(dataset)), None)
    if reader is None:
        return None
    items = range(len(dataset)) if indices is None else indices
    try:
        return [reader(dataset, index) for index in items]
    except (
        OSError,
        RuntimeError,
    ):  # a file is missing or unreadable: whoever loads it says so better
        return None


def header_samples(path: str | Path) -> int:
    """Samples that an audio file has once it is brought to 16 kHz."""
    import soundfile

    found = soundfile.info(str(path))
    return round(found.frames * SAMPLE_RATE / found.samplerate)


def _emotion(dataset: Any, index: int) -> list[int]:
    if getattr(dataset, "wavs", None) is not None:  # pre-loaded
        return [len(dataset.wavs[index])]
    return [header_samples(os.path.join(dataset.data_dir, dataset.meta_data[index]["path"]))]


def _sequences(dataset: Any, index: int) -> list[int]:
    return [header_samples(os.path.join(dataset.libri_root, path)) for path in dataset.X[index]]


def _fluent(dataset: Any, index: int) -> list[int]:
    return [header_samples(os.path.join(dataset.base_path, dataset.df.loc[index].path))]


def _commands(dataset: Any, index: int) -> list[int]:
    name, path = dataset.data[index]
    samples = header_samples(path)
    return [min(samples, SAMPLE_RATE) if name == "_silence_" else samples]  # a random second of it


def _speakers(dataset: Any, index: int) -> list[int]:
    samples = header_samples(dataset.dataset[index])
    return [min(samples, dataset.max_timestep or samples)]  # longer ones are cropped at random


_READERS: list[tuple[Callable[[Any], bool], Callable[[Any, int], list[int]]]] = [
    (lambda dataset: hasattr(dataset, "meta_data") and hasattr(dataset, "data_dir"), _emotion),
    (lambda dataset: hasattr(dataset, "X") and hasattr(dataset, "libri_root"), _sequences),
    (lambda dataset: hasattr(dataset, "df") and hasattr(dataset, "base_path"), _fluent),
    (lambda dataset: hasattr(dataset, "data") and hasattr(dataset, "class2index"), _commands),
    (lambda dataset: hasattr(dataset, "dataset") and hasattr(dataset, "max_timestep"), _speakers),
]
