"""Figures of a whole split, in percent, from the records of its clips."""

from collections.abc import Sequence
from typing import Any

from s3prl_varan.edit_distance import edit_distance


def classification(truth: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """acc (accuracy), uar (unweighted average recall) and f1 (macro), over the classes that occur.

    scikit-learn's.
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    truth, predicted = list(map(str, truth)), list(map(str, predicted))
    over: dict[str, Any] = {"labels": sorted(set(truth)), "average": "macro", "zero_division": 0}
    return {
        "acc": 100.0 * accuracy_score(truth, predicted),
        "uar": 100.0 * recall_score(truth, predicted, **over),
        "f1": 100.0 * f1_score(truth, predicted, **over),
    }


def accuracy(truth: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """acc alone: the share of clips that are right, for tasks with hundreds of classes."""
    right = sum(one == other for one, other in zip(truth, predicted, strict=True))
    return {"acc": 100.0 * right / len(truth)}


def error_rate(truth: Sequence[Sequence[Any]], predicted: Sequence[Sequence[Any]]) -> float:
    """Edit distance over all pairs of sequences, in percent of the units of the truth."""
    pairs = list(zip(truth, predicted, strict=True))
    errors = sum(edit_distance(target, guess) for target, guess in pairs)
    return 100.0 * errors / max(1, sum(len(target) for target, _ in pairs))


def confusion(truth: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Any]:
    """{"labels": names, "matrix": counts[true][predicted]}."""
    from sklearn.metrics import confusion_matrix

    truth, predicted = list(map(str, truth)), list(map(str, predicted))
    labels = sorted({*truth, *predicted})
    return {"labels": labels, "matrix": confusion_matrix(truth, predicted, labels=labels).tolist()}
