"""What the probes found, as a CSV, a Markdown table and a picture of the layer curves."""

import csv
import io
import os
from pathlib import Path

from .audio_cache import write_atomically
from .probe import Score

TITLES = {
    "emotion": "emotion (RAVDESS, 7 classes)",
    "speaker": "speaker (RAVDESS, 24 actors)",
    "phones": "phones (LibriSpeech), by frame",
}


def best(scores: list[Score], probe: str, system: str) -> Score | None:
    """The layer with the highest accuracy, or None."""
    found = [s for s in scores if (s.probe, s.system) == (probe, system)]
    return max(found, key=lambda s: s.accuracy, default=None)


def markdown(scores: list[Score]) -> str:
    """A row per layer, a column per probe and system, in percent, best layer in bold; systems of one layer are in row 0."""
    columns = list(dict.fromkeys((s.probe, s.system) for s in scores))
    tops = {column: best(scores, *column) for column in columns}
    by_cell = {(s.probe, s.system, s.layer): s for s in scores}
    lines = ["| layer | " + " | ".join(f"{probe}: {system}" for probe, system in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for layer in range(1 + max(s.layer for s in scores)):
        cells = []
        for column in columns:
            score = by_cell.get((*column, layer))
            text = "" if score is None else f"{100 * score.accuracy:.1f}"
            cells.append(f"**{text}**" if score is not None and score is tops[column] else text)
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(scores: list[Score], path: Path) -> None:
    """One panel per probe: accuracy over the layers; a system with one layer is a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    probes = list(dict.fromkeys(s.probe for s in scores))
    systems = list(dict.fromkeys(s.system for s in scores))
    figure, axes = pyplot.subplots(
        1, len(probes), figsize=(4 * len(probes), 3.2), constrained_layout=True, squeeze=False
    )
    for axis, probe in zip(axes[0], probes, strict=True):
        for number, system in enumerate(systems):
            rows = [s for s in scores if (s.probe, s.system) == (probe, system)]
            values = [100 * s.accuracy for s in rows]
            if len(rows) == 1:
                axis.axhline(values[0], linestyle="--", color=f"C{number}", label=system)
            elif rows:
                axis.plot(
                    [s.layer for s in rows],
                    values,
                    "o-",
                    markersize=3,
                    color=f"C{number}",
                    label=system,
                )
        axis.set(title=TITLES.get(probe, probe), xlabel="layer", ylabel="accuracy (%)")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    partial = path.with_name(path.name + ".tmp")
    figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
    os.replace(partial, path)


def write_report(scores: list[Score], out: Path) -> None:
    """probes.csv, probes.md and probes.png in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    table.writerow(["probe", "system", "layer", "accuracy", "spread"])
    for s in scores:
        table.writerow([s.probe, s.system, s.layer, f"{s.accuracy:.4f}", f"{s.spread:.4f}"])
    write_atomically(out / "probes.csv", sink.getvalue())
    write_atomically(out / "probes.md", markdown(scores))
    draw(scores, out / "probes.png")
