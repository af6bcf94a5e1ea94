"""From cells to rows: one method in one setup, its mean over folds and seeds, its spread, its difference to a baseline.

    value of a row    mean over its (fold, seed) cells
    spread            standard deviation, over seeds, of the mean over folds; with a single seed, over folds
    difference        mean of (method - baseline) over the cells with the same fold and seed; its 95 % interval is the
                      percentile bootstrap over those pairs (Efron and Tibshirani 1993, ch. 13)

A row that lacks a (fold, seed) which another row of its setup has is incomplete: it is never called best.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.report.cells import Cell, Setup

DRAWS = 10_000
LATE = 0.9  # a best dev step in the last tenth of the budget: it might still have risen


@dataclass
class Difference:
    """Method minus baseline, in the metric's unit."""

    mean: float
    low: float  # 95 % interval; NaN with fewer than two pairs
    high: float
    pairs: int
    baseline: str  # its label

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
    variant: dict[str, Any] = field(
        default_factory=dict
    )  # the settings that tell it from its siblings, by short name
    usual: dict[str, Any] = field(
        default_factory=dict
    )  # of what all siblings have a value of, the one that most have
    difference: Difference | None = None
    best: bool = False

    @property
    def method(self) -> str:
        """Featurizer and tuning."""
        return self.featurizer if self.tuning == "frozen" else f"{self.featurizer} + {self.tuning}"

    @property
    def label(self) -> str:
        """The method, with what tells it from its siblings; what is usual among them is not said."""
        told = {
            name: value
            for name, value in self.variant.items()
            if repr(value) != repr(self.usual.get(name, "-"))
        }
        return f"{self.method} ({settings_text(told)})" if told else self.method

    @property
    def usual_note(self) -> str:
        """What the labels of this method leave out."""
        return (
            f"where a label of {self.method} does not say otherwise, {settings_text(self.usual)}."
        )

    @property
    def values(self) -> dict[tuple[str, int], float]:
        """The metric on the test split, of the finished cells."""
        return {
            key: cell.test[self.split][self.metric]
            for key, cell in sorted(self.cells.items())
            if cell.done and self.metric in cell.test.get(self.split, {})
        }

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
        figures = [
            cell.dev[self.metric]
            for cell in self.cells.values()
            if cell.done and self.metric in cell.dev
        ]
        return float(np.mean(figures)) if figures else math.nan

    @property
    def spread(self) -> tuple[float, str]:
        """(standard deviation, "seeds" | "folds" | ""); NaN where one cell, or an incomplete row, says nothing of it."""
        values = self.values
        if not self.complete or len(values) < 2:
            return math.nan, ""
        over = "seeds" if len({seed for _, seed in values}) > 1 else "folds"
        groups = defaultdict(list)
        for (fold, seed), value in values.items():
            groups[seed if over == "seeds" else fold].append(value)
        return float(np.std([np.mean(group) for group in groups.values()], ddof=1)), over

    @property
    def rising(self) -> int:
        """Finished cells whose best dev figure came in the last tenth of the budget: more steps might have helped."""
        return sum(cell.done and cell.best_step > LATE * cell.steps for cell in self.cells.values())

    def sign(self) -> int:
        """+1 where more is better, else -1."""
        return 1 if self.higher_is_better else -1


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def build_rows(
    cells: list[Cell], metric: str | None = None, baseline: str = "weighted_sum", draws: int = DRAWS
) -> tuple[list[Row], list[str]]:
    """Rows of all methods in all setups, and notes on what was set aside. `metric`: another figure of the test results."""
    notes: list[str] = []
    rows: list[Row] = []
    setups = defaultdict(list)
    for cell in cells:
        if cell.status == "pruned":
            continue
        setups[cell.setup].append(cell)
    for setup in sorted(setups, key=str):
        rows += _rows_of_setup(setup, setups[setup], metric, notes)
    pruned = sum(cell.status == "pruned" for cell in cells)
    if pruned:
        notes.append(f"{pruned} cells were pruned by a search and are left out.")
    for group in by_column(rows).values():
        _mark_best(group)
        _compare(group, baseline, draws, notes)
    return rows, notes


def _rows_of_setup(
    setup: Setup, cells: list[Cell], metric: str | None, notes: list[str]
) -> list[Row]:
    done = [cell for cell in cells if cell.done]
    name = metric or (done[0].metric if done else "")
    known = sorted(
        {figure for cell in done for figures in cell.test.values() for figure in figures}
    )
    if metric and done and metric not in known:
        hint = did_you_mean(metric, known)
        raise UserError(
            f"--metric: {setup} has no figure '{metric}', expected one of {', '.join(known)}.{hint}"
        )
    higher = _higher_is_better(name, done)
    expected = {cell.key for cell in cells}
    splits = sorted({split for cell in done for split in cell.test}) or ["test"]
    methods: dict[tuple[str, str, str], dict[tuple[str, int], Cell]] = defaultdict(dict)
    for cell in cells:
        identity = (
            cell.featurizer,
            cell.tuning,
            json.dumps(cell.settings, sort_keys=True, default=str),
        )
        _keep(methods[identity], cell, notes)
    rows = [
        Row(
            setup,
            split,
            name,
            higher,
            featurizer,
            tuning,
            next(iter(held.values())).settings,
            held,
            expected,
        )
        for split in splits
        for (featurizer, tuning, _), held in sorted(methods.items())
    ]
    _name_variants(rows)
    return sorted(rows, key=method_order)


def _higher_is_better(metric: str, done: list[Cell]) -> bool:
    """As the cells say of their own metric; of others by name: losses and error rates go down."""
    if done and metric == done[0].metric:
        return done[0].higher_is_better
    return metric not in ("loss", "nll", "kl", "wer", "cer", "uer", "per", "eer")


def _keep(held: dict[tuple[str, int], Cell], cell: Cell, notes: list[str]) -> None:
    """One cell per fold and seed: the finished one, of several the newer."""
    other = held.get(cell.key)
    if other is not None:
        first, second = sorted((other, cell), key=lambda one: (one.done, _age(one)))
        cell = second
        notes.append(
            f"{first.path} and {second.path} are the same cell; the table uses {second.path}."
        )
    held[cell.key] = cell


def _age(cell: Cell) -> float:
    path = cell.path / "result.json"
    return path.stat().st_mtime if path.is_file() else 0.0


def _name_variants(rows: list[Row]) -> None:
    """Give each row the settings in which it differs from rows of the same featurizer and tuning."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.featurizer, row.tuning, row.split].append(row)
    for group in groups.values():
        keys = sorted({key for row in group for key in row.settings})
        # A setting that only some rows have (a prior's own parameter) need not be told where it is the same for them all.
        differing = [
            key
            for key in keys
            if len({repr(row.settings[key]) for row in group if key in row.settings}) > 1
        ]
        alike = defaultdict(list)
        for row in group:
            alike[repr([row.settings.get(key, "-") for key in differing])].append(row)
        for key in keys:  # but where nothing else tells two rows apart
            if any(
                len({repr(row.settings.get(key, "-")) for row in rows}) > 1
                for rows in alike.values()
            ):
                differing.append(key)
        names = short_names(differing)
        for row in group:
            row.variant = {
                names[key]: row.settings[key] for key in differing if key in row.settings
            }
            row.usual = {names[key]: value for key in differing for value in _usual(key, group)}


def _usual(key: str, group: list[Row]) -> list[Any]:
    """The value that more than half of the rows have, as a list of one or none; none where a row lacks the setting."""
    if any(key not in row.settings for row in group):
        return []  # a label that does not tell the value would read like that of the row that has none
    values = [row.settings[key] for row in group]
    return [
        value
        for value in values
        if 2 * sum(repr(other) == repr(value) for other in values) > len(group)
    ][:1]


def settings_text(settings: dict[str, Any]) -> str:
    """`name=value, ...`"""
    return ", ".join(f"{name}={_shown(value)}" for name, value in settings.items())


def short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each dotted key, or as many parts as tell them apart."""
    names = {}
    for key in keys:
        parts = key.split(".")
        taken = [other.split(".") for other in keys if other != key]
        length = next(
            (n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in taken)),
            len(parts),
        )
        names[key] = ".".join(parts[-length:])
    return names


def by_column(rows: list[Row]) -> dict[tuple[Setup, str], list[Row]]:
    """Rows that can be compared: one setup and test split each."""
    columns = defaultdict(list)
    for row in rows:
        columns[row.setup, row.split].append(row)
    return dict(columns)


def _mark_best(rows: list[Row]) -> None:
    complete = [row for row in rows if row.complete]
    if len(complete) > 1:
        top = max(row.sign() * row.mean for row in complete)
        for row in complete:
            row.best = row.sign() * row.mean == top


def chosen_on_dev(rows: list[Row]) -> Row:
    """Of a method's variants, the complete one that is best on dev (never on test); where none is complete, the fullest."""
    complete = [row for row in rows if row.complete]
    if complete:
        return max(
            complete,
            key=lambda row: -math.inf if math.isnan(row.dev_mean) else row.sign() * row.dev_mean,
        )
    return max(rows, key=lambda row: len(row.values))


def leaderboard(rows: list[Row]) -> list[Row]:
    """One row per setup, split, featurizer and tuning: the variant chosen on dev, the best of them marked anew."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.setup, row.split, row.featurizer, row.tuning].append(row)
    chosen = [replace(chosen_on_dev(group), best=False) for group in groups.values()]
    for column in by_column(chosen).values():
        _mark_best(column)
    return chosen


def method_order(row: Row) -> tuple[int, int, str]:
    """Sort key: frozen first, then LoRA, then fine-tuned; within them the single layers, the weighted sum, VARAN, others."""
    featurizers, tunings = (
        ("layer", "last_layer", "weighted_sum", "varan"),
        ("frozen", "lora", "finetune"),
    )
    known = featurizers.index(row.featurizer) if row.featurizer in featurizers else len(featurizers)
    return tunings.index(row.tuning), known, row.featurizer


def _compare(rows: list[Row], baseline: str, draws: int, notes: list[str]) -> None:
    """Set each row's difference to the baseline of the same tuning, its variant chosen on dev."""
    by_tuning = defaultdict(list)
    for row in rows:
        if row.featurizer == baseline:
            by_tuning[row.tuning].append(row)
    references = {tuning: chosen_on_dev(group) for tuning, group in by_tuning.items()}
    for row in rows:
        reference = references.get(row.tuning)
        if reference is not None and reference is not row:
            row.difference = paired_difference(row.values, reference.values, reference.label, draws)
    missing = sorted({row.tuning for row in rows if row.tuning not in references})
    if missing and len(rows) > 1:
        notes.append(
            f"{rows[0].setup}: no {baseline} among the {' and '.join(missing)} runs, so no difference to it."
        )


def paired_difference(
    values: dict[tuple[str, int], float],
    reference: dict[tuple[str, int], float],
    label: str,
    draws: int = DRAWS,
) -> Difference | None:
    """Mean difference over the cells both have, with a 95 % percentile bootstrap interval over these pairs."""
    common = sorted(set(values) & set(reference))
    if not common:
        return None
    pairs = np.array([values[key] - reference[key] for key in common])
    if len(pairs) < 2:
        return Difference(float(pairs.mean()), math.nan, math.nan, 1, label)
    drawn = np.random.default_rng(0).integers(0, len(pairs), size=(draws, len(pairs)))
    low, high = np.percentile(pairs[drawn].mean(axis=1), [2.5, 97.5])
    return Difference(float(pairs.mean()), float(low), float(high), len(pairs), label)
