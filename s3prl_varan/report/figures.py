"""Figures of a report: scores as bars, q(l|x) as heat maps, dev curves, ablation lines."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from s3prl_varan.files import METRICS, read_jsonl
from s3prl_varan.report.cells import Cell
from s3prl_varan.report.table import Row, grouped, leaderboard, short_names

# Paul Tol's bright scheme
COLORS = "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #bbbbbb #000000".split()
MAX_CLASSES = 20
MAX_LINES = 8
# A prior's own parameters come and go with it, a head's width with the kind of head.
OWN = {
    "prior": ("chi2_df", "chi2_nc", "geometric_p"),
    "kind": ("dim",),
    "head": ("head_dim",),  # of version 0.1
}


@dataclass
class Picture:
    """A figure with the name of its files and a sentence that says what it shows."""

    name: str
    caption: str
    figure: Figure


Draw = Callable[[list[Row]], Iterator[Picture]]


def all_pictures(rows: list[Row]) -> list[Picture]:
    """Every figure the rows have data for."""
    chosen = leaderboard(rows)
    drawn: tuple[tuple[Draw, list[Row], Callable[[Row], Any]], ...] = (
        (_bars, chosen, lambda row: (row.setup, row.split)),
        (_differences, rows, lambda row: (row.setup, row.split)),
        (_dynamics, rows, lambda row: (row.setup, row.split)),
        (_curves, chosen, lambda row: row.setup),
        (_ablations, rows, lambda row: (row.setup, row.split)),
        (_class_map, chosen, lambda row: (row.setup, row.method)),
        (_corpus_map, chosen, lambda row: row.setup.upstream),
    )
    return [
        picture
        for draw, shown, key in drawn
        for group in grouped(shown, key).values()
        for picture in draw(group)
    ]


def _axes(width: float, height: float, title: str, **more: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, **{"fontsize": 10, **more})
    return figure, axes


def file_name(*parts: object) -> str:
    """A file name made of the parts."""
    return re.sub(r"[^\w.-]+", "_", "_".join(str(part) for part in parts)).strip("_")


def _missing(row: Row, separator: str = " ") -> str:
    """What a name says more of an incomplete row."""
    return "" if row.complete else f"{separator}{len(row.values)}/{len(row.expected)}"


def _bars(rows: list[Row]) -> Iterator[Picture]:
    """Scores of each method, its cells as dots."""
    rows = [row for row in rows if row.values]
    if not rows:
        return
    setup, split, metric = str(rows[0].setup), rows[0].split, rows[0].metric
    figure, axes = _axes(max(4.0, 1.1 * len(rows) + 1.5, 0.09 * len(setup)), 3.6, setup)
    for place, row in enumerate(rows):
        values, color = list(row.values.values()), COLORS[place % len(COLORS)]
        style: dict[str, Any] = {} if row.complete else {"hatch": "//", "alpha": 0.5}
        axes.bar(place, row.mean, 0.7, color=color, yerr=row.spread[0], capsize=4, **style)
        dots = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(place + dots, values, ".", color="#333333", markersize=4)
    names = [row.method + _missing(row, "\nincomplete ") for row in rows]
    axes.set_xticks(range(len(rows)), names)
    values = [value for row in rows for value in row.values.values()]
    low, high = min(values), max(values)
    margin = 0.15 * (high - low) or 1.0
    axes.set_ylim(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)
    axes.set_ylabel(f"{split} {metric}")
    caption = (
        f"{setup}: {metric} on {split}; dots are (fold, seed) cells, bars their means. Mind where "
        "the axis starts."
    )
    yield Picture(file_name("bars", setup, split), caption, figure)


def _differences(rows: list[Row]) -> Iterator[Picture]:
    """Every setting's paired difference to the baseline, where a bar chart shows too few."""
    found = [
        (row, row.difference)
        for row in rows
        if row.difference and not math.isnan(row.difference.low)
    ]
    if len(found) < 3:
        return
    setup, split = str(rows[0].setup), rows[0].split
    pairs = sorted(found, key=lambda pair: pair[1].mean)  # the largest on top
    figure, axes = _axes(7.6, 0.32 * len(pairs) + 1.2, setup, loc="right")
    axes.axvline(0.0, color="#555555", linewidth=1)
    for place, (row, delta) in enumerate(pairs):
        better = COLORS[2] if row.goodness(delta.mean) > 0 else COLORS[1]
        axes.errorbar(
            delta.mean,
            place,
            xerr=[[delta.mean - delta.low], [delta.high - delta.mean]],
            fmt="o",
            color=better if delta.significant else COLORS[0],
            capsize=3,
            alpha=1.0 if row.complete else 0.4,
        )
    names = [row.label + _missing(row) for row, _ in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    baselines = "\n".join(dict.fromkeys(delta.baseline for _, delta in pairs))  # one a tuning
    axes.set_xlabel(f"{split} {rows[0].metric}, difference to\n{baselines}")
    axes.grid(axis="x", alpha=0.3)
    caption = (
        f"{setup}: {rows[0].metric} on {split}, paired difference to the baseline of the same "
        "tuning with its 95 % interval (bootstrap over folds and seeds); green: better, red: "
        "worse, blue: the interval holds zero; pale: incomplete."
    )
    notes = dict.fromkeys(row.usual_note for row, _ in pairs if row.usual_note)
    caption += "".join(f" Note: {note}" for note in notes)
    yield Picture(file_name("differences", setup, split), caption, figure)


def _dynamics(rows: list[Row]) -> Iterator[Picture]:
    """What weighing by the input adds, against what the weights know of it; a dot per setting."""
    found = [(row, row.gain) for row in rows if row.gain and not math.isnan(row.information)]
    if not found:
        return
    setup, split = str(rows[0].setup), rows[0].split
    figure, axes = _axes(5.6, 3.8, setup)
    axes.axhline(0.0, color="#555555", linewidth=1)
    for place, (row, gain) in enumerate(found):
        reach = None if math.isnan(gain.low) else [[gain.mean - gain.low], [gain.high - gain.mean]]
        color = COLORS[place % len(COLORS)]
        axes.errorbar(
            row.information, gain.mean, yerr=reach, fmt="o", capsize=3, color=color, label=row.label
        )
    axes.set_xlim(left=0.0)
    axes.set_xlabel("I(L;X), nats")
    axes.set_ylabel(f"{split} {rows[0].metric}, difference\nto the same runs with their mean q")
    axes.legend(fontsize=8)
    caption = (
        f"{setup}: what q(l|x) adds over its own mean, against what it knows of the utterance; 95 "
        "% intervals by bootstrap over (fold, seed) cells."
    )
    yield Picture(file_name("dynamics", setup, split), caption, figure)


def _curves(rows: list[Row]) -> Iterator[Picture]:
    """The metric on dev while training."""
    setup = str(rows[0].setup)
    figure, axes = _axes(5.6, 3.8, setup)
    methods = {row.method: row for row in rows}
    for place, row in enumerate(methods.values()):
        found = [_dev_curve(cell, row.metric) for cell in row.cells.values()]
        curves = pd.DataFrame([curve for curve in found if curve]).sort_index(axis=1)
        color = COLORS[place % len(COLORS)]
        for _, curve in curves.iterrows():
            axes.plot(curve.dropna(), color=color, alpha=0.2, linewidth=0.8)
        if len(curves):
            axes.plot(curves.dropna(axis=1).mean(), color=color, label=row.method)
    if not axes.lines:
        return
    axes.set_xlabel("step")
    axes.set_ylabel(f"dev {rows[0].metric}")
    axes.legend(fontsize=8)
    caption = (
        f"{setup}: the metric on dev while training; thin: cells, thick: means over the steps all "
        "cells have."
    )
    yield Picture(file_name("dev_curves", setup), caption, figure)


def _dev_curve(cell: Cell, metric: str) -> dict[int, float]:
    """Step -> metric on dev; after a resume the later row of a step counts."""
    return {
        row["step"]: row[metric]
        for row in read_jsonl(cell.path / METRICS)
        if str(row.get("split", "")).startswith("dev") and metric in row
    }


# ---- heat maps


def _class_map(rows: list[Row]) -> Iterator[Picture]:
    """Mean q(l|x) per class, for a method whose weights depend on the input; of the last split."""
    row = rows[-1]
    maps = [found for found in map(_class_means, row.finished) if len(found)]
    means = pd.concat(maps).groupby(level=0).mean() if maps else pd.DataFrame()
    layers = row.finished[0].layers if maps else []
    if not 2 <= len(means) <= MAX_CLASSES or means.shape[1] != len(layers):
        return
    if np.ptp(means.to_numpy(), axis=0).max() < 1e-5:
        return
    caption = (
        f"{row.setup}: mean q(l|x) of {row.label} per class, over the test clips of {len(maps)} "
        "cells."
    )
    figure = _heat_map(2.6, f"{row.method}: {row.setup}", means.set_axis(layers, axis=1))
    yield Picture(file_name("layers_per_class", row.setup, row.method), caption, figure)


def _class_means(cell: Cell) -> pd.DataFrame:
    """Mean weights [classes, N] from layer_weights.csv; empty for none or too many labels."""
    path = cell.path / "layer_weights.csv"
    if not path.is_file():
        return pd.DataFrame()
    lines = pd.read_csv(path, dtype={"label": str}, keep_default_na=False)
    means = lines.filter(regex=r"^layer\d+$").groupby(lines["label"]).mean()
    return means[: MAX_CLASSES if len(means) <= MAX_CLASSES else 0]


def _corpus_map(rows: list[Row]) -> Iterator[Picture]:
    """Mean weight per layer of an upstream, a line per corpus and method."""
    upstream = rows[0].setup.upstream
    lines: dict[str, dict[int, float]] = {}
    for row in rows:
        cells = [
            cell
            for cell in row.cells.values()
            if len(cell.layers) > 1 and row.split in cell.layer_weights
        ]
        if cells:
            layers, setup = cells[0].layers, row.setup
            alike = [cell.layer_weights[row.split] for cell in cells if cell.layers == layers]
            means = dict(zip(layers, np.mean(alike, axis=0), strict=True))
            lines[f"{setup.downstream} / {setup.corpus} / {row.split}: {row.method}"] = means
    if not lines:
        return
    caption = (
        f"{upstream}: mean weight of each hidden state per corpus; blank where a method does not "
        "read it."
    )
    figure = _heat_map(4.6, upstream, pd.DataFrame(lines).sort_index().T)
    yield Picture(file_name("layers_per_corpus", upstream), caption, figure)


def _heat_map(margin: float, title: str, grid: pd.DataFrame) -> Figure:
    """grid: a line for each name, a column for each layer; margin: inches beside it."""
    size = 0.55 * grid.shape[1] + margin, 0.36 * len(grid) + 1.4
    figure, axes = _axes(*size, title, fontsize=9)
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(grid)), grid.index, fontsize=8)
    axes.set_xticks(range(grid.shape[1]), grid.columns)
    axes.set_xlabel("hidden state (0 = encoder input)")
    figure.colorbar(image, ax=axes, label="mean weight")
    return figure


# ---- ablations


def _ablations(rows: list[Row]) -> Iterator[Picture]:
    """One picture per setting that takes several values: a line for each way the rest was set."""
    names = short_names(sorted({key for row in rows for key in row.varied}))
    for key in names:
        lines = _lines(key, rows)
        if lines:
            yield _draw_ablation(key, names, lines, rows)


def _lines(key: str, rows: list[Row]) -> list[list[Row]]:
    """Rows that differ in `key` alone, in the order of its values; the longest lines first."""
    held = [row for row in rows if row.values and key in row.settings]
    ways = grouped(held, lambda row: (row.method, _rest(row, key))).values()
    lines = [sorted(way, key=lambda row: _order(row.settings[key])) for way in ways if len(way) > 1]
    return sorted(lines, key=len, reverse=True)


def _rest(row: Row, key: str) -> str:
    """All settings but `key` and those that come and go with it."""
    own = (key, *(f"{key.rpartition('.')[0]}.{name}" for name in OWN.get(key.split(".")[-1], ())))
    return str(
        sorted(f"{other}={one!r}" for other, one in row.settings.items() if other not in own)
    )


def _order(value: Any) -> tuple[bool, Any]:
    """Sort key: numbers first."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return (False, value) if numeric else (True, str(value))


def _draw_ablation(
    key: str, names: dict[str, str], lines: list[list[Row]], rows: list[Row]
) -> Picture:
    """names: short name of every varied setting. lines: as of _lines. rows: all of the setup."""
    setup, split, metric = rows[0].setup, rows[0].split, rows[0].metric
    values = {repr(row.settings[key]): row.settings[key] for line in lines for row in line}
    ticks = sorted(values, key=lambda text: _order(values[text]))
    pairs = set.intersection(*(set(row.values) for line in lines for row in line))
    figure, axes = _axes(max(4.6, 0.9 * len(ticks) + 2.4), 3.6, str(setup))
    for number, line in enumerate(lines):
        points = [[row.values[pair] for pair in sorted(pairs or row.values)] for row in line]
        errors = [
            np.std(one, ddof=1) / math.sqrt(len(one)) if len(one) > 1 else 0 for one in points
        ]
        others = [other for other in names if other != key and other in line[0].settings]
        rest = ", ".join(f"{names[other]}={line[0].settings[other]}" for other in others)
        label = f"{line[0].method} ({rest})" if rest else line[0].method
        shown = number < MAX_LINES
        aside = min(number, MAX_LINES) - min(len(lines) - 1, MAX_LINES) / 2  # not one on another
        where = np.array([ticks.index(repr(row.settings[key])) for row in line])
        named = any(_order(row.settings[key])[0] for row in line)  # no way between names
        axes.errorbar(
            where + 0.06 * aside,
            [np.mean(point) for point in points],
            errors,
            marker="o",
            linestyle="none" if named else "-",
            capsize=3,
            color=COLORS[number] if shown else "#dddddd",
            label=label if shown else None,
        )
    _draw_baselines(axes, rows, lines, pairs)
    axes.set_xticks(range(len(ticks)), [str(values[text]) for text in ticks])
    axes.set_xlabel(names[key])
    axes.set_ylabel(f"{split} {metric}")
    axes.legend(fontsize=7)
    over = f"the {len(pairs)} (fold, seed) cells all points share"
    caption = (
        f"{setup}: {metric} on {split} against {names[key]}; mean and standard error over "
        f"{over if pairs else 'cells that differ between points'}."
    )
    return Picture(file_name("ablation", names[key], setup, split), caption, figure)


def _draw_baselines(axes: Any, rows: list[Row], lines: list[list[Row]], pairs: set) -> None:
    """A dashed level for each method that is not itself varied here, over the same cells."""
    varied = {row.method for line in lines for row in line}
    for row in leaderboard(rows):
        values = [row.values[pair] for pair in pairs if pair in row.values]
        if values and row.method not in varied and len(values) == len(pairs):
            level = float(np.mean(values))
            axes.axhline(level, linestyle="--", linewidth=1, color="#555555")
            place = {"xycoords": ("axes fraction", "data"), "fontsize": 7, "va": "bottom"}
            axes.annotate(row.method, (0.01, level), **place)
