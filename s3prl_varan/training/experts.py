"""Runs an expert of s3prl in the train loop: its own batches, repeatable, and its own figures."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from s3prl_varan.tasks.shapes.base import Item
from s3prl_varan.tasks.shapes.expert import ExpertCall, ExpertTask
from s3prl_varan.training.checkpoint import random_kept, seed_everything
from s3prl_varan.training.data import Batch, Clips, Loaders
from s3prl_varan.training.evaluation import Evaluation
from s3prl_varan.training.loop import Trainer


class ExpertLoaders(Loaders):
    """The batches of an expert's dataloaders.

    What is drawn for a batch (the order, a crop) depends on (seed, epoch, batch) alone and leaves
    training's generators as they are, so that a resumed run gets the same batches. They are read
    again up to the one it stopped at.
    """

    task: ExpertTask

    def clips(self, split: str, training: bool = False) -> Clips:
        """Nothing is known of them, but UserError where the expert has no such split."""
        self.task.dataloader(split)
        return super().clips(split, training)

    def train(self, split: str, start: int) -> Iterator[Batch]:  # type: ignore[override]
        """Endless batches from batch number `start` on."""
        records: defaultdict[str, list] = defaultdict(list)
        for epoch in count():
            loader = self.task.dataloader(split, epoch)
            skipped = min(start, len(loader))
            start -= skipped
            if skipped < len(loader):
                batches = self._batches(loader, split, epoch, records, training=True)
                yield from islice(batches, skipped, None)

    def evaluation(self, split: str) -> Iterator[Batch]:  # type: ignore[override]
        """Each clip once."""
        return self._batches(self.task.dataloader(split), split, 0, defaultdict(list))

    def _batches(
        self,
        loader: Any,
        split: str,
        epoch: int,
        records: defaultdict[str, list],
        *,
        training: bool = False,
    ) -> Iterator[Batch]:
        batches, seen = None, 0
        for place in count():
            with random_kept():
                seed_everything(hash((self.seed, epoch, place)) % 2**32)
                batches = iter(loader) if batches is None else batches
                found = next(batches, None)
            if found is None:
                return
            wavs, *others = found
            call = ExpertCall(split, tuple(others), place, len(loader), records, training)
            indices = list(range(seen, seen + len(wavs)))
            items = [Item(f"{split}-{index}", Path(), call) for index in indices]
            seen += len(wavs)
            yield Batch([torch.as_tensor(wav) for wav in wavs], call, items, indices)


class ExpertTrainer(Trainer):
    """Tells the expert the step, which some of them name folders by."""

    task: ExpertTask

    def evaluate(self, split: str, step: int, **more: Any) -> Evaluation:
        self.task.step = step
        return super().evaluate(split, step, **more)

    def replacements(self) -> None:
        """Only heads of ours can be run again with other weights."""
        return None
