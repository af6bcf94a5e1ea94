"""Cells of a sweep, checked before anything runs: their command lines and resolved settings."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.files import PLAN, write_atomic
from s3prl_varan.sweep.spec import Spec, expand

MAX_SHOWN = 12  # problems listed of a sweep; the rest are counted


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep. Its folder is named by its id."""

    id: str
    argv: tuple[str, ...]  # flags of run_downstream, without the folder
    keys: dict[str, Any]  # as the sweep sets them
    stored: dict[str, Any]  # the resolved settings, as experiments store them
    settings: Any = None  # RunSettings

    @property
    def metric(self) -> str:
        """The figure that decides on dev."""
        return self.stored["task"]["metric"]

    @property
    def steps(self) -> int:
        """Optimizer steps it has at most."""
        return self.stored["config"]["runner"]["total_steps"]

    def describe(self, names: Iterable[str]) -> str:
        """`seed=1, varan.prior=chi2`: what the cell has of these keys."""
        shown = [(name, self.keys[name]) for name in names if name in self.keys]
        return ", ".join(f"{name.removeprefix('config.')}={value}" for name, value in shown)


def command_line(keys: dict[str, Any]) -> list[str]:
    """The sweep's keys as flags of run_downstream: config.* go into -o, the rest by name."""
    argv, overrides = [], []
    for key, value in keys.items():
        if key.startswith("config."):
            overrides.append(f"{key}={json.dumps(value)}")
        elif value is True:
            argv.append(f"--{key}")
        elif value is not None and value is not False:
            argv += [f"--{key}", str(value)]
    return argv + (["--override", ",,".join(overrides)] if overrides else [])


def plan_cell(keys: dict[str, Any]) -> Cell:
    """The cell of these keys; UserError for what run_downstream would refuse of them."""
    from s3prl_varan.app.cli import parse_args
    from s3prl_varan.config.resolve import resolve

    argv = command_line(keys)
    try:
        settings = resolve(parse_args(argv))
    except SystemExit as error:  # argparse has said why
        raise UserError(f"the flags {' '.join(argv)} are not accepted") from error
    return Cell(settings.id, tuple(argv), keys, settings.stored(), settings)


def plan_cells(expanded: list[dict[str, Any]], source: str) -> list[Cell]:
    """One cell of each identity, in order; one UserError that lists what is wrong in any."""
    cells: dict[str, Cell] = {}
    problems: dict[str, int] = defaultdict(int)
    for keys in expanded:
        try:
            cell = plan_cell(keys)
            cells.setdefault(cell.id, cell)
        except UserError as error:
            problems[str(error)] += 1
    if problems:
        told = [f"{text} (in {n} cell{'s' * (n > 1)})" for text, n in problems.items()]
        more = [f"... and {len(told) - MAX_SHOWN} more"] if len(told) > MAX_SHOWN else []
        raise problems_error(f"{source}: cells that cannot run:", told[:MAX_SHOWN] + more)
    return list(cells.values())


def plan_sweep(spec: Spec, source: str) -> list[Cell]:
    """The cells of a grid; of a search, those at the ends of its space.

    So a bad key of a search fails before the first draw.
    """
    if spec.search is None:
        return plan_cells(expand(spec), source)
    cells = plan_cells([expand(spec, drawn)[0] for drawn in spec.search.ends()], source)
    if len({cell.stored["task"]["name"] for cell in cells}) > 1:
        raise UserError(
            f"{source}: a search compares dev figures, so all its cells need the same downstream."
        )
    return cells


def check_corpora(cells: list[Cell]) -> None:
    """Each corpus and fold that the cells name can be read, or a UserError, before any starts."""
    seen = set()
    for cell in cells:
        section = cell.stored["config"].get("downstream_expert")
        place = [cell.stored["task"], section, cell.settings.splits_read]
        text = json.dumps(place, sort_keys=True, default=str)
        if text not in seen:
            seen.add(text)
            cell.settings.check_corpus()


def write_plan(cells: list[Cell], folder: Path, name: str) -> None:
    """The list of cells, for reports: what was planned and has not started is missing there."""
    entries = [cell.stored for cell in cells]
    write_atomic(folder / f"{name}{PLAN}", json.dumps({"cells": entries}, default=str) + "\n")


def varied_keys(cells: Sequence[Cell]) -> list[str]:
    """The keys that are not the same in all cells."""
    keys = dict.fromkeys(key for cell in cells for key in cell.keys)
    return [key for key in keys if len({repr(cell.keys.get(key, "-")) for cell in cells}) > 1]
