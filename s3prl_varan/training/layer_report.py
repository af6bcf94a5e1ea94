"""See what a featurizer chose: layer_weights.csv (a row per utterance) and layer_weights.png (mean, and per class)."""

import csv
import io
from pathlib import Path

import numpy as np

from s3prl_varan.tasks.registry import Task
from s3prl_varan.training.checkpoint import write_atomic

MAX_CLASSES = 20  # more rows than this say nothing in a picture


def write_layer_weights(
    expdir: Path,
    task: Task,
    layers: list[int],
    split: str,
    records: dict[str, list],
    *,
    picture: bool = True,
) -> None:
    """Write the files for the split evaluated last. records: filename, truth, predict and layer_weights, a row each."""
    weights = np.asarray(records["layer_weights"])  # [utterances, N]
    names = list(map(str, records.get(task.filename, range(len(weights)))))
    truth = [_text(value) for value in records.get(task.truth, [""] * len(weights))]
    predicted = [_text(value) for value in records.get(task.predict, [""] * len(weights))]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["split", "utterance", "label", "prediction", *(f"layer{layer}" for layer in layers)]
    )
    for name, label, guess, row in zip(names, truth, predicted, weights, strict=True):
        writer.writerow([split, name, label, guess, *(f"{weight:.6f}" for weight in row)])
    write_atomic(expdir / "layer_weights.csv", table.getvalue())
    if picture:
        write_atomic(
            expdir / "layer_weights.png", draw_layer_weights(weights, truth, layers, split)
        )


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def draw_layer_weights(
    weights: np.ndarray, labels: list[str], layers: list[int], title: str
) -> bytes:
    """PNG: bars of the mean weight per layer with the spread over utterances, and a row of means per class below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = sorted(set(labels))
    with_classes = 1 < len(classes) <= MAX_CLASSES and len(classes) < len(
        labels
    )  # transcripts are all different
    heights = [2.0, 0.35 * len(classes) + 0.4] if with_classes else [2.0]
    figure = Figure(
        figsize=(max(4.5, 0.5 * len(layers) + 2), sum(heights) + 1.2), layout="constrained"
    )
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    positions = np.arange(len(layers))
    axes[0].bar(
        positions,
        weights.mean(axis=0),
        yerr=weights.std(axis=0),
        color="#4477aa",
        ecolor="#bbbbbb",
        capsize=2,
    )
    axes[0].set_ylabel("weight")
    axes[0].set_ylim(bottom=0)
    axes[0].set_title(f"{title}: mean over {len(weights)} utterances")
    if with_classes:
        means = np.stack(
            [weights[[label == name for label in labels]].mean(axis=0) for name in classes]
        )
        image = axes[1].imshow(means, aspect="auto", cmap="viridis", vmin=0)
        axes[1].set_yticks(range(len(classes)), classes)
        figure.colorbar(image, ax=axes[1], label="mean weight")
    for axis in axes:
        axis.set_xticks(positions, layers)
    axes[-1].set_xlabel("hidden state (0 = encoder input)")
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
