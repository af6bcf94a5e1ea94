"""A sweep's YAML: what is fixed, what is a grid, what is searched. Read and expanded here, checked in plan.py.

    name: prior_ablation
    base: {upstream: wavlm, downstream: emotion, config.runner.total_steps: 3000}
    grid:                                   # or a list of grids, one after the other
      seed: [1, 2, 3]                       # the first key varies slowest
      downstream_variant: [fold1, fold2]
      featurizer: [weighted_sum, varan]
      config.varan.prior: [uniform, chi2]   # left out of cells that do not read it
    search:                                 # instead of, or on top of, the grid: each trial runs all cells of the grid
      trials: 40
      pruner: median                        # or none
      space:
        config.optimizer.lr: {float: [1e-5, 1e-2], log: true}
        config.varan.kl_beta: {choice: [0.01, 0.05, 0.1]}

Keys are run_downstream's flags by their long names (upstream, seed, lora, ...) and config.SECTION.KEY. A relative `config:`
is a file beside the sweep's own.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_varan.app.cli import build_parser
from s3prl_varan.config.reading import parse_yaml
from s3prl_varan.errors import UserError, did_you_mean, problems_error

SECTIONS = {"name", "base", "grid", "search"}
SEARCH_KEYS = {"trials", "pruner", "seed", "space"}
PRUNERS = ("median", "none")
OWN_FLAGS = {
    "help",
    "mode",
    "evaluate_split",
    "override",
    "past_exp",
    "auto_resume",
    "overwrite",
    "expname",
    "expdir",
    "folds",
}
FEATURIZERS = ("last_layer", "layer", "weighted_sum", "varan")


@dataclass(frozen=True)
class Distribution:
    """What a searched key is drawn from."""

    kind: str  # float | int | choice
    values: tuple  # (low, high), or the choices
    log: bool = False
    step: float | None = None

    def extremes(self) -> tuple:
        """Values that show whether the key takes what will be drawn."""
        return self.values


@dataclass
class Spec:
    """A sweep as written."""

    name: str
    base: dict[str, Any]
    grids: list[dict[str, list]]
    space: dict[str, Distribution] = field(default_factory=dict)
    trials: int = 0
    pruner: str = "median"
    seed: int | None = None  # of the search


def read_spec(path: Path, changes: list[str] | None = None) -> Spec:
    """The sweep in a YAML file; `changes` are KEY=VALUE strings that replace keys of its base (and of its grid)."""
    if not path.is_file():
        raise UserError(f"No sweep at {path}. Shipped ones are in downstream_configs/sweeps/.")
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML's errors, and bytes that are no text
        raise UserError(f"{path}: not a YAML file that can be read: {error}") from error
    problems: list[str] = []
    spec = _spec(raw, path, problems)
    config = spec.base.get("config")
    if config and (path.parent / config).is_file():
        spec.base["config"] = str((path.parent / config).resolve())
    for change in changes or []:
        _change(spec, change, problems)
    keys = [*spec.base, *(key for grid in spec.grids for key in grid), *spec.space]
    problems += filter(None, (_key_problem(key) for key in dict.fromkeys(keys)))
    if problems:
        raise problems_error(f"{path}: {len(problems)} problem(s) in the sweep:", problems)
    return spec


def _spec(raw: Any, path: Path, problems: list[str]) -> Spec:
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: expected name, base and grid or search; found {type(raw).__name__}."
        )
    problems += [
        f"unknown section '{key}'.{did_you_mean(key, SECTIONS)}"
        for key in raw
        if key not in SECTIONS
    ]
    grids = raw.get("grid") or {}
    grids = grids if isinstance(grids, list) else [grids]
    spec = Spec(str(raw.get("name") or path.stem), dict(raw.get("base") or {}), [])
    for grid in grids:
        if not isinstance(grid, dict):
            problems.append(f"grid: expected keys with lists of values, found {grid!r}")
            continue
        spec.grids.append(
            {key: values if isinstance(values, list) else [values] for key, values in grid.items()}
        )
        problems += [
            f"grid: {key} has no values" for key, values in spec.grids[-1].items() if not values
        ]
    if not any(spec.grids) and not raw.get("search"):
        problems.append("neither `grid:` nor `search:` says what to vary")
    if raw.get("search"):
        _read_search(spec, raw["search"], problems)
    return spec


def _read_search(spec: Spec, raw: dict[str, Any], problems: list[str]) -> None:
    problems += [
        f"search: unknown key '{key}'.{did_you_mean(key, SEARCH_KEYS)}"
        for key in raw
        if key not in SEARCH_KEYS
    ]
    spec.trials, spec.pruner, spec.seed = (
        raw.get("trials", 0),
        str(raw.get("pruner", "median")),
        raw.get("seed"),
    )
    if not isinstance(spec.trials, int) or spec.trials < 1:
        problems.append(f"search.trials: expected a number of trials, found {raw.get('trials')!r}")
    if spec.pruner not in PRUNERS:
        problems.append(
            f"search.pruner: expected one of {', '.join(PRUNERS)}; found '{spec.pruner}'"
        )
    if not raw.get("space"):
        problems.append("search: needs `space:`, the keys to search and what to draw them from")
    for key, values in (raw.get("space") or {}).items():
        distribution = _distribution(values)
        if distribution is None:
            problems.append(
                f"search.space.{key}: expected {{float: [LOW, HIGH]}}, {{int: [LOW, HIGH]}} or {{choice: [...]}}"
            )
        else:
            spec.space[key] = distribution


def _distribution(raw: Any) -> Distribution | None:
    kind = next(
        (
            kind
            for kind in ("float", "int", "choice")
            if isinstance(raw, dict) and isinstance(raw.get(kind), list)
        ),
        None,
    )
    if kind is None or set(raw) - {kind, "log", "step"}:
        return None
    values, log, step = tuple(raw[kind]), bool(raw.get("log")), raw.get("step")
    if kind != "choice":
        numbers = len(values) == 2 and all(isinstance(value, (int, float)) for value in values)
        if not numbers or values[0] > values[1] or (log and (values[0] <= 0 or step)):
            return None
    return Distribution(kind, values, log, step) if values else None


def _change(spec: Spec, change: str, problems: list[str]) -> None:
    """Set one key for the whole sweep, wherever it was set before."""
    key, separator, value = change.partition("=")
    key = key.strip()
    if not separator:
        problems.append(f"--set: expected KEY=VALUE, found '{change}'")
        return
    parsed = parse_yaml(value)
    held = [grid for grid in spec.grids if key in grid]
    for grid in held:
        grid[key] = parsed if isinstance(parsed, list) else [parsed]
    if not held:
        if isinstance(parsed, list) and not key.startswith("config."):
            problems.append(f"--set: {key} is not in the grid, so it takes one value, not {parsed}")
        spec.base[key] = parsed


def _key_problem(key: str) -> str:
    """Why a key cannot be set, or ''."""
    if str(key).startswith("config."):
        whole = key in ("config.scheduler", "config.specaug")  # null switches the section off
        return "" if whole or str(key).count(".") >= 2 else f"{key}: expected config.SECTION.KEY"
    flags = [action.dest for action in build_parser()._actions]
    if key in OWN_FLAGS:
        return f"{key}: a sweep sets this itself"
    if key not in flags:
        return f"unknown key '{key}': expected a flag of run_downstream or config.SECTION.KEY.{did_you_mean(key, flags)}"
    return ""


def expand(spec: Spec, drawn: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every combination of the grids on top of base (and of a search's drawn values), less what a cell does not read.

    The same cell may come twice; `plan.resolve_all` keeps one of each.
    """
    cells = []
    for grid in spec.grids or [{}]:
        for values in itertools.product(*grid.values()):
            cells.append(
                _read_keys({**spec.base, **dict(zip(grid, values, strict=True)), **(drawn or {})})
            )
    return cells


def _read_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those of sections that this cell leaves unread."""
    featurizer = settings.get("featurizer") or "varan"
    trained = settings.get("lora") or settings.get("upstream_trainable")
    unread = {f"config.{name}." for name in FEATURIZERS if name != featurizer}
    if not settings.get("lora"):
        unread.add("config.lora.")
    if not trained:
        unread.add("config.upstream.")
    return {key: value for key, value in settings.items() if not key.startswith(tuple(unread))}
