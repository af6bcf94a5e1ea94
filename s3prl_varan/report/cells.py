"""Experiment folders as cells of a comparison: what was run, on which fold and seed, and what came out, if anything did."""

import glob
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_varan.config.identity import relevant_settings
from s3prl_varan.config.reading import parse_yaml
from s3prl_varan.errors import UserError

PLAN = "*.plan.json"  # a sweep's list of cells, started or not
STATUS = "status.json"  # what a sweep knows of a cell that has no result: pruned, failed
CORPUS_KEYS = ("root", "libri_root", "speech_commands_root", "file_path")
# Part of a cell's place in the tables, so no setting that tells two methods apart.
_PLACED_FLAGS = (
    "upstream",
    "downstream",
    "downstream_variant",
    "featurizer",
    "lora",
    "upstream_trainable",
    "seed",
)
PLACED = {f"args.{name}" for name in _PLACED_FLAGS}
PLACED.add("config.downstream_expert.datarc.test_fold")


@dataclass(frozen=True)
class Setup:
    """Where cells can be compared: the same upstream, task and corpus."""

    upstream: str  # name, and the checkpoint's file name where one was given
    downstream: str
    corpus: str  # folder name of the corpus

    def __str__(self) -> str:
        return " / ".join(part for part in (self.upstream, self.downstream, self.corpus) if part)


@dataclass
class Cell:
    """One experiment."""

    path: Path
    status: str  # done | unfinished | planned | failed | pruned | unreadable
    setup: Setup
    featurizer: str
    tuning: str  # frozen | lora | finetune
    fold: str  # "-" where the task has none
    seed: int
    settings: dict[str, Any]  # what else decides the outcome, flat; see relevant_settings
    metric: str = ""
    higher_is_better: bool = True
    test: dict[str, dict[str, float]] = field(default_factory=dict)  # split -> figure -> value
    dev: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    best_step: int = 0
    seconds: float | None = None
    layers: list[int] = field(default_factory=list)
    layer_weights: dict[str, list[float]] = field(
        default_factory=dict
    )  # split -> mean weight per layer
    note: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """(fold, seed): what cells of two methods are paired on."""
        return self.fold, self.seed

    @property
    def done(self) -> bool:
        """Has it a result?"""
        return self.status == "done"


def find_cells(places: Iterable[str]) -> list[Cell]:
    """All experiments in the folders (or globs of folders) named, searched to any depth; UserError where a place holds none."""
    cells: dict[Path, Cell] = {}
    empty = []
    for place in places:
        roots = [Path(match) for match in sorted(glob.glob(place))]
        found = [cell for root in roots for cell in _cells_below(root)]
        if not found:
            empty.append(f"'{place}'" + ("" if roots else " (no such folder)"))
        cells.update({cell.path.resolve(): cell for cell in found})
    if empty:
        raise UserError(
            f"No experiment in {', '.join(empty)}: expected folders with a result.json (or config.yaml, while it runs), "
            "such as result/downstream/* or a sweep's folder."
        )
    return list(cells.values())


def _cells_below(root: Path) -> list[Cell]:
    if not root.is_dir():
        return []
    markers = ("result.json", "config.yaml", STATUS)
    folders = sorted({path.parent for marker in markers for path in root.rglob(marker)})
    cells = [cell for cell in map(read_cell, folders) if cell is not None]
    known = {cell.path.resolve() for cell in cells}
    for plan in sorted(root.rglob(PLAN)):
        cells += [cell for cell in _planned(plan) if cell.path.resolve() not in known]
    return cells


def _planned(plan: Path) -> list[Cell]:
    entries = json.loads(plan.read_text(encoding="utf-8"))["cells"]
    return [
        _cell(plan.parent / entry["id"], "planned", entry["args"], entry["config"])
        for entry in entries
    ]


def read_cell(folder: Path) -> Cell | None:
    """The experiment in a folder; None where it is none (a config.yaml of something else)."""
    problem = ""
    if (folder / "result.json").is_file():
        try:
            return _done_cell(
                folder, json.loads((folder / "result.json").read_text(encoding="utf-8"))
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"result.json cannot be read ({type(error).__name__}: {error})"
    stored = _stored_settings(folder)
    if stored is None:
        return None
    status = _status(folder)
    cell = _cell(folder, "unreadable" if problem else status.get("status", "unfinished"), *stored)
    cell.steps = _last_step(folder)
    cell.note = problem or status.get("note", "")
    return cell


def _status(folder: Path) -> dict[str, Any]:
    path = folder / STATUS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _stored_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(args, config) as the runner's config.yaml or a sweep's status.json keeps them."""
    try:
        path = folder / "config.yaml"
        stored = parse_yaml(path.read_text(encoding="utf-8")) if path.is_file() else _status(folder)
        return dict(stored["args"]), dict(stored["config"])
    except Exception:  # noqa: BLE001 (any other YAML file of that name)
        return None


def _last_step(folder: Path) -> int:
    return max((row.get("step", 0) for row in read_metrics(folder)), default=0)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a line torn by a crash is passed over."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _done_cell(folder: Path, result: dict[str, Any]) -> Cell:
    cell = _cell(folder, "done", result["args"], result["config"])
    cell.featurizer, cell.tuning = result["featurizer"], result["tuning"]
    cell.fold, cell.seed = result["fold"] or "-", result["seed"]
    cell.metric, cell.higher_is_better = result["metric"], result["higher_is_better"]
    cell.test, cell.dev = dict(result["test"]), dict(result["dev"] or {})
    cell.steps, cell.best_step, cell.seconds = (
        result["steps"],
        result["best_step"],
        result.get("seconds"),
    )
    cell.layers, cell.layer_weights = result["layers"], result.get("layer_weights", {})
    return cell


def _cell(folder: Path, status: str, args: dict[str, Any], config: dict[str, Any]) -> Cell:
    datarc = (config.get("downstream_expert") or {}).get("datarc") or {}
    corpus = next((str(datarc[key]) for key in CORPUS_KEYS if datarc.get(key)), "")
    upstream, ckpt = Path(str(args.get("upstream") or "?")).name, args.get("upstream_ckpt")
    if ckpt:
        upstream += f" ({Path(str(ckpt)).name})"
    fold = (
        args.get("downstream_variant")
        or datarc.get("test_fold")
        or ("fold1" if args.get("downstream") == "emotion" else "-")
    )
    settings = {
        key: value for key, value in relevant_settings(args, config).items() if key not in PLACED
    }
    return Cell(
        path=folder,
        status=status,
        setup=Setup(upstream, args.get("downstream") or "?", Path(corpus).name),
        featurizer=args.get("featurizer") or "varan",
        tuning="lora"
        if args.get("lora")
        else "finetune"
        if args.get("upstream_trainable")
        else "frozen",
        fold=fold,
        seed=int(args.get("seed") or 0),
        settings=settings,
    )
