"""Is it dynamic? What an input-dependent q(l | x) knows of its input, and what that is worth.

information_nats   I(L; X) = H(mean q) - mean H(q); information_share of H(mean q)
static_twin        the figures with q replaced by its mean over training clips, nothing trained
shuffled           by the q of another clip, drawn from the training set
prior              by p(l)
difference         of the task's metric: with q itself minus with the static twin, the same
                   clips; interval: 95 %, by bootstrap over speakers (else over clips)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_varan.intervals import clip_interval
from s3prl_varan.tasks.shapes.base import Record, Task

TWIN = "static_twin"


class Replacements:
    """What takes the place of q.

    prior: p(l), [N]. posteriors: log q(l | x) of training clips, [n, N]; None where there are none.
    """

    def __init__(self, prior: Tensor, posteriors: Tensor | None, seed: int = 0):
        tiny = torch.finfo(torch.float32).tiny
        self.fixed = {"prior": prior.float().cpu().clamp_min(tiny).log()}
        self.posteriors, self.seed = posteriors, seed
        if posteriors is not None:
            count = torch.tensor(len(posteriors)).log()
            self.fixed[TWIN] = posteriors.double().logsumexp(dim=0).float() - count

    @property
    def num_clips(self) -> int:
        """Training clips that the static twin is the mean of."""
        return 0 if self.posteriors is None else len(self.posteriors)

    def logits(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Log q [B, N] by name for the clips at `indices` of a split, however they are batched."""
        found = {name: row.expand(len(indices), -1) for name, row in self.fixed.items()}
        if self.posteriors is not None:
            rows = [hash((self.seed, index)) % len(self.posteriors) for index in indices]
            found["shuffled"] = self.posteriors[rows]
        return found


def information(records: Sequence[Record]) -> tuple[float, float]:
    """I(L; X) in nats of a split's q(l | x), and its share of H(mean q), 0..1."""
    posteriors = np.asarray([record["layer_weights"] for record in records])

    def entropy(q: np.ndarray) -> np.ndarray:
        return -(q * np.log(np.maximum(q, 1e-30))).sum(axis=-1)

    whole = float(entropy(posteriors.mean(axis=0)))
    nats = max(0.0, whole - float(entropy(posteriors).mean()))
    return nats, nats / whole if whole > 0 else 0.0


def measure(
    task: Task,
    figure: float,
    records: Sequence[Record],
    replaced: Mapping[str, Sequence[Record]],
    clips: int,
) -> dict[str, Any]:
    """What result.json says of a split: its records, and those with q replaced, by name.

    figure: the task's metric of `records`. clips: of the training set, that the static twin is the
    mean of.
    """
    nats, share = information(records)
    found: dict[str, Any] = {"information_nats": nats, "information_share": share}
    found |= {name: task.score(rows) for name, rows in replaced.items()}
    if TWIN in replaced:
        found |= {"difference": figure - found[TWIN][task.metric], "training_clips": clips}
        ours, theirs = (
            [part for row in rows if (part := task.parts(row)) is not None]
            for rows in (records, replaced[TWIN])
        )
        if len(ours) == len(records):
            speakers = [record["speaker"] for record in records]
            _, *found["interval"] = clip_interval(ours, theirs, speakers)
    return found


def dynamics_table(metric: str, splits: Mapping[str, tuple[float, Any]]) -> str:
    """For people: split -> (`metric` with q itself, what `measure` found)."""
    names = {"mean q": TWIN, "another's q": "shuffled", "prior": "prior"}
    head = ["split", "I(L;X) nats", "of H", metric, *names, f"{metric} - with mean q"]
    lines = [head]
    for split, (own, found) in splits.items():
        figures = [own, *(found.get(key, {}).get(metric) for key in names.values())]
        row = [split, f"{found['information_nats']:.4f}", f"{found['information_share']:.1%}"]
        row += ["-" if figure is None else f"{figure:.2f}" for figure in figures]
        lines.append([*row, difference_text(found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def difference_text(found: Mapping[str, Any]) -> str:
    """`+0.25 [+0.02, +0.51]`"""
    if "difference" not in found:
        return "-"
    shown = f"{found['difference']:+.2f}"
    low, high = found.get("interval", (np.nan, np.nan))
    return shown if np.isnan(low) else f"{shown} [{low:+.2f}, {high:+.2f}]"
