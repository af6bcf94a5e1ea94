"""Evaluate a whole split: records of every clip and figures, gathered over all processes."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.objective import Elbo, layer_log_posterior
from s3prl_varan.model import SpeechModel, Step
from s3prl_varan.tasks.shapes.base import Record, Task
from s3prl_varan.training.data import Batch
from s3prl_varan.training.dynamics import Replacements, measure
from s3prl_varan.training.guards import naming_clips, require_finite

Row = tuple[int, Any]  # a clip's place in its split, and something of it
T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """A whole split, evaluated."""

    split: str
    figures: dict[str, float]  # the task's, then (where it has one) loss, nll and kl in nats
    records: list[Record]  # of every clip, in the split's order; layer_weights among them
    dynamics: dict[str, Any] | None = None  # see training/dynamics.py, where it was asked for

    @property
    def layer_weights(self) -> list[float]:
        """Mean share of each hidden state read."""
        return torch.tensor([row["layer_weights"] for row in self.records]).mean(dim=0).tolist()


def elbo_terms(terms: Elbo) -> dict[str, Tensor]:
    """As a dict, for sums and logs."""
    return {"loss": terms.loss, "nll": terms.nll, "kl": terms.kl}


class Evaluator:
    """Runs a model over a task's splits. accelerator: where it runs and with whom it shares."""

    def __init__(self, model: SpeechModel, task: Task, accelerator: Accelerator):
        self.model, self.task, self.accelerator = model, task, accelerator

    @torch.no_grad()
    def evaluate(
        self, split: str, loader: Iterable[Batch], replacements: Replacements | None = None
    ) -> Evaluation:
        """Figures and records of `split`, whose clips `loader` brings, this process's share.

        replacements: evaluate also with these in the place of q(l | x), for `dynamics`.
        UserError where an output or the figure that chooses is not finite.
        """
        self.model.eval()
        rows: list[Row] = []  # of the model as it is, ...
        replaced: dict[str, list[Row]] = defaultdict(list)  # ... and with other weights
        sums: dict[str, float] = defaultdict(float)
        for batch in self._progress(loader, split):
            with self._guard(batch):
                wavs, targets = to_device(self.model, batch, self.accelerator.device)
                stack = self.model.encode(wavs)
                step = self.model.step(stack, targets)
                assert step.prediction is not None
                require_finite(self.model, step.prediction, batch.names, step.terms.loss)
                for name, term in elbo_terms(step.terms).items():
                    sums[name] += float(term) * len(batch.wavs)
                rows += zip(batch.indices, batch_records(self.task, step, batch), strict=True)
                logits = replacements.logits(batch.indices) if replacements else {}
                for name, weighted in self.model.weighted_otherwise(stack, logits):
                    records = self.task.records(weighted, batch.items)
                    replaced[name] += zip(batch.indices, records, strict=True)
        parts = self._gather((rows, dict(replaced), dict(sums)))
        records = in_order(row for part, _, _ in parts for row in part)
        figures = self.task.score(records)
        for name in sums if self.task.outputs_everywhere else ():
            figures[name] = sum(part.get(name, 0.0) for _, _, part in parts) / len(records)
        if not math.isfinite(figures[self.task.metric]):
            raise UserError(
                f"{split}: {self.task.metric} is {figures[self.task.metric]}, no figure."
            )
        if replacements is None:
            return Evaluation(split, figures, records)
        others = {
            name: in_order(row for _, part, _ in parts for row in part.get(name, []))
            for name in replaced
        }
        own = figures[self.task.metric]
        dynamics = measure(self.task, own, records, others, replacements.num_clips)
        return Evaluation(split, figures, records, dynamics)

    @torch.no_grad()
    def posteriors(self, loader: Iterable[Batch]) -> Tensor:
        """log q(l | x) of all clips, [n, N] on the CPU, of a featurizer that depends on the input.

        loader: this process's share.
        """
        self.model.eval()
        rows: list[Row] = []
        for batch in self._progress(loader, "q(l | x) of training clips"):
            with self._guard(batch):
                wavs, _ = to_device(self.model, batch, self.accelerator.device)
                logits = self.model.featurizer.layer_logits(self.model.encode(wavs))
                rows += zip(batch.indices, layer_log_posterior(logits).tolist(), strict=True)
        return torch.tensor(in_order(row for part in self._gather(rows) for row in part))

    def _progress(self, loader: Iterable[Batch], what: str) -> Iterable[Batch]:
        quiet = not self.accelerator.is_main_process
        return tqdm(loader, desc=what, leave=False, disable=quiet, dynamic_ncols=True)

    @contextmanager
    def _guard(self, batch: Batch) -> Iterator[None]:
        with naming_clips(batch.names, batch.wavs), self.accelerator.autocast():
            yield

    def _gather(self, part: T) -> list[T]:
        """Every process's part."""
        if self.accelerator.num_processes == 1:
            return [part]
        from accelerate.utils import gather_object

        return gather_object([part])


def in_order(rows: Iterable[Row]) -> list[Any]:
    """What belongs to the clips of a split, in its order."""
    return [value for _, value in sorted(rows, key=lambda row: row[0])]


def batch_records(task: Task, step: Step, batch: Batch) -> list[Record]:
    """The task's records of a batch, each with what is known of every clip."""
    assert step.prediction is not None
    weights = step.layer_weights.float().cpu().tolist()
    records = task.records(step.prediction, batch.items)
    assert len(records) == len(batch.items), "one record per clip"
    return [
        {**record, "speaker": item.speaker, "layer_weights": shares}
        for record, item, shares in zip(records, batch.items, weights, strict=True)
    ]


def to_device(model: SpeechModel, batch: Batch, device: torch.device) -> tuple[list[Tensor], Any]:
    """Waveforms and targets where the model wants them."""
    # A cache looks at the samples first, so with one they stay on the CPU.
    place = torch.device("cpu") if model.cached_encoder is not None else device
    wavs = [wav.to(place, torch.float32, non_blocking=True) for wav in batch.wavs]
    return wavs, batch.targets.to(device)
