"""Pictures: a frame for them, and the log of a pre-training run (metrics.jsonl) with its own."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from s3prl_varan.files import atomic_path, write_atomic


@contextmanager
def picture(path: Path, panels: int) -> Iterator[Sequence[Any]]:
    """`panels` axes side by side to draw into; then written as a PNG."""
    figure = Figure(figsize=(0.5 + 4 * panels, 3.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    yield axes
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


class Log:
    """metrics.jsonl, one JSON object a line, and curves.png in a run's folder.

    until: (stage, step) of the checkpoint that a run goes on from; later rows are dropped, so that
    no step is there twice. None: a new log.
    """

    def __init__(self, folder: Path, until: tuple[int, int] | None) -> None:
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        if until is not None and self.path.is_file():
            rows = map(json.loads, self.path.read_text().splitlines())
            self.rows = [row for row in rows if (row["stage"], row["step"]) <= until]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
        write_atomic(self.path, "".join(json.dumps(each) + "\n" for each in self.rows))

    def draw(self, names: Sequence[str]) -> None:
        """Loss and accuracy over the steps of all stages, training and held-out."""
        lines = {"": ("-", "training"), "valid_": ("o--", "held out")}
        with picture(self.folder / "curves.png", 2) as axes:
            for axis, key in zip(axes, ("loss", "accuracy"), strict=True):
                axis.set(xlabel="step of the stage", ylabel=f"{key} on masked frames")
                for (number, name), prefix in product(enumerate(names), lines):
                    stage = [row for row in self.rows if row["stage"] == number]
                    points = [(r["step"], r[prefix + key]) for r in stage if prefix + key in r]
                    style, what = lines[prefix]
                    look = {"label": f"{name}, {what}", "color": f"C{number}"}
                    if points:
                        axis.plot(*zip(*points, strict=True), style, markersize=3, **look)
