"""Cells of a sweep, checked before anything runs: command line, resolved config, identity, what it will cost."""

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_varan.app.cli import parse_args
from s3prl_varan.config.identity import cell_id
from s3prl_varan.config.options import CALL_FLAGS, RunnerOptions
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.files import write_atomic
from s3prl_varan.sweep.spec import Spec, expand

MAX_SHOWN = 12  # problems listed of a sweep; the rest are counted


@dataclass(frozen=True)
class PlannedCell:
    """One experiment of a sweep. Its folder is named by its id."""

    id: str
    argv: tuple[str, ...]  # flags of run_downstream, without the folder
    settings: dict[str, Any]  # as the sweep's keys name them
    args: dict[str, Any]  # resolved, as result.json will store them
    config: dict[str, Any]
    higher_is_better: bool = True
    metric: str = "acc"
    splits: tuple[str, ...] = ()  # all that it will read


def command_line(settings: dict[str, Any]) -> list[str]:
    """The sweep's keys as flags of run_downstream: config.* go into -o, the rest by name."""
    argv, overrides = [], []
    for key, value in settings.items():
        if key.startswith("config."):
            overrides.append(f"{key}={json.dumps(value)}")
        elif value is True:
            argv.append(f"--{key}")
        elif value is not None and value is not False:
            argv += [f"--{key}", str(value)]
    return argv + (["--override", ",,".join(overrides)] if overrides else [])


def resolve(settings: dict[str, Any]) -> PlannedCell:
    """Flags and config as they will be used; UserError for what run_downstream would refuse of them."""
    from s3prl_varan.app import experiment
    from s3prl_varan.config import reading as configs
    from s3prl_varan.tasks.registry import find_task

    argv = command_line(settings)
    try:
        args = parse_args(argv)
    except SystemExit as error:  # argparse has said why
        raise UserError(f"the flags {' '.join(argv)} are not accepted") from error
    raw, origin = experiment.fresh_config(args)
    experiment.apply_overrides(args, raw)
    experiment.check_flags(args)
    config = configs.check_config(
        raw, args.featurizer, experiment.shipped_reference(args.downstream), origin
    )
    experiment.check_splits(args, config)
    task = find_task(args.downstream)
    plain = {name: value for name, value in vars(args).items() if name not in CALL_FLAGS}
    splits = tuple(experiment.splits_used(args, config, task))
    return PlannedCell(
        cell_id(plain, raw),
        tuple(argv),
        settings,
        plain,
        raw,
        task.higher_is_better,
        task.metric,
        splits,
    )


def resolve_all(settings: list[dict[str, Any]], source: str) -> list[PlannedCell]:
    """One cell of each identity, in order; one UserError that lists what is wrong in any of them."""
    cells: dict[str, PlannedCell] = {}
    problems: dict[str, int] = defaultdict(int)
    for one in settings:
        try:
            cell = resolve(one)
            cells.setdefault(cell.id, cell)
        except UserError as error:
            problems[str(error)] += 1
    if problems:
        listed = [
            f"{text} (in {count} cell{'s' * (count > 1)})"
            for text, count in list(problems.items())[:MAX_SHOWN]
        ]
        if len(problems) > MAX_SHOWN:
            listed.append(f"... and {len(problems) - MAX_SHOWN} more")
        raise problems_error(f"{source}: cells that cannot run:", listed)
    return list(cells.values())


def resolve_spec(spec: Spec, source: str) -> list[PlannedCell]:
    """The cells of a grid; of a search, those at the ends of its space, so that a bad key fails before the first trial."""
    if not spec.space:
        return resolve_all(expand(spec), source)
    first = {key: distribution.values[0] for key, distribution in spec.space.items()}
    draws = [
        {**first, key: value}
        for key, distribution in spec.space.items()
        for value in distribution.values
    ]
    cells = resolve_all(
        [settings for drawn in draws for settings in expand(spec, drawn)[:1]], source
    )
    if len({cell.args["downstream"] for cell in cells}) > 1:
        raise UserError(
            f"{source}: a search compares dev figures, so all its cells need the same downstream."
        )
    return cells


def check_corpora(cells: list[PlannedCell]) -> None:
    """Each corpus and fold that the cells name can be read, or a UserError, before the first cell starts."""
    from s3prl_varan.tasks.registry import find_task

    seen = set()
    for cell in cells:
        section, variant = cell.config["downstream_expert"], cell.args.get("downstream_variant")
        place = json.dumps(
            [cell.args["downstream"], section.get("datarc"), variant, cell.splits],
            sort_keys=True,
            default=str,
        )
        if place not in seen:
            seen.add(place)
            find_task(cell.args["downstream"]).check_data(section, variant, list(cell.splits))


def write_plan(cells: list[PlannedCell], path: Path) -> None:
    """The list of cells, for reports: what was planned and has not started is missing, not forgotten."""
    entries = [
        {"id": cell.id, "settings": cell.settings, "args": cell.args, "config": cell.config}
        for cell in cells
    ]
    write_atomic(path, json.dumps({"cells": entries}, default=str) + "\n")


def varied_settings(cells: list[PlannedCell]) -> dict[str, dict[str, Any]]:
    """Cell id -> the settings that are not the same in all cells."""
    keys = dict.fromkeys(key for cell in cells for key in cell.settings)
    differing = [
        key for key in keys if len({repr(cell.settings.get(key, "-")) for cell in cells}) > 1
    ]
    return {
        cell.id: {key: cell.settings[key] for key in differing if key in cell.settings}
        for cell in cells
    }


def planned_steps(config: dict[str, Any]) -> int:
    """The optimizer steps a run of this config has at most."""
    return int((config.get("runner") or {}).get("total_steps", RunnerOptions.total_steps))


class Costs:
    """What cells took, and so will take: seconds per planned step of the same upstream, featurizer and tuning, else of any.

    Planned, not trained: cells that early stopping ended at half of total_steps let the others be expected to end there too.
    """

    def __init__(self) -> None:
        self.rates: dict[tuple, list[float]] = defaultdict(list)

    def read(self, folder: Path) -> None:
        """Take in the results of the cells in a sweep's folder."""
        for path in sorted(folder.glob("*/result.json")):
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
                self.add(result["args"], planned_steps(result["config"]), result["seconds"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def add(self, args: dict[str, Any], steps: int, seconds: float) -> None:
        """One finished cell, planned for `steps`."""
        self.rates[_kind(args)].append(seconds / max(1, steps))

    def seconds(self, cell: PlannedCell) -> float | None:
        """Estimate of a cell; None while nothing is known."""
        rates = self.rates.get(_kind(cell.args)) or [
            rate for group in self.rates.values() for rate in group
        ]
        return statistics.median(rates) * planned_steps(cell.config) if rates else None


def _kind(args: dict[str, Any]) -> tuple:
    return tuple(
        str(args.get(key))
        for key in (
            "upstream",
            "upstream_ckpt",
            "downstream",
            "featurizer",
            "lora",
            "upstream_trainable",
        )
    )


def readable_time(seconds: float | None) -> str:
    """ "3 h 20 min", "4 min", "12 s"; "?" for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
