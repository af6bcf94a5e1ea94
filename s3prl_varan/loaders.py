"""Batches from an expert's datasets: seeded, resumable at any step, shared out over processes, nothing dropped."""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler


class EpochBatches:
    """An endless batch sampler: epoch after epoch, each shuffled by (seed, epoch) and cut into batches.

    Every process draws the same plan and takes its share: batch number `rank`, `rank + world`, ... (the last round wraps
    around so that all have equally many). `start` skips that many batches of this process, which is how a run resumes.
    """

    def __init__(self, loader: DataLoader, seed: int, *, rank: int = 0, world: int = 1, start: int = 0):
        self.size, self.batch_size = len(loader.dataset), loader.batch_size
        self.seed, self.rank, self.world, self.start = seed, rank, world, start
        sampler = loader.sampler
        plain = isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler))
        self.own_sampler = None if plain else sampler  # a weighted one, say: the expert's choice stands

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
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        rounds = -(-len(batches) // self.world)
        return [batches[(step * self.world + self.rank) % len(batches)] for step in range(rounds)]

    def __len__(self) -> int:
        """Batches of one epoch for this process."""
        return len(self.epoch(0))

    def __iter__(self) -> Iterator[list[int]]:
        endless = (batch for epoch in count() for batch in self.epoch(epoch))
        return islice(endless, self.start, None)


def train_loader(loader: DataLoader, batches: EpochBatches) -> DataLoader:
    """The expert's training loader with our batches; workers live on across epochs."""
    return _rebuilt(loader, batches, batches.seed)


def eval_loader(loader: DataLoader, *, rank: int = 0, world: int = 1) -> DataLoader:
    """The expert's evaluation loader, this process's share of it, each utterance exactly once over all processes."""
    indices = list(range(len(loader.dataset)))
    batches = [indices[at : at + loader.batch_size] for at in range(0, len(indices), loader.batch_size)]
    return _rebuilt(loader, batches[rank::world], seed=0)


def _rebuilt(loader: DataLoader, batches: Any, seed: int) -> DataLoader:
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        generator=torch.Generator().manual_seed(seed),  # leaves the global generator alone
    )
