"""Figures of a whole split, in percent, from the records an expert leaves. Classification figures are scikit-learn's."""

from typing import Any


def classification(records: dict[str, list]) -> dict[str, float]:
    """acc (accuracy), uar (unweighted average recall) and f1 (macro) over the classes that occur, from truth and predict."""
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    truth, predicted = list(map(str, records["truth"])), list(map(str, records["predict"]))
    present = sorted(set(truth))
    return {
        "acc": 100.0 * accuracy_score(truth, predicted),
        "uar": 100.0
        * recall_score(truth, predicted, labels=present, average="macro", zero_division=0),
        "f1": 100.0 * f1_score(truth, predicted, labels=present, average="macro", zero_division=0),
    }


def accuracy(records: dict[str, list]) -> dict[str, float]:
    """acc alone, from the expert's own per-utterance verdicts, for tasks with hundreds of classes."""
    verdicts = records["acc"]
    return {"acc": 100.0 * sum(map(float, verdicts)) / len(verdicts)}


def confusion(truth: list, predicted: list) -> dict[str, Any]:
    """{"labels": names, "matrix": counts[true][predicted]}."""
    from sklearn.metrics import confusion_matrix

    truth, predicted = list(map(str, truth)), list(map(str, predicted))
    labels = sorted({*truth, *predicted})
    return {"labels": labels, "matrix": confusion_matrix(truth, predicted, labels=labels).tolist()}
