"""See what a featurizer chose: layer_weights.csv (a row a clip) and layer_weights.png."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s3prl_varan.files import write_atomic
from s3prl_varan.tasks.shapes.base import Record

MAX_CLASSES = 20  # more rows than this say nothing in a picture


def write_layer_weights(
    folder: Path, layers: Sequence[int], split: str, records: Sequence[Record], *, picture: bool
) -> None:
    """Write the files for the split evaluated last; records with name, truth, predict, weights."""
    rows = [
        [split, record["name"], _text(record["truth"]), _text(record["predict"])]
        + [f"{weight:.6f}" for weight in record["layer_weights"]]
        for record in records
    ]
    header = ["split", "utterance", "label", "prediction", *(f"layer{layer}" for layer in layers)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    write_atomic(folder / "layer_weights.csv", table.getvalue())
    if picture:
        weights = np.asarray([record["layer_weights"] for record in records])
        labels = [_text(record["truth"]) for record in records]
        drawn = draw_layer_weights(weights, labels, layers, split)
        write_atomic(folder / "layer_weights.png", drawn)


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def draw_layer_weights(
    weights: np.ndarray, labels: Sequence[str], layers: Sequence[int], title: str
) -> bytes:
    """PNG: the mean weight per layer with its spread over utterances, and a row of means per class.

    weights: [utterances, N].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = sorted(set(labels))
    # As many classes as clips are no classes: transcripts, say, which are all different.
    with_classes = 1 < len(classes) <= MAX_CLASSES and len(classes) < len(labels)
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
