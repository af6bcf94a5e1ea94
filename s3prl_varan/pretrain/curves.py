"""The log of a pre-training run: metrics.jsonl, one JSON object a line, and its picture."""

import json
import os
from pathlib import Path
from typing import Any

from .audio_cache import write_atomically


def write_metrics(path: Path, row: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as sink:
        sink.write(
            json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
            + "\n"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def keep_until(path: Path, stage: int, step: int) -> None:
    """Drop the rows past the checkpoint that a run resumes from, so that no step is in the log twice."""
    rows = [row for row in read_metrics(path) if (row["stage"], row["step"]) <= (stage, step)]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def draw_curves(metrics: Path, picture: Path, names: list[str]) -> None:
    """Loss and accuracy over the steps of all stages, training and held-out, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(metrics)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    for axis, key in zip(axes, ("loss", "accuracy"), strict=True):
        for number, name in enumerate(names):
            for prefix, style in (("", "-"), ("valid_", "o--")):
                points = [
                    (r["step"], r[prefix + key])
                    for r in rows
                    if r["stage"] == number and prefix + key in r
                ]
                if points:
                    label = f"{name}, {'held out' if prefix else 'training'}"
                    axis.plot(
                        *zip(*points, strict=True),
                        style,
                        label=label,
                        markersize=3,
                        color=f"C{number}",
                    )
        axis.set(xlabel="step of the stage", ylabel=f"{key} on masked frames")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    partial = picture.with_name(picture.name + ".tmp")
    figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
    os.replace(partial, picture)
