"""Evaluate a whole split: records of every clip and figures, gathered over all processes."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.objective import Elbo
from s3prl_varan.model import SpeechModel, Step
from s3prl_varan.tasks.shapes.base import Record, Task
from s3prl_varan.training.data import Batch
from s3prl_varan.training.guards import naming_clips, require_finite


@dataclass(frozen=True)
class Evaluation:
    """A whole split, evaluated."""

    split: str
    figures: dict[str, float]  # the task's, then loss, nll and kl in nats
    records: list[Record]  # of every clip, in the split's order; layer_weights among them

    @property
    def layer_weights(self) -> list[float]:
        """Mean share of each hidden state read."""
        return torch.tensor([row["layer_weights"] for row in self.records]).mean(dim=0).tolist()


def terms_of(step: Step) -> dict[str, Tensor]:
    """Scalars of a step: loss, nll, kl."""
    return elbo_terms(step.terms)


def elbo_terms(terms: Elbo) -> dict[str, Tensor]:
    """As a dict, for sums and logs."""
    return {"loss": terms.loss, "nll": terms.nll, "kl": terms.kl}


class Evaluator:
    """Runs a model over a task's splits. accelerator: where it runs and with whom it shares."""

    def __init__(self, model: SpeechModel, task: Task, accelerator: Accelerator):
        self.model, self.task, self.accelerator = model, task, accelerator

    @torch.no_grad()
    def evaluate(self, split: str, loader: Iterable[Batch]) -> Evaluation:
        """Figures and records of `split`, whose clips `loader` brings, this process's share.

        UserError where an output or the figure that chooses is not finite.
        """
        self.model.eval()
        rows: list[tuple[int, Record]] = []
        sums: dict[str, float] = defaultdict(float)
        quiet = not self.accelerator.is_main_process
        for batch in tqdm(loader, desc=split, leave=False, disable=quiet, dynamic_ncols=True):
            step = self.run(batch)
            assert step.prediction is not None
            require_finite(self.model, step.prediction, batch.names, step.terms.loss)
            for name, term in terms_of(step).items():
                sums[name] += float(term) * len(batch.wavs)
            rows += zip(batch.indices, batch_records(self.task, step, batch), strict=True)
        rows, sums = self._gather(rows, dict(sums))
        records = [record for _, record in sorted(rows, key=lambda row: row[0])]
        figures = self.task.score(records)
        figures |= {name: total / len(records) for name, total in sums.items()}
        if not math.isfinite(figures[self.task.metric]):
            raise UserError(
                f"{split}: {self.task.metric} is {figures[self.task.metric]}, no figure."
            )
        return Evaluation(split, figures, records)

    def run(self, batch: Batch) -> Step:
        """The model on a batch, as in training but for gradients."""
        with naming_clips(batch.names, batch.wavs), self.accelerator.autocast():
            return self.model(*to_device(self.model, batch, self.accelerator.device))

    def _gather(self, rows: list, sums: dict[str, float]) -> tuple[list, dict[str, float]]:
        if self.accelerator.num_processes == 1:
            return rows, sums
        from accelerate.utils import gather_object

        parts = gather_object([(rows, sums)])
        names = {name for _, part in parts for name in part}
        totals = {name: sum(part.get(name, 0.0) for _, part in parts) for name in names}
        return [row for part, _ in parts for row in part], totals


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
