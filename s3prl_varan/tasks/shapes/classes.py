"""Figures and answers of tasks with many classes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

SHOWN = 5  # classes of an answer


def accuracy(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """acc, in percent: the clips whose `predict` is all that `truth` is."""
    right = sum(record["truth"] == record["predict"] for record in records)
    return {"acc": 100.0 * right / len(records)}


def most_probable(names: Sequence[str], log_probs: Tensor) -> dict[str, float]:
    """The likeliest classes and their probabilities, best first, of log_probs [C] + a constant."""
    best = log_probs.float().softmax(dim=-1).topk(min(SHOWN, len(names)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return {names[index]: prob for index, prob in pairs}
