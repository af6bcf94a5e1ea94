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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.files import RESULT
from s3prl_varan.intervals import clip_interval
from s3prl_varan.report.cells import Cell, Setup

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
Values = dict[tuple[str, int], float]  # by (fold, seed)
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
    """One method in one setup, on one test split."""

    setup: Setup
    split: str
    metric: str
    higher_is_better: bool
    featurizer: str
    tuning: str
    settings: dict[str, Any]
    cells: dict[tuple[str, int], Cell]  # by (fold, seed), finished or not
    expected: set[tuple[str, int]]
    variant: dict[str, Any] = field(default_factory=dict)  # what tells it from its siblings
    usual: dict[str, Any] = field(default_factory=dict)  # what most siblings have of that
    difference: Difference | None = None
    best: bool = False

    @property
    def method(self) -> str:
        """Featurizer and tuning."""
        return self.featurizer if self.tuning == "frozen" else f"{self.featurizer} + {self.tuning}"

    @property
    def label(self) -> str:
        """The method, with what tells it from its siblings and is not usual among them."""
        told = {
            name: value
            for name, value in self.variant.items()
            if repr(value) != repr(self.usual.get(name, "-"))
        }
        return f"{self.method} ({settings_text(told)})" if told else self.method

    @property
    def usual_note(self) -> str:
        """What the labels of this method leave out."""
        usual = settings_text(self.usual)
        return f"where a label of {self.method} does not say otherwise, {usual}."

    @cached_property
    def finished(self) -> list[Cell]:
        """The cells with a result."""
        return [cell for _, cell in sorted(self.cells.items()) if cell.done]

    @cached_property
    def values(self) -> Values:
        """The metric on the test split, of the finished cells."""
        figures = {cell.key: cell.test.get(self.split, {}) for cell in self.finished}
        return {key: held[self.metric] for key, held in figures.items() if self.metric in held}

    @cached_property
    def information(self) -> float:
        """Mean I(L; X) in nats over the cells that say it; NaN where none does."""
        found = [cell.dynamics.get(self.split) for cell in self.finished]
        nats = [each["information_nats"] for each in found if each]
        return float(np.mean(nats)) if nats else math.nan

    @cached_property
    def gain(self) -> Difference | None:
        """Over the static twin: the same cells with their mean q in the place of q."""
        twins = {
            cell.key: cell.dynamics.get(self.split, {}).get("static_twin", {}).get(self.metric)
            for cell in self.finished
        }
        known = {key: value for key, value in twins.items() if value is not None}
        return paired_difference(self.values, known, "its mean q")

    @property
    def complete(self) -> bool:
        """Is there a value for every fold and seed expected?"""
        return bool(self.expected) and self.expected <= set(self.values)

    @property
    def mean(self) -> float:
        """Over the finished cells; NaN where there is none."""
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def dev_mean(self) -> float:
        """The metric on dev at the chosen steps, over the finished cells."""
        figures = [cell.dev[self.metric] for cell in self.finished if self.metric in cell.dev]
        return float(np.mean(figures)) if figures else math.nan

    @property
    def spread(self) -> tuple[float, str]:
        """(standard deviation, "seeds" | "folds" | ""); NaN where nothing can be said of it."""
        if not self.complete or len(self.values) < 2:
            return math.nan, ""
        place = int(len({seed for _, seed in self.values}) > 1)
        groups = grouped(self.values, lambda key: key[place])
        means = [np.mean([self.values[key] for key in group]) for group in groups.values()]
        return float(np.std(means, ddof=1)), ("folds", "seeds")[place]

    @property
    def rising(self) -> int:
        """Finished cells whose best dev figure came in the last tenth of the budget."""
        return sum(cell.best_step > LATE * cell.steps for cell in self.finished)

    def goodness(self, value: float) -> float:
        """The value, or its negative where less is better."""
        return value if self.higher_is_better else -value


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
    rows = []
    for split in sorted({split for cell in done for split in cell.test}) or ["test"]:
        for one in held:
            cell = next(iter(one.values()))
            method = cell.featurizer, cell.tuning, cell.settings
            rows.append(Row(setup, split, name, higher, *method, one, expected))
    for group in grouped(rows, lambda row: (row.featurizer, row.tuning, row.split)).values():
        _name_variants(group)
    return sorted(rows, key=method_order)


def _identity(cell: Cell) -> tuple[str, str, str]:
    settings = json.dumps(cell.settings, sort_keys=True, default=str)
    return cell.featurizer, cell.tuning, settings


def _one_each(cells: list[Cell], notes: list[str]) -> dict[tuple[str, int], Cell]:
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
    for row in group:
        row.variant = {names[key]: row.settings[key] for key in told if key in row.settings}
        row.usual = {names[key]: value for key in told for value in _usual(key, group)}


def _usual(key: str, group: list[Row]) -> list[Any]:
    """The value that more than half of the rows have, as a list of one or none.

    None where a row lacks the setting: a label without it would read like that row's.
    """
    if any(key not in row.settings for row in group):
        return []
    values = grouped((row.settings[key] for row in group), repr)
    return [same[0] for same in values.values() if 2 * len(same) > len(group)]


def settings_text(settings: dict[str, Any]) -> str:
    """`name=value, ...`"""
    return ", ".join(f"{name}={_shown(value)}" for name, value in settings.items())


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each dotted key, or as many parts as tell them apart."""

    def last(key: str, count: int) -> list[str]:
        return key.split(".")[-count:]

    names = {}
    for key in keys:
        count, others = 1, [other for other in keys if other != key]
        while any(last(other, count) == last(key, count) for other in others):
            count += 1
        names[key] = ".".join(last(key, count))
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
    groups = grouped(rows, lambda row: (row.setup, row.split, row.featurizer, row.tuning))
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
    candidates = grouped(
        (row for row in rows if row.featurizer == baseline), lambda row: row.tuning
    )
    references = {tuning: chosen_on_dev(group) for tuning, group in candidates.items()}
    for row in rows:
        reference = references.get(row.tuning)
        if reference is not None and reference is not row:
            row.difference = paired_difference(row.values, reference.values, reference.label, draws)
            if row.difference is not None:
                row.difference.over_clips = interval_over_clips(row, reference)
    missing = sorted({row.tuning for row in rows if row.tuning not in references})
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


def interval_over_clips(row: Row, reference: Row) -> tuple[float, float] | None:
    """95 % interval of the difference over the clips that both rows' cells were tested on."""
    ours, theirs, speakers = [], [], []
    for key in sorted(set(row.values) & set(reference.values)):
        one, other = row.cells[key], reference.cells[key]
        if row.metric not in (one.metric, other.metric):
            return None
        known = other.clips(row.split)
        for name, (speaker, *parts) in one.clips(row.split).items():
            if name in known:
                ours.append((parts[0], parts[1]))
                theirs.append(known[name][1:])
                speakers.append(speaker or name)  # a clip's runs are drawn together too
    if not ours:
        return None
    _, low, high = clip_interval(ours, theirs, speakers)
    return low, high
