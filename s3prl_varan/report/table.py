"""From cells to rows: one method in one setup, its mean, its spread, its difference to a baseline.

    value of a row    mean over its (fold, seed) cells
    spread            standard deviation, over seeds, of the mean over folds; with a single seed,
                      over folds
    difference        mean of (method - baseline) over the cells with the same fold and seed; its
                      95 % interval is the percentile bootstrap over those pairs (Efron and
                      Tibshirani 1993, ch. 13): would other seeds and folds say the same?
    over clips        the interval of the same cells' clips, whole test speakers drawn at a time
                      (intervals.py), runs as they are: would other speakers say the same?
    dynamics          of one that weighs by the input: I(L; X), and the difference to itself with
                      its mean q in the place of q, by the same bootstrap over pairs

A row that lacks a (fold, seed) which another row of its setup has is incomplete: it is never called
best.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.files import RESULT
from s3prl_varan.intervals import clip_interval
from s3prl_varan.report.cells import Cell, Clips, Setup

DRAWS = 10_000
LATE = 0.9  # a best dev step in the last tenth of the budget: it might still have risen
GOES_DOWN = (
    "loss", "nll", "kl", "mse", "mae", "wer", "cer", "uer", "per", "eer", "der",
    "slot_value_cer", "slot_value_wer",
)  # fmt: skip
FEATURIZERS = (  # in the order of tables
    "layer", "last_layer", "weighted_sum", "hconv", "lap", "dynamic_sum", "ensemble", "varan",
)  # fmt: skip
TUNINGS = ("frozen", "lora", "finetune")
Key = tuple[str, int]  # (fold, seed)
Values = dict[Key, float]
T = TypeVar("T")


@dataclass
class Difference:
    """Method minus baseline, in the metric's unit."""

    mean: float
    low: float  # 95 % interval; NaN with fewer than two pairs
    high: float
    pairs: int
    baseline: str  # its label
    over_clips: tuple[float, float] | None = None  # 95 % interval; None where clips are not kept

    @property
    def significant(self) -> bool:
        """Does the interval leave out zero?"""
        return self.low > 0 or self.high < 0


@dataclass
class Row:
    """One method in one setup, on one test split. Its figures are over the finished cells."""

    setup: Setup
    split: str
    metric: str
    higher_is_better: bool
    featurizer: str
    tuning: str
    method: str  # featurizer and tuning
    settings: dict[str, Any]
    cells: dict[Key, Cell]  # finished or not
    expected: set[Key]
    finished: list[Cell]
    values: Values  # the metric on the test split
    mean: float  # of them; NaN where there is none
    complete: bool  # is there a value for every fold and seed expected?
    spread: tuple[float, str]  # (standard deviation, "seeds" | "folds" | ""); NaN if incomplete
    dev_mean: float  # the metric on dev at the chosen steps
    information: float  # mean I(L; X) in nats over the cells that say it; NaN where none does
    gain: Difference | None  # over the static twin: the same cells with their mean q for q
    rising: int  # cells whose best dev figure came in the last tenth of the budget
    varied: dict[str, str] = field(default_factory=dict)  # keys in which siblings differ -> short
    label: str = ""  # the method, with what is not usual among its siblings
    usual_note: str = ""  # what the labels of this method leave out
    difference: Difference | None = None
    best: bool = False

    def goodness(self, value: float) -> float:
        """The value, or its negative where less is better."""
        return value if self.higher_is_better else -value


def make_row(
    setup: Setup, split: str, metric: str, higher: bool, cells: dict[Key, Cell], expected: set[Key]
) -> Row:
    """The row of a method's cells, as yet without siblings."""
    finished = [cell for _, cell in sorted(cells.items()) if cell.done]
    figures = {cell.key: cell.test.get(split, {}) for cell in finished}
    values = {key: held[metric] for key, held in figures.items() if metric in held}
    complete = bool(expected) and expected <= set(values)
    dynamics = {cell.key: cell.dynamics.get(split) or {} for cell in finished}
    twins = {key: each.get("static_twin", {}).get(metric) for key, each in dynamics.items()}
    known = {key: value for key, value in twins.items() if value is not None}
    first = next(iter(cells.values()))
    return Row(
        setup,
        split,
        metric,
        higher,
        first.featurizer,
        first.tuning,
        first.featurizer if first.tuning == "frozen" else f"{first.featurizer} + {first.tuning}",
        first.settings,
        cells,
        expected,
        finished,
        values,
        mean=_mean(values.values()),
        complete=complete,
        spread=_spread(values) if complete and len(values) > 1 else (math.nan, ""),
        dev_mean=_mean(cell.dev[metric] for cell in finished if metric in cell.dev),
        information=_mean(each["information_nats"] for each in dynamics.values() if each),
        gain=paired_difference(values, known, "its mean q"),
        rising=sum(cell.best_step > LATE * cell.steps for cell in finished),
    )


def _mean(figures: Iterable[float]) -> float:
    held = list(figures)
    return float(np.mean(held)) if held else math.nan


def _spread(values: Values) -> tuple[float, str]:
    """Over seeds where there are several, else over folds."""
    place = int(len({seed for _, seed in values}) > 1)
    groups = grouped(values, lambda key: key[place])
    means = [_mean(values[key] for key in group) for group in groups.values()]
    return float(np.std(means, ddof=1)), ("folds", "seeds")[place]


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Key -> its items, in the order they come in."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def by_column(rows: Iterable[Row]) -> dict[tuple[Setup, str], list[Row]]:
    """Rows that can be compared: one setup and test split each."""
    return grouped(rows, lambda row: (row.setup, row.split))


def build_rows(
    cells: list[Cell], metric: str | None = None, baseline: str = "weighted_sum", draws: int = DRAWS
) -> tuple[list[Row], list[str]]:
    """Rows of all methods in all setups, and notes on what was set aside.

    metric: another figure of the test results than the tasks' own.
    """
    notes: list[str] = []
    kept = [cell for cell in cells if cell.status != "pruned"]
    setups = grouped(kept, lambda cell: cell.setup)
    rows = [
        row
        for setup in sorted(setups, key=str)
        for row in _rows_of_setup(setup, setups[setup], metric, notes)
    ]
    if len(kept) < len(cells):
        count = len(cells) - len(kept)
        notes.append(f"{count} cells were pruned by a search and are left out.")
    for group in by_column(rows).values():
        _mark_best(group)
        _compare(group, baseline, draws, notes)
    return rows, notes


def _rows_of_setup(
    setup: Setup, cells: list[Cell], metric: str | None, notes: list[str]
) -> list[Row]:
    done = [cell for cell in cells if cell.done]
    first = (done or cells)[0]
    name = metric or first.metric
    known = sorted({one for cell in done for figures in cell.test.values() for one in figures})
    if metric and done and metric not in known:
        raise UserError(
            f"--metric: {setup} has no figure '{metric}', expected one of {', '.join(known)}."
            f"{did_you_mean(metric, known)}"
        )
    higher = first.higher_is_better if name == first.metric else name not in GOES_DOWN
    expected = {cell.key for cell in cells}
    methods = grouped(cells, _identity)
    held = [_one_each(methods[method], notes) for method in sorted(methods)]
    splits = sorted({split for cell in done for split in cell.test}) or ["test"]
    rows = [make_row(setup, split, name, higher, one, expected) for split in splits for one in held]
    for group in grouped(rows, lambda row: (row.method, row.split)).values():
        _name_variants(group)
    return sorted(rows, key=method_order)


def _identity(cell: Cell) -> tuple[str, str, str]:
    settings = json.dumps(cell.settings, sort_keys=True, default=str)
    return cell.featurizer, cell.tuning, settings


def _one_each(cells: list[Cell], notes: list[str]) -> dict[Key, Cell]:
    """One cell per fold and seed: the finished one, of several the newer."""
    held = {}
    for key, same in grouped(cells, lambda cell: cell.key).items():
        *others, held[key] = sorted(same, key=lambda cell: (cell.done, _age(cell)))
        for other in others:
            paths = f"{other.path} and {held[key].path}"
            notes.append(f"{paths} are the same cell; the table uses {held[key].path}.")
    return held


def _age(cell: Cell) -> float:
    path = cell.path / RESULT
    return path.stat().st_mtime if path.is_file() else 0.0


def _name_variants(group: list[Row]) -> None:
    """Give each row of a method and split the settings in which it differs from the others."""

    def differs(key: str, rows: list[Row], *absent: str) -> bool:
        held = [row.settings.get(key, *absent) for row in rows if absent or key in row.settings]
        return len(set(map(repr, held))) > 1

    keys = sorted({key for row in group for key in row.settings})
    # A setting that only some rows have (a prior's own parameter) need not be told where it is the
    # same for them all, but where nothing else tells two rows apart.
    told = [key for key in keys if differs(key, group)]
    alike = grouped(group, lambda row: repr([row.settings.get(key, "-") for key in told]))
    told += [key for key in keys if any(differs(key, rows, "-") for rows in alike.values())]
    names = short_names(told)
    # A label hides what most rows have, but where one lacks the setting: it would read alike.
    usual: dict[str, Any] = {}
    for key in told:
        if all(key in row.settings for row in group):
            same = max(grouped((row.settings[key] for row in group), repr).values(), key=len)
            usual |= {key: same[0]} if 2 * len(same) > len(group) else {}
    for row in group:
        own = row.settings
        unusual = {key: own[key] for key in own if repr(own[key]) != repr(usual.get(key, "-"))}
        text, left_out = settings_text(unusual, names), settings_text(usual, names)
        row.varied, row.label = names, f"{row.method} ({text})" if text else row.method
        if usual:
            row.usual_note = f"where a label of {row.method} does not say otherwise, {left_out}."


def settings_text(settings: dict[str, Any], names: dict[str, str]) -> str:
    """`name=value, ...` of the settings that have a name."""
    return ", ".join(f"{names[key]}={_shown(settings[key])}" for key in names if key in settings)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each dotted key, or as many parts as tell them apart."""
    names = {}
    for key in keys:
        tails = [key.split(".", count)[-1] for count in range(key.count("."), -1, -1)]
        alike = {tail: sum(f".{one}".endswith(f".{tail}") for one in keys) for tail in tails}
        names[key] = min(tails, key=lambda tail: alike[tail])  # the first of them, so the shortest
    return names


def _mark_best(rows: list[Row]) -> None:
    complete = [row for row in rows if row.complete]
    top = max((row.goodness(row.mean) for row in complete), default=0.0)
    for row in complete:
        row.best = len(complete) > 1 and row.goodness(row.mean) == top


def chosen_on_dev(rows: list[Row]) -> Row:
    """Of a method's variants, the complete one that is best on dev (never on test).

    Where none is complete, the fullest.
    """
    complete = [row for row in rows if row.complete]
    return max(
        complete or rows,
        key=lambda row: (
            -math.inf
            if math.isnan(row.dev_mean)
            else row.goodness(row.dev_mean)
            if complete
            else len(row.values)
        ),
    )


def leaderboard(rows: list[Row]) -> list[Row]:
    """One row per setup, split and method: the variant chosen on dev; the best are marked anew."""
    groups = grouped(rows, lambda row: (row.setup, row.split, row.method))
    chosen = [replace(chosen_on_dev(group), best=False) for group in groups.values()]
    for column in by_column(chosen).values():
        _mark_best(column)
    return chosen


def method_order(row: Row) -> tuple[int, int, str]:
    """Sort key: as in TUNINGS; within them as in FEATURIZERS, then others by name."""
    known = [*FEATURIZERS, row.featurizer].index(row.featurizer)
    return TUNINGS.index(row.tuning), known, row.featurizer


def _compare(rows: list[Row], baseline: str, draws: int, notes: list[str]) -> None:
    """Set each row's difference to the baseline of the same tuning, its variant chosen on dev."""
    missing = []
    for tuning, group in sorted(grouped(rows, lambda row: row.tuning).items()):
        candidates = [row for row in group if row.featurizer == baseline]
        if not candidates:
            missing.append(tuning)
            continue
        reference = chosen_on_dev(candidates)
        others = [row for row in group if row is not reference]
        tested = {
            key: reference.cells[key].clips(reference.split) for key in reference.values if others
        }
        for row in others:
            row.difference = paired_difference(row.values, reference.values, reference.label, draws)
            if row.difference is not None:
                row.difference.over_clips = interval_over_clips(row, reference, tested)
    if missing and len(rows) > 1:
        runs = f"the {' and '.join(missing)} runs"
        notes.append(f"{rows[0].setup}: no {baseline} among {runs}, so no difference to it.")


def paired_difference(
    values: Values, reference: Values, label: str, draws: int = DRAWS
) -> Difference | None:
    """Mean difference over the cells both have, with a 95 % percentile bootstrap interval."""
    common = sorted(set(values) & set(reference))
    if not common:
        return None
    pairs = np.array([values[key] - reference[key] for key in common])
    low = high = math.nan
    if len(pairs) > 1:
        drawn = np.random.default_rng(0).integers(0, len(pairs), size=(draws, len(pairs)))
        low, high = np.percentile(pairs[drawn].mean(axis=1), [2.5, 97.5])
    return Difference(float(pairs.mean()), float(low), float(high), len(pairs), label)


def interval_over_clips(
    row: Row, reference: Row, tested: Mapping[Key, Clips]
) -> tuple[float, float] | None:
    """95 % interval of the difference over the clips that both rows' cells were tested on.

    tested: the clips of the reference's cells.
    """
    ours, theirs, speakers = [], [], []
    for key in sorted(set(row.values) & set(reference.values)):
        one, other = row.cells[key], reference.cells[key]
        if row.metric not in (one.metric, other.metric):
            return None
        known = tested[key]
        for name, (speaker, *parts) in one.clips(row.split).items():
            if name in known:
                ours.append((parts[0], parts[1]))
                theirs.append(known[name][1:])
                speakers.append(speaker or name)  # a clip's runs are drawn together too
    if not ours:
        return None
    _, low, high = clip_interval(ours, theirs, speakers)
    return low, high
