"""Batches of a task's clips: seeded, resumable, shared out over processes, nothing dropped."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.shapes.base import Item, Task

POOL_BATCHES = 50  # at most so many batches' worth of clips are sorted by length together
Draw = tuple[int, int]  # index of a clip, seed of what is drawn anew for it


@dataclass(frozen=True)
class Batch:
    """Clips of one step."""

    wavs: list[Tensor]  # B x [num_samples]
    targets: Any  # as the task collates them
    items: list[Item]
    indices: list[int]  # in the split's order

    @property
    def names(self) -> list[str]:
        """Of the clips, for messages."""
        return [item.name for item in self.items]


class Clips(Dataset):
    """The clips of a split; an index comes with the seed of its random crop and the like."""

    def __init__(self, task: Task, split: str, *, training: bool):
        self.task, self.training = task, training
        self.items = task.items(split)
        kept = task.data.pre_load and not (training and task.draws_anew)
        self._waves: dict[int, Tensor] | None = {} if kept else None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: Draw) -> tuple[int, Tensor]:
        index, seed = draw
        if self._waves is None:
            return index, self._load(index, seed)
        if index not in self._waves:
            self._waves[index] = self._load(index, seed)
        return index, self._waves[index]

    def _load(self, index: int, seed: int) -> Tensor:
        return self.task.load(self.items[index], random.Random(seed), self.training)

    def num_samples(self) -> list[int]:
        """Length of every clip, from file headers."""
        return [self.task.num_samples(item, self.training) for item in self.items]

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Name and length of every clip."""
        return zip((item.name for item in self.items), self.num_samples(), strict=True)

    def collate(self, clips: Sequence[tuple[int, Tensor]]) -> Batch:
        """Clips -> Batch."""
        indices = [index for index, _ in clips]
        items = [self.items[index] for index in indices]
        targets = self.task.collate([item.target for item in items])
        return Batch([wav for _, wav in clips], targets, items, indices)


class ClipLoader(DataLoader):
    """Says what is wrong with a clip the same way from worker processes as from this one."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except UserError as error:  # a worker's has its traceback before it
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


class EpochBatches:
    """An endless batch sampler: epoch after epoch, each shuffled by (seed, epoch) and cut.

    Every process draws the same plan and takes its share: batch number `rank`, `rank + world`, ...
    (the last round wraps around so that all have equally many). `start` skips that many batches of
    this process, which is how a run resumes. weights: draw clips in proportion, with replacement.
    lengths (samples of every clip): the clips of a batch are of similar length; then max_samples,
    if given, sets the batch size instead: as many clips as stay within it once padded.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        weights: Sequence[float] | None = None,
        lengths: Sequence[int] | None = None,
        max_samples: float | None = None,
    ):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.start = rank, world, start
        self.weights, self.lengths, self.max_samples = weights, lengths, max_samples

    def order(self, epoch: int) -> list[int]:
        """Indices of an epoch."""
        generator = self._generator(epoch)
        if self.weights is None:
            return torch.randperm(self.size, generator=generator).tolist()
        weights = torch.tensor(self.weights, dtype=torch.float64)
        drawn = torch.multinomial(weights, self.size, replacement=True, generator=generator)
        return drawn.tolist()

    def epoch(self, epoch: int) -> list[list[int]]:
        """This process's batches of an epoch."""
        order = self.order(epoch)
        if self.lengths is None:
            batches = cut(order, self.batch_size)
        else:
            pools = cut(order, self._pool_batches() * self.batch_size)
            sizes = self.lengths, self.batch_size, self.max_samples
            batches = [batch for pool in pools for batch in cut_by_length(pool, *sizes)]
            shuffled = torch.randperm(len(batches), generator=self._generator(epoch + 1))
            batches = [batches[index] for index in shuffled.tolist()]
        rounds = -(-len(batches) // self.world)
        return [batches[(step * self.world + self.rank) % len(batches)] for step in range(rounds)]

    def _pool_batches(self) -> int:
        """Batches that are sorted by length together: of a small corpus a part, not all.

        Else they would be the same in every epoch, the shortest clips always alone in the last.
        """
        return min(POOL_BATCHES, max(1, round((self.size / self.batch_size) ** 0.5)))

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

    def __len__(self) -> int:
        """Batches of one epoch for this process."""
        return len(self.epoch(0))

    def __iter__(self) -> Iterator[list[Draw]]:
        endless = ((epoch, batch) for epoch in count() for batch in self.epoch(epoch))
        for epoch, batch in islice(endless, self.start, None):
            # Of (seed, epoch, place): what is drawn for a clip is the same after a resume.
            yield [(at, hash((self.seed, epoch, n, at))) for n, at in enumerate(batch)]


def cut(indices: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive pieces of `size`, the last one perhaps smaller."""
    return [list(indices[at : at + size]) for at in range(0, len(indices), size)]


def cut_by_length(
    indices: Sequence[int], lengths: Sequence[int], size: int, max_samples: float | None
) -> list[list[int]]:
    """Batches of similar length: of `size` clips, or as many as `max_samples` holds when padded."""
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


class Loaders:
    """Makes the batches of a task's splits, this process's share of them.

    by_length: batches of clips of similar length; batch_seconds: their size in padded audio.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        *,
        by_length: bool = False,
        batch_seconds: float | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.task, self.seed, self.by_length = task, seed, by_length
        self.max_samples = batch_seconds and batch_seconds * SAMPLE_RATE
        self.rank, self.world = rank, world
        self._clips: dict[tuple[str, bool], Clips] = {}

    def clips(self, split: str, training: bool = False) -> Clips:
        """The clips of a split, read once."""
        key = split, training
        if key not in self._clips:
            self._clips[key] = Clips(self.task, split, training=training)
        return self._clips[key]

    def train(self, split: str, start: int) -> DataLoader:
        """Endless batches from batch number `start` on; workers live on across epochs."""
        clips = self.clips(split, training=True)
        batches = EpochBatches(
            len(clips),
            self.task.batch_size(training=True),
            self.seed,
            rank=self.rank,
            world=self.world,
            start=start,
            weights=self.task.weights(clips.items),
            lengths=clips.num_samples() if self.by_length else None,
            max_samples=self.max_samples,
        )
        return self._loader(clips, batches)

    def evaluation(self, split: str) -> DataLoader:
        """Each clip exactly once over all processes."""
        clips = self.clips(split)
        return self._each_once(clips, range(len(clips)))

    def sample(self, split: str, count: int) -> DataLoader:
        """Up to `count` training clips, evenly over the split and as training sees them."""
        clips = self.clips(split, training=True)
        count = min(count, len(clips))
        return self._each_once(clips, [place * len(clips) // count for place in range(count)])

    def _each_once(self, clips: Clips, indices: Sequence[int]) -> DataLoader:
        size = self.task.batch_size(training=False)
        if self.by_length:
            batches = cut_by_length(indices, clips.num_samples(), size, self.max_samples)
        else:
            batches = cut(indices, size)
        own = [[(index, index) for index in batch] for batch in batches[self.rank :: self.world]]
        return self._loader(clips, own)

    def _loader(self, clips: Clips, batches: Any) -> DataLoader:
        return ClipLoader(
            clips,
            batch_sampler=batches,
            collate_fn=clips.collate,
            num_workers=self.task.data.num_workers,
            generator=torch.Generator().manual_seed(self.seed),  # leaves the global one alone
        )
