"""A sweep's YAML and the cells it means, checked before anything runs.

    name: prior_ablation
    base: {upstream: wavlm, downstream: NAME, config.runner.total_steps: 3000}
    grid:                                   # or a list of grids, one after the other
      seed: [1, 2, 3]                       # the first key varies slowest
      featurizer: [weighted_sum, varan]
      config.varan.prior: [uniform, chi2]   # left out of cells that do not read it
    search:                                 # instead of, or on top of, the grid:
      trials: 40                            # each draw runs all cells of the grid
      pruner: median                        # or none
      seed: 1                               # of the draws
      space:
        config.optimizer.lr: {float: [1e-5, 1e-2], log: true}
        config.varan.kl_beta: {choice: [0.01, 0.05, 0.1]}

Keys are run_downstream's flags by their long names (upstream, seed, lora, ...) and
config.SECTION.KEY. A relative `config:` is a file beside the sweep's own.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from s3prl_varan.app.cli import build_parser, parse_args
from s3prl_varan.config.reading import read_config
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.featurizers import featurizer_names, find_featurizer
from s3prl_varan.files import PLAN, parse_yaml, write_atomic
from s3prl_varan.names import is_reference
from s3prl_varan.options import Count, read_options

OWN_FLAGS = (
    "help", "mode", "evaluate_split", "override", "past_exp", "auto_resume", "overwrite",
    "expname", "expdir", "folds",
)  # fmt: skip
SWITCHES = ("config.scheduler", "config.specaug")  # null switches the section off
MAX_SHOWN = 12  # problems listed of a sweep; the rest are counted


@dataclass(frozen=True)
class SearchOptions:
    """Section `search:`. The space has Optuna's distributions, which keep choices as JSON."""

    trials: Count
    space: dict[str, Any]
    pruner: Literal["median", "none"] = "median"
    seed: int | None = None

    def values(self, params: dict[str, Any]) -> dict[str, Any]:
        """A draw's values, from what Optuna keeps of them."""
        choices = {key for key, one in self.space.items() if hasattr(one, "choices")}
        return {key: json.loads(one) if key in choices else one for key, one in params.items()}

    def ends(self) -> list[dict[str, Any]]:
        """Draws that show whether every key takes what will be drawn: all ends and choices."""
        ends = {
            key: one.choices if hasattr(one, "choices") else (one.low, one.high)
            for key, one in self.space.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        return [self.values({**first, key: end}) for key in ends for end in ends[key]]


@dataclass(frozen=True)
class Spec:
    """A sweep as written."""

    name: str
    base: dict[str, Any]
    grid: list[dict[str, list[Any]]]
    search: SearchOptions | None = None


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


def varied_keys(cells: Sequence[Cell]) -> list[str]:
    """The keys that are not the same in all cells."""
    keys = dict.fromkeys(key for cell in cells for key in cell.keys)
    return [key for key in keys if len({repr(cell.keys.get(key, "-")) for cell in cells}) > 1]


# ---- from a file to a Spec


def read_spec(path: Path, changes: Iterable[str] = ()) -> Spec:
    """The sweep in a YAML file; UserError that lists all that is wrong in it.

    changes: KEY=VALUE strings that replace keys of its base and of its grid.
    """
    if not path.is_file():
        raise UserError(f"No sweep at {path}. Shipped ones are in downstream_configs/sweeps/.")
    raw = read_config(path, "name, base and grid or search")
    problems: list[str] = []
    given = {key: value for key, value in raw.items() if value is not None}
    whole = {"name": path.stem, "base": {}, **given, "grid": _grids(given.get("grid"), problems)}
    space: dict[str, Any] = {}
    if isinstance(given.get("search"), dict):
        written = given["search"].get("space")
        space = _space(written, problems)
        whole["search"] = {**given["search"], "space": space or written}
    elif not any(whole["grid"]):
        problems.append("neither `grid:` nor `search:` says what to vary")
    base = whole["base"] if isinstance(whole["base"], dict) else {}
    if "config" in base and (path.parent / base["config"]).is_file():
        base["config"] = str((path.parent / base["config"]).resolve())
    for change in changes:
        _change(base, whole["grid"], change, problems)
    problems += _key_problems(dict.fromkeys(itertools.chain(base, *whole["grid"], space)))
    spec = read_options(Spec, whole, "sweep", problems)
    if problems or spec is None:
        raise problems_error(f"{path}: {len(problems)} problem(s) in the sweep:", problems)
    return spec


def _grids(raw: Any, problems: list[str]) -> list[dict[str, list[Any]]]:
    found = []
    for grid in raw if isinstance(raw, list) else [raw or {}]:
        if isinstance(grid, dict):
            found.append({key: v if isinstance(v, list) else [v] for key, v in grid.items()})
            problems += [f"grid: {key} has no values" for key, v in grid.items() if v == []]
        else:
            problems.append(f"grid: expected keys with lists of values, found {grid!r}")
    return found


def _space(raw: Any, problems: list[str]) -> dict[str, Any]:
    """Key -> Optuna's distribution, of a search's space as written."""
    try:
        from optuna import distributions as known
    except ModuleNotFoundError as error:
        raise UserError(
            f"A search needs {error.name}: pip install 's3prl_varan[sweep]'."
        ) from error
    found: dict[str, Any] = {}
    for key, values in raw.items() if isinstance(raw, dict) else ():
        try:
            more = dict(values)
            if "choice" in more:
                choices = [json.dumps(one) for one in more.pop("choice")]
                found[key] = known.CategoricalDistribution(choices, **more)
            else:
                kind = known.IntDistribution if "int" in more else known.FloatDistribution
                low, high = more.pop("int" if "int" in more else "float")
                found[key] = kind(low, high, **more)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(
                f"search.space.{key}: expected {{float: [LOW, HIGH]}}, {{int: [LOW, HIGH]}} (with "
                f"log or step) or {{choice: [...]}}, found {values!r} ({error})"
            )
    return found


def _change(
    base: dict[str, Any], grids: list[dict[str, list[Any]]], change: str, problems: list[str]
) -> None:
    """Set one key for the whole sweep, wherever it was set before."""
    key, separator, text = change.partition("=")
    key, value = key.strip(), parse_yaml(text)
    held = [grid for grid in grids if key in grid]
    for grid in held:
        grid[key] = value if isinstance(value, list) else [value]
    if not separator:
        problems.append(f"--set: expected KEY=VALUE, found '{change}'")
    elif not held:
        base[key] = value
        if isinstance(value, list) and not key.startswith("config."):
            problems.append(f"--set: {key} is not in the grid, so it takes one value, not {value}")


def _key_problems(keys: Iterable[Any]) -> Iterator[str]:
    """Why some keys cannot be set."""
    flags = [action.dest for action in build_parser()._actions]
    for key in map(str, keys):
        if key in OWN_FLAGS:
            yield f"{key}: a sweep sets this itself"
        elif key.startswith("config."):
            if key.count(".") < 2 and key not in SWITCHES:
                yield f"{key}: expected config.SECTION.KEY"
        elif key not in flags:
            expected = "expected a flag of run_downstream or config.SECTION.KEY."
            yield f"unknown key '{key}': {expected}{did_you_mean(key, flags)}"


# ---- from a Spec to cells


def expand(spec: Spec, drawn: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every combination of the grids on top of base, less what a cell does not read.

    drawn: a search's values, on top of both. The same cell may come twice.
    """
    cells = [
        {**spec.base, **dict(zip(grid, values, strict=True)), **(drawn or {})}
        for grid in spec.grid or [{}]
        for values in itertools.product(*grid.values())
    ]
    used = [cell.get("featurizer") or "varan" for cell in cells]
    sections = {
        name: find_featurizer(name).name if is_reference(name) else name
        for name in {*featurizer_names(), *used}
    }
    return [
        _read_keys(cell, {*sections.values()} - {sections[own]})
        for cell, own in zip(cells, used, strict=True)
    ]


def _read_keys(keys: dict[str, Any], unread: set[str]) -> dict[str, Any]:
    """The keys that this cell reads; unread: the sections of other featurizers."""
    if not keys.get("lora"):
        unread = unread | ({"lora"} if keys.get("upstream_trainable") else {"lora", "upstream"})
    prefixes = tuple(f"config.{name}." for name in unread)
    return {key: value for key, value in keys.items() if not key.startswith(prefixes)}


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


def plan_cells(expanded: list[dict[str, Any]], source: str) -> list[Cell]:
    """One cell of each identity, in order; one UserError that lists what is wrong in any."""
    from s3prl_varan.config.resolve import resolve

    cells: dict[str, Cell] = {}
    problems: Counter[str] = Counter()
    for keys in expanded:
        argv = command_line(keys)
        try:
            found = resolve(parse_args(argv))
            cells.setdefault(found.id, Cell(found.id, tuple(argv), keys, found.stored(), found))
        except UserError as error:
            problems[str(error)] += 1
        except SystemExit:  # argparse has said why
            problems[f"the flags {' '.join(argv)} are not accepted"] += 1
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
    places = {}
    for cell in cells:
        section = cell.stored["config"]["downstream_expert"]
        places[repr((cell.stored["task"], section, cell.settings.splits_read))] = cell.settings
    for settings in places.values():
        settings.check_corpus()


def write_plan(cells: list[Cell], folder: Path, name: str) -> None:
    """The list of cells, for reports: what was planned and has not started is missing there."""
    entries = [cell.stored for cell in cells]
    write_atomic(folder / f"{name}{PLAN}", json.dumps({"cells": entries}, default=str) + "\n")
