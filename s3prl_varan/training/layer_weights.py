"""See what a featurizer chose: layer_weights.csv (a row a clip) and layer_weights.png."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s3prl_varan.files import csv_text, write_atomic
from s3prl_varan.tasks.shapes.base import Record

MAX_CLASSES = 20  # more rows than this say nothing in a picture
MIN_APART = 0.05  # of a weight


def write_layer_weights(
    folder: Path,
    layers: Sequence[int],
    split: str,
    records: Sequence[Record],
    *,
    prior: Sequence[float] | None,
    picture: bool,
) -> None:
    """Write the files for the split evaluated last.

    records: with name, truth, weights, and predict where there is such a thing. prior: p(l) of the
    layers, where there is one.
    """
    rows = [
        [split, record["name"], _text(record["truth"]), _text(record.get("predict", ""))]
        + [f"{weight:.6f}" for weight in record["layer_weights"]]
        for record in records
    ]
    header = ["split", "utterance", "label", "prediction", *(f"layer{layer}" for layer in layers)]
    write_atomic(folder / "layer_weights.csv", csv_text([header, *rows]))
    if picture:
        weights = np.asarray([record["layer_weights"] for record in records])
        labels = [_text(record["truth"]) for record in records]
        drawn = draw_layer_weights(weights, labels, layers, split, prior)
        write_atomic(folder / "layer_weights.png", drawn)


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def draw_layer_weights(
    weights: np.ndarray,
    labels: Sequence[str],
    layers: Sequence[int],
    title: str,
    prior: Sequence[float] | None = None,
) -> bytes:
    """PNG: mean weight per layer with its spread over utterances, the prior beside it.

    Below, a row a class: how far its mean lies from that of all. weights: [utterances, N].
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
    mean = weights.mean(axis=0)
    spread = weights.std(axis=0)
    axes[0].bar(positions, mean, yerr=spread, color="#4477aa", ecolor="#bbbbbb", capsize=2)
    if prior is not None:
        axes[0].plot(positions, prior, "_", color="#ee6677", markersize=14, label="prior")
        axes[0].legend(frameon=False)
    axes[0].set_ylabel("weight")
    axes[0].set_ylim(bottom=0)
    axes[0].set_title(f"{title}: mean over {len(weights)} utterances")
    if with_classes:
        of_class = [weights[[label == name for label in labels]].mean(axis=0) for name in classes]
        apart = np.stack(of_class) - mean
        # Never less than MIN_APART: what is flat looks flat.
        reach = max(MIN_APART, np.abs(apart).max())
        image = axes[1].imshow(apart, aspect="auto", cmap="RdBu_r", vmin=-reach, vmax=reach)
        axes[1].set_yticks(range(len(classes)), classes)
        figure.colorbar(image, ax=axes[1], label="class - all")
    for axis in axes:
        axis.set_xticks(positions, layers)
    axes[-1].set_xlabel("hidden state (0 = encoder input)")
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
