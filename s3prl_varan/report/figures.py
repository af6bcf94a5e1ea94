"""Figures of a report: scores as bars, q(l|x) as heat maps, dev curves, ablation lines. Each is (name, caption, Figure)."""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from s3prl_varan.report.cells import Cell, read_metrics
from s3prl_varan.report.table import Row, by_column, leaderboard, short_names

COLORS = [
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bbbbbb",
    "#000000",
]  # Paul Tol's bright scheme
MAX_CLASSES = 20
MAX_LINES = 8


@dataclass
class Picture:
    """A figure with the name of its files and a sentence that says what it shows."""

    name: str
    caption: str
    figure: Figure


def all_pictures(rows: list[Row]) -> list[Picture]:
    """Every figure the rows have data for."""
    chosen = leaderboard(rows)
    makers = [
        _bars(chosen),
        _differences(rows),
        _curves(chosen),
        _ablations(rows),
        _class_maps(chosen),
        _corpus_maps(chosen),
    ]
    return [picture for maker in makers for picture in maker]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def file_name(*parts: object) -> str:
    """A file name made of the parts."""
    return re.sub(r"[^\w.-]+", "_", "_".join(str(part) for part in parts)).strip("_")


def _bars(rows: list[Row]) -> Iterator[Picture]:
    for (setup, split), held in by_column(rows).items():
        held = [row for row in held if row.values]
        if not held:
            continue
        figure, axes = _figure(max(4.0, 1.1 * len(held) + 1.5, 0.09 * len(str(setup))), 3.6)
        for place, row in enumerate(held):
            spread, _ = row.spread
            color = COLORS[place % len(COLORS)]
            style = {} if row.complete else {"hatch": "//", "alpha": 0.5}
            axes.bar(
                place,
                row.mean,
                0.7,
                color=color,
                yerr=None if math.isnan(spread) else spread,
                capsize=4,
                **style,
            )
            dots = np.linspace(-0.2, 0.2, len(row.values)) if len(row.values) > 1 else [0.0]
            axes.plot(
                place + np.array(dots),
                list(row.values.values()),
                ".",
                color="#333333",
                markersize=4,
            )
        names = [
            row.method
            + ("" if row.complete else f"\nincomplete {len(row.values)}/{len(row.expected)}")
            for row in held
        ]
        axes.set_xticks(range(len(held)), names)
        values = [value for row in held for value in row.values.values()]
        margin = 0.15 * (max(values) - min(values)) or 1.0
        axes.set_ylim(
            max(0.0, min(values) - margin) if min(values) >= 0 else min(values) - margin,
            max(values) + margin,
        )
        axes.set_ylabel(f"{split} {held[0].metric}")
        axes.set_title(str(setup), fontsize=10)
        caption = f"{setup}: {held[0].metric} on {split}; dots are (fold, seed) cells, bars their means. Mind where the axis starts."
        yield Picture(file_name("bars", setup, split), caption, figure)


def _differences(rows: list[Row]) -> Iterator[Picture]:
    """Every setting's paired difference to the baseline, the largest on top, where there are more than a bar chart shows."""
    for (setup, split), held in by_column(rows).items():
        pairs = [
            (row, row.difference)
            for row in held
            if row.difference and not math.isnan(row.difference.low)
        ]
        if len(pairs) < 3:
            continue
        pairs.sort(key=lambda pair: pair[1].mean)
        figure, axes = _figure(7.6, 0.32 * len(pairs) + 1.2)
        axes.axvline(0.0, color="#555555", linewidth=1)
        for place, (row, found) in enumerate(pairs):
            color = (
                COLORS[0]
                if not found.significant
                else COLORS[2]
                if row.sign() * found.mean > 0
                else COLORS[1]
            )
            reach = [[found.mean - found.low], [found.high - found.mean]]
            axes.errorbar(
                found.mean,
                place,
                xerr=reach,
                fmt="o",
                color=color,
                capsize=3,
                alpha=1.0 if row.complete else 0.4,
            )
        names = [
            row.label + ("" if row.complete else f" {len(row.values)}/{len(row.expected)}")
            for row, _ in pairs
        ]
        axes.set_yticks(range(len(pairs)), names, fontsize=8)
        baselines = "\n".join(
            dict.fromkeys(found.baseline for _, found in pairs)
        )  # one for each tuning
        axes.set_xlabel(f"{split} {held[0].metric}, difference to\n{baselines}")
        axes.set_title(str(setup), fontsize=10, loc="right")
        axes.grid(axis="x", alpha=0.3)
        caption = (
            f"{setup}: {held[0].metric} on {split}, paired difference to the baseline of the same tuning with its 95 % interval "
            "(bootstrap over folds and seeds); green: better, red: worse, blue: the interval holds zero; pale: incomplete."
        )
        caption += "".join(
            f" Note: {note}"
            for note in dict.fromkeys(row.usual_note for row, _ in pairs if row.usual)
        )
        yield Picture(file_name("differences", setup, split), caption, figure)


def _curves(rows: list[Row]) -> Iterator[Picture]:
    for setup in dict.fromkeys(row.setup for row in rows):
        held = {(row.featurizer, row.tuning): row for row in rows if row.setup == setup}
        figure, axes = _figure(5.6, 3.8)
        drawn = False
        for place, row in enumerate(held.values()):
            curves = [
                curve
                for curve in (_dev_curve(cell, row.metric) for cell in row.cells.values())
                if curve
            ]
            if not curves:
                continue
            drawn, color = True, COLORS[place % len(COLORS)]
            for curve in curves:
                axes.plot(list(curve), list(curve.values()), color=color, alpha=0.2, linewidth=0.8)
            common = sorted(set.intersection(*(set(curve) for curve in curves)))
            axes.plot(
                common,
                [np.mean([curve[step] for curve in curves]) for step in common],
                color=color,
                label=row.method,
            )
        if not drawn:
            continue
        axes.set_xlabel("step")
        axes.set_ylabel(f"dev {next(iter(held.values())).metric}")
        axes.set_title(str(setup), fontsize=10)
        axes.legend(fontsize=8)
        caption = f"{setup}: the metric on dev while training; thin: cells, thick: means over the steps all cells have."
        yield Picture(file_name("dev_curves", setup), caption, figure)


def _dev_curve(cell: Cell, metric: str) -> dict[int, float]:
    """Step -> metric on dev, in the order of steps; after a resume the later row of a step counts."""
    points = {
        row["step"]: row[metric]
        for row in read_metrics(cell.path)
        if str(row.get("split", "")).startswith("dev") and metric in row
    }
    return dict(sorted(points.items()))


def _class_maps(rows: list[Row]) -> Iterator[Picture]:
    """Mean q(l|x) per class, for methods whose weights depend on the input."""
    for row in {(row.setup, row.featurizer, row.tuning): row for row in rows}.values():
        maps = [
            found
            for found in (_class_means(cell) for cell in row.cells.values() if cell.done)
            if found
        ]
        if not maps:
            continue
        classes, layers = sorted({name for found in maps for name in found}), _first_layers(row)
        means = np.array(
            [np.mean([found[name] for found in maps if name in found], axis=0) for name in classes]
        )
        if (
            len(classes) < 2
            or len(classes) > MAX_CLASSES
            or means.shape[1] != len(layers)
            or np.ptp(means, axis=0).max() < 1e-5
        ):
            continue
        figure, axes = _figure(0.55 * len(layers) + 2.6, 0.36 * len(classes) + 1.4)
        _heat(figure, axes, means, classes, layers)
        axes.set_title(f"{row.method}: {row.setup}", fontsize=9)
        caption = f"{row.setup}: mean q(l|x) of {row.label} per class, over the test clips of {len(maps)} cells."
        yield Picture(file_name("layers_per_class", row.setup, row.method), caption, figure)


def _first_layers(row: Row) -> list[int]:
    return next((cell.layers for cell in row.cells.values() if cell.done), [])


def _class_means(cell: Cell) -> dict[str, np.ndarray]:
    """Class -> mean weights [N] from layer_weights.csv; empty where there is none or it has too many labels."""
    path = cell.path / "layer_weights.csv"
    if not path.is_file():
        return {}
    sums: dict[str, list[list[float]]] = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            sums[line["label"]].append(
                [float(value) for key, value in line.items() if key.startswith("layer")]
            )
            if len(sums) > MAX_CLASSES:
                return {}
    return {name: np.mean(values, axis=0) for name, values in sums.items()}


def _corpus_maps(rows: list[Row]) -> Iterator[Picture]:
    """Mean weight per layer, a row per corpus and method, a picture per upstream."""
    for upstream in dict.fromkeys(row.setup.upstream for row in rows):
        lines: dict[str, dict[int, float]] = {}
        for row in rows:
            cells = [
                cell
                for cell in row.cells.values()
                if len(cell.layers) > 1 and row.split in cell.layer_weights
            ]
            if row.setup.upstream != upstream or not cells:
                continue
            name = f"{row.setup.downstream} / {row.setup.corpus} / {row.split}: {row.method}"
            means = np.mean(
                [cell.layer_weights[row.split] for cell in cells if cell.layers == cells[0].layers],
                axis=0,
            )
            lines[name] = dict(zip(cells[0].layers, means, strict=True))
        if not lines:
            continue
        layers = sorted({layer for line in lines.values() for layer in line})
        grid = np.array(
            [[line.get(layer, math.nan) for layer in layers] for line in lines.values()]
        )
        figure, axes = _figure(0.55 * len(layers) + 4.6, 0.36 * len(lines) + 1.4)
        _heat(figure, axes, grid, list(lines), layers)
        axes.set_title(upstream, fontsize=9)
        caption = f"{upstream}: mean weight of each hidden state per corpus; blank where a method does not read it."
        yield Picture(file_name("layers_per_corpus", upstream), caption, figure)


def _heat(figure: Figure, axes: Any, grid: np.ndarray, names: list[str], layers: list[int]) -> None:
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlabel("hidden state (0 = encoder input)")
    figure.colorbar(image, ax=axes, label="mean weight")


def _ablations(rows: list[Row]) -> Iterator[Picture]:
    """One picture per setup, split and setting that takes several values: a line for each way the rest was set."""
    for held in by_column(rows).values():
        keys = sorted({key for row in held for key in row.settings})
        groups = defaultdict(list)
        for row in held:
            if row.values:
                groups[row.featurizer, row.tuning].append(row)
        varied = [
            key for key in keys if any(_takes_several(key, group) for group in groups.values())
        ]
        names = short_names(varied)
        for key in varied:
            lines = [line for group in groups.values() for line in _lines(key, group)]
            if lines:
                yield _draw_ablation(key, names, lines, held)


def _takes_several(key: str, group: list[Row]) -> bool:
    return len({repr(row.settings[key]) for row in group if key in row.settings}) > 1


def _lines(key: str, group: list[Row]) -> list[list[Row]]:
    """Rows that differ in `key` alone, in the order of its values; the longest lines first."""
    lines = defaultdict(list)
    for row in group:
        if key in row.settings:
            rest = {
                other: repr(value)
                for other, value in row.settings.items()
                if other != key and not _depends(other, key)
            }
            lines[row.method, tuple(sorted(rest.items()))].append(row)
    ordered = [
        sorted(line, key=lambda row: _order(row.settings[key]))
        for line in lines.values()
        if len(line) > 1
    ]
    return sorted(ordered, key=len, reverse=True)


def _depends(other: str, key: str) -> bool:
    """A prior's own parameters come and go with it, a head's width with the kind of head."""
    if key.endswith(".prior"):
        return other.endswith((".chi2_df", ".chi2_nc", ".geometric_p"))
    return key.endswith(".head") and other.endswith(".head_dim")


def _order(value: Any) -> tuple[int, Any]:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value) if numeric else (1, str(value))


def _draw_ablation(
    key: str, names: dict[str, str], lines: list[list[Row]], held: list[Row]
) -> Picture:
    """`names`: short name of every varied setting; `lines` as of _lines; `held`: all rows of the setup."""
    setup, split, metric = held[0].setup, held[0].split, held[0].metric
    values = {repr(row.settings[key]): row.settings[key] for line in lines for row in line}
    places = {
        text: place
        for place, text in enumerate(sorted(values, key=lambda text: _order(values[text])))
    }
    pairs = set.intersection(*(set(row.values) for line in lines for row in line))
    figure, axes = _figure(max(4.6, 0.9 * len(places) + 2.4), 3.6)
    for number, line in enumerate(lines):
        points = [[row.values[pair] for pair in sorted(pairs or row.values)] for row in line]
        others = [other for other in names if other != key and other in line[0].settings]
        rest = ", ".join(f"{names[other]}={line[0].settings[other]}" for other in others)
        label = f"{line[0].method} ({rest})" if rest else line[0].method
        where = np.array([places[repr(row.settings[key])] for row in line])
        numeric = all(_order(row.settings[key])[0] == 0 for row in line)
        axes.errorbar(
            where
            + 0.06
            * (
                min(number, MAX_LINES) - min(len(lines) - 1, MAX_LINES) / 2
            ),  # side by side, not one on the other
            [np.mean(point) for point in points],
            [
                np.std(point, ddof=1) / math.sqrt(len(point)) if len(point) > 1 else 0.0
                for point in points
            ],
            marker="o",
            linestyle="-" if numeric else "none",  # categories have no way between them
            capsize=3,
            color=COLORS[number] if number < MAX_LINES else "#dddddd",
            label=label if number < MAX_LINES else None,
        )
    _draw_baselines(axes, held, lines, pairs)
    axes.set_xticks(list(places.values()), [str(values[text]) for text in places])
    axes.set_xlabel(names[key])
    axes.set_ylabel(f"{split} {metric}")
    axes.set_title(str(setup), fontsize=10)
    axes.legend(fontsize=7)
    shared = (
        f"the {len(pairs)} (fold, seed) cells all points share"
        if pairs
        else "cells that differ between points"
    )
    caption = (
        f"{setup}: {metric} on {split} against {names[key]}; mean and standard error over {shared}."
    )
    return Picture(file_name("ablation", names[key], setup, split), caption, figure)


def _draw_baselines(axes: Any, held: list[Row], lines: list[list[Row]], pairs: set) -> None:
    """A dashed level for each method that is not itself varied here, over the same cells."""
    varied = {(row.featurizer, row.tuning) for line in lines for row in line}
    for row in leaderboard(held):
        values = [row.values[pair] for pair in pairs if pair in row.values]
        if (row.featurizer, row.tuning) not in varied and len(values) == len(pairs) and values:
            axes.axhline(float(np.mean(values)), linestyle="--", linewidth=1, color="#555555")
            axes.annotate(
                row.method,
                (0.01, float(np.mean(values))),
                xycoords=("axes fraction", "data"),
                fontsize=7,
                va="bottom",
            )
