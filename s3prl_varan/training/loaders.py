"""Batches from an expert's datasets: seeded, resumable at any step, shared out over processes, nothing dropped."""

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from s3prl_varan.errors import UserError
from s3prl_varan.training.lengths import item_samples

POOL_BATCHES = 50  # batches' worth of clips that are sorted by length together


class EpochBatches:
    """An endless batch sampler: epoch after epoch, each shuffled by (seed, epoch) and cut into batches.

    Every process draws the same plan and takes its share: batch number `rank`, `rank + world`, ... (the last round wraps
    around so that all have equally many). `start` skips that many batches of this process, which is how a run resumes.
    With `lengths` (samples of every item) the clips of a batch are of similar length; then `max_samples`, if given, sets
    the batch size in place of the loader's: as many clips as stay within it once padded to the longest, at least one.
    """

    def __init__(
        self,
        loader: DataLoader,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        lengths: Sequence[int] | None = None,
        max_samples: float | None = None,
    ):
        self.size, self.batch_size = _sizes(loader)
        self.seed, self.rank, self.world, self.start = seed, rank, world, start
        sampler: Any = loader.sampler
        plain = isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler))
        self.own_sampler = (
            None if plain else sampler
        )  # a weighted one, say: the expert's choice stands
        self.lengths, self.max_samples = lengths, max_samples

    def order(self, epoch: int) -> list[int]:
        """Indices of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.own_sampler is None:
            return torch.randperm(self.size, generator=generator).tolist()
        self.own_sampler.generator = generator
        return list(self.own_sampler)

    def epoch(self, epoch: int) -> list[list[int]]:
        """This process's batches of an epoch."""
        order = self.order(epoch)
        if self.lengths is None:
            batches = cut(order, self.batch_size)
        else:  # sorted within pools of an epoch in random order, so that batches differ from epoch to epoch
            pools = cut(order, POOL_BATCHES * self.batch_size)
            batches = [
                batch
                for pool in pools
                for batch in cut_by_length(pool, self.lengths, self.batch_size, self.max_samples)
            ]
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch + 1)
            batches = [
                batches[index]
                for index in torch.randperm(len(batches), generator=generator).tolist()
            ]
        rounds = -(-len(batches) // self.world)
        return [batches[(step * self.world + self.rank) % len(batches)] for step in range(rounds)]

    def __len__(self) -> int:
        """Batches of one epoch for this process."""
        return len(self.epoch(0))

    def __iter__(self) -> Iterator[list[int]]:
        endless = (batch for epoch in count() for batch in self.epoch(epoch))
        return islice(endless, self.start, None)


def cut(indices: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive pieces of `size`, the last one perhaps smaller."""
    return [list(indices[at : at + size]) for at in range(0, len(indices), size)]


def cut_by_length(
    indices: Sequence[int], lengths: Sequence[int], size: int, max_samples: float | None
) -> list[list[int]]:
    """Batches of similar length: of `size` items, or of as many as `max_samples` holds once they are padded to the longest."""
    longest_first = sorted(indices, key=lambda index: -lengths[index])
    if max_samples is None:
        return cut(longest_first, size)
    batches: list[list[int]] = []
    for index in longest_first:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_samples:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def lengths_to_batch(dataset: Any, split: str) -> list[int]:
    """Samples of every item of a dataset, for runner.batch_by_length; UserError where they cannot be known cheaply."""
    items = item_samples(dataset)
    if items is None:
        raise UserError(
            f"runner.batch_by_length: the clip lengths of split '{split}' cannot be read without decoding its audio "
            f"({type(dataset).__name__}). Set runner.batch_by_length=false."
        )
    return [max(item) for item in items]


def train_loader(loader: DataLoader, batches: EpochBatches) -> DataLoader:
    """The expert's training loader with our batches; workers live on across epochs."""
    return _rebuilt(loader, batches, batches.seed)


def eval_loader(
    loader: DataLoader,
    *,
    rank: int = 0,
    world: int = 1,
    lengths: Sequence[int] | None = None,
    max_samples: float | None = None,
) -> DataLoader:
    """The expert's evaluation loader, this process's share of it, each utterance exactly once over all processes.

    lengths, max_samples: as for EpochBatches.
    """
    count, size = _sizes(loader)
    indices = range(count)
    batches = (
        cut(indices, size)
        if lengths is None
        else cut_by_length(indices, lengths, size, max_samples)
    )
    return _rebuilt(loader, batches[rank::world], seed=0)


def _sizes(loader: DataLoader) -> tuple[int, int]:
    """Examples of the loader's dataset, and of a batch."""
    dataset: Any = loader.dataset
    assert loader.batch_size is not None, "s3prl's experts give a batch size"
    return len(dataset), loader.batch_size


def _rebuilt(loader: DataLoader, batches: Any, seed: int) -> DataLoader:
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        generator=torch.Generator().manual_seed(seed),  # leaves the global generator alone
    )
