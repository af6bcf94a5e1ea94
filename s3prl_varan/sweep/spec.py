"""A sweep's YAML: what is fixed, what is a grid, what is searched. Read and expanded here.

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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from s3prl_varan.app.cli import build_parser
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.featurizers import featurizer_names, find_featurizer
from s3prl_varan.files import parse_yaml
from s3prl_varan.names import is_reference
from s3prl_varan.options import Count, read_options

OWN_FLAGS = (
    "help", "mode", "evaluate_split", "override", "past_exp", "auto_resume", "overwrite",
    "expname", "expdir", "folds",
)  # fmt: skip


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


def read_spec(path: Path, changes: Iterable[str] = ()) -> Spec:
    """The sweep in a YAML file; UserError that lists all that is wrong in it.

    changes: KEY=VALUE strings that replace keys of its base and of its grid.
    """
    if not path.is_file():
        raise UserError(f"No sweep at {path}. Shipped ones are in downstream_configs/sweeps/.")
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML's errors, and bytes that are no text
        raise UserError(f"{path}: not a YAML file that can be read: {error}") from error
    if not isinstance(raw, dict):
        found = type(raw).__name__
        raise UserError(f"{path}: expected name, base and grid or search; found {found}.")
    problems: list[str] = []
    given = {key: value for key, value in raw.items() if value is not None}
    whole = {"name": path.stem, "base": {}, **given, "grid": _grids(given.get("grid"), problems)}
    if isinstance(given.get("search"), dict):
        whole["search"] = {**given["search"], "space": _space(given["search"], problems)}
    elif not any(whole["grid"]):
        problems.append("neither `grid:` nor `search:` says what to vary")
    base = whole["base"] if isinstance(whole["base"], dict) else {}
    if "config" in base and (path.parent / base["config"]).is_file():
        base["config"] = str((path.parent / base["config"]).resolve())
    for change in changes:
        _change(base, whole["grid"], change, problems)
    space = (whole.get("search") or {}).get("space") or {}
    keys = dict.fromkeys(itertools.chain(base, *whole["grid"], space))
    problems += filter(None, map(_key_problem, keys))
    spec = read_options(Spec, whole, "sweep", problems)
    if problems or spec is None:
        raise problems_error(f"{path}: {len(problems)} problem(s) in the sweep:", problems)
    return spec


def _grids(raw: Any, problems: list[str]) -> list[dict[str, list[Any]]]:
    found = []
    for grid in raw if isinstance(raw, list) else [raw or {}]:
        if not isinstance(grid, dict):
            problems.append(f"grid: expected keys with lists of values, found {grid!r}")
            continue
        found.append({key: one if isinstance(one, list) else [one] for key, one in grid.items()})
        problems += [f"grid: {key} has no values" for key, values in grid.items() if values == []]
    return found


def _space(search: dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
    """Key -> Optuna's distribution, of a search as written."""
    try:
        from optuna import distributions as known
    except ModuleNotFoundError as error:
        raise UserError(
            f"A search needs {error.name}: pip install 's3prl_varan[sweep]'."
        ) from error
    raw = search.get("space")
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
    return found or raw


def _change(
    base: dict[str, Any], grids: list[dict[str, list[Any]]], change: str, problems: list[str]
) -> None:
    """Set one key for the whole sweep, wherever it was set before."""
    key, separator, value = change.partition("=")
    key = key.strip()
    if not separator:
        problems.append(f"--set: expected KEY=VALUE, found '{change}'")
        return
    parsed = parse_yaml(value)
    held = [grid for grid in grids if key in grid]
    for grid in held:
        grid[key] = parsed if isinstance(parsed, list) else [parsed]
    if not held:
        if isinstance(parsed, list) and not key.startswith("config."):
            problems.append(f"--set: {key} is not in the grid, so it takes one value, not {parsed}")
        base[key] = parsed


def _key_problem(key: str) -> str:
    """Why a key cannot be set, or ''."""
    if str(key).startswith("config."):
        whole = key in ("config.scheduler", "config.specaug")  # null switches the section off
        return "" if whole or key.count(".") >= 2 else f"{key}: expected config.SECTION.KEY"
    flags = [action.dest for action in build_parser()._actions]
    if key in OWN_FLAGS:
        return f"{key}: a sweep sets this itself"
    if key not in flags:
        hint = did_you_mean(key, flags)
        return (
            f"unknown key '{key}': expected a flag of run_downstream or config.SECTION.KEY.{hint}"
        )
    return ""


def expand(spec: Spec, drawn: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every combination of the grids on top of base, less what a cell does not read.

    drawn: a search's values, on top of both. The same cell may come twice.
    """
    cells = [
        {**spec.base, **dict(zip(grid, values, strict=True)), **(drawn or {})}
        for grid in spec.grid or [{}]
        for values in itertools.product(*grid.values())
    ]
    used = {cell.get("featurizer") or "varan" for cell in cells}
    sections = {name: _section(name) for name in {*featurizer_names(), *used}}
    return [_read_keys(cell, sections) for cell in cells]


def _section(featurizer: str) -> str:
    """The name of a featurizer's section in the config."""
    return find_featurizer(featurizer).name if is_reference(featurizer) else featurizer


def _read_keys(keys: dict[str, Any], sections: dict[str, str]) -> dict[str, Any]:
    """The keys without those of sections that this cell leaves unread; sections: by featurizer."""
    own = sections[keys.get("featurizer") or "varan"]
    unread = [f"config.{name}." for name in sections.values() if name != own]
    if not keys.get("lora"):
        unread.append("config.lora.")
        if not keys.get("upstream_trainable"):
            unread.append("config.upstream.")
    return {key: value for key, value in keys.items() if not key.startswith(tuple(unread))}
