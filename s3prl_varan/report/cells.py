"""Experiment folders as cells of a comparison: what was run, on which fold and seed, what came out.

All that is known of an experiment is what its folder stores (result.json, config.yaml, or a sweep's
status.json and plan). Folders of version 0.1, which store less, are read too.
"""

import csv
import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError
from s3prl_varan.files import (
    CLIPS,
    CONFIG,
    METRICS,
    PLAN,
    RESULT,
    STATUS,
    parse_yaml,
    read_json,
    read_jsonl,
)

# A cell's place in the tables, so no setting that tells two methods apart.
PLACED = {
    *("args.upstream", "args.downstream", "args.downstream_variant", "args.featurizer"),
    *("args.lora", "args.upstream_trainable", "args.seed"),
    "config.downstream_expert.datarc.test_fold",
}
# Where an experiment of version 0.1 lay, how it was logged and how fast it went.
OLD_PLACES = {
    *("args.expdir", "args.expname", "args.config", "args.cache", "args.cache_gb"),
    *("args.cache_dir", "args.upstream_refresh", "config.runner.log_step"),
    *("config.runner.save_step", "config.runner.max_keep", "config.runner.compile"),
    *("config.downstream_expert.datarc.num_workers", "config.downstream_expert.datarc.pre_load"),
    *("config.downstream_expert.datarc.eval_batch_size", "config.upstream.gradient_checkpointing"),
}
NO_RESULT: dict[str, Any] = {"test": {}, "dev": {}, "steps": 0, "best_step": 0, "layers": []}
# Clip -> its speaker ("" where not known) and its two parts of the task's metric
Clips = dict[str, tuple[str, float, float]]


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
    title: str  # the task's, for people
    featurizer: str
    tuning: str  # frozen | lora | finetune
    fold: str  # "-" where the task has none
    seed: int
    settings: dict[str, Any]  # what else decides the outcome, flat
    metric: str
    higher_is_better: bool
    test: dict[str, dict[str, float]]  # split -> figure -> value
    dev: dict[str, float]
    steps: int
    best_step: int
    seconds: float | None
    layers: list[int]
    layer_weights: dict[str, list[float]]  # split -> mean weights
    dynamics: dict[str, dict[str, Any]]  # split -> what q knows
    submission: dict[str, str] | None  # place in SUPERB's upload -> file; None: not stored
    note: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """(fold, seed): what cells of two methods are paired on."""
        return self.fold, self.seed

    def clips(self, split: str) -> Clips:
        """What SPLIT_clips.csv says; {} where it was not written."""
        path = self.path / f"{split}{CLIPS}"
        if not path.is_file():
            return {}
        with open(path, encoding="utf-8", newline="") as file:
            return {
                row["clip"]: (row["speaker"], float(row["amount"]), float(row["of"]))
                for row in csv.DictReader(file)
            }

    @property
    def done(self) -> bool:
        """Has it a result?"""
        return self.status == "done"


def find_cells(places: Iterable[str]) -> list[Cell]:
    """All experiments in the folders (or globs of folders) named, searched to any depth.

    Raises UserError where a place holds none.
    """
    cells: dict[Path, Cell] = {}
    empty = []
    for place in places:
        roots = [Path(match) for match in sorted(glob.glob(place))]
        found = [cell for root in roots if root.is_dir() for cell in _cells_below(root)]
        if not found:
            empty.append(f"'{place}'" + ("" if roots else " (no such folder)"))
        cells.update({cell.path.resolve(): cell for cell in found})
    if empty:
        raise UserError(
            f"No experiment in {', '.join(empty)}: expected folders with a {RESULT} (or {CONFIG}, "
            "while it runs), such as result/downstream/* or a sweep's folder."
        )
    return list(cells.values())


def _cells_below(root: Path) -> list[Cell]:
    markers = (RESULT, CONFIG, STATUS)
    folders = sorted({path.parent for marker in markers for path in root.rglob(marker)})
    cells = [cell for cell in map(read_cell, folders) if cell is not None]
    known = {cell.path.resolve() for cell in cells}
    for plan in sorted(root.rglob(f"*{PLAN}")):
        planned = (
            _cell(plan.parent / one["id"], "planned", one) for one in read_json(plan)["cells"]
        )
        cells += [cell for cell in planned if cell.path.resolve() not in known]
    return cells


def read_cell(folder: Path) -> Cell | None:
    """The experiment in a folder; None where it is none (a config.yaml of something else)."""
    problem = ""
    if (folder / RESULT).is_file():
        try:
            return _cell(folder, "done", read_json(folder / RESULT))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{RESULT} cannot be read ({type(error).__name__}: {error})"
    status = read_json(folder / STATUS) if (folder / STATUS).is_file() else {}
    try:
        path = folder / CONFIG
        cell = _cell(
            folder, "unfinished", parse_yaml(path.read_text()) if path.is_file() else status
        )
    except Exception:  # noqa: BLE001 (any other YAML file of that name)
        return None
    if problem:
        cell.status = "unreadable"
    elif status.get("status") in ("failed", "pruned"):
        cell.status = status["status"]
    cell.steps = max((row.get("step", 0) for row in read_jsonl(folder / METRICS)), default=0)
    cell.note = problem or status.get("note", "")
    return cell


def _cell(folder: Path, status: str, stored: dict[str, Any]) -> Cell:
    """A cell from the blocks that every experiment stores of itself, its figures if it is done."""
    args, task = stored["args"], stored.get("task") or _old_task(stored)
    settings = stored.get("settings") or _old_settings(stored)
    upstream, ckpt = Path(str(args["upstream"])).name, args.get("upstream_ckpt")
    finetuned = "finetune" if args.get("upstream_trainable") else "frozen"
    result = stored if status == "done" else NO_RESULT
    return Cell(
        path=folder,
        status=status,
        setup=Setup(
            upstream + (f" ({Path(str(ckpt)).name})" if ckpt else ""), task["name"], task["corpus"]
        ),
        title=task.get("title") or task["name"],
        featurizer=Path(args.get("featurizer") or "varan").name,
        tuning="lora" if args.get("lora") else finetuned,
        fold=task["fold"] or "-",
        seed=int(args["seed"]),
        settings={key: value for key, value in settings.items() if key not in PLACED},
        metric=task["metric"],
        higher_is_better=task["higher_is_better"],
        test=dict(result["test"]),
        dev=dict(result["dev"] or {}),
        steps=result["steps"],
        best_step=result["best_step"],
        seconds=result.get("seconds"),
        layers=result["layers"],
        layer_weights=result.get("layer_weights", {}),
        dynamics=result.get("dynamics", {}),
        submission=result.get("submission"),
    )


def _old_task(stored: dict[str, Any]) -> dict[str, Any]:
    """The block `task`, as far as version 0.1 stored what is in it."""
    args = stored["args"]
    datarc = (stored["config"].get("downstream_expert") or {}).get("datarc") or {}
    roots = (str(one) for key, one in datarc.items() if one and key.endswith(("root", "file_path")))
    return {
        "name": args["downstream"],
        "metric": stored.get("metric", ""),
        "higher_is_better": stored.get("higher_is_better", True),
        "fold": stored.get("fold") or args.get("downstream_variant") or datarc.get("test_fold"),
        "corpus": Path(next(roots, "")).name,
    }


def _old_settings(stored: dict[str, Any]) -> dict[str, Any]:
    import pandas as pd

    (flat,) = pd.json_normalize({"args": stored["args"], "config": stored["config"]}).to_dict(
        "records"
    )
    return {
        str(key): value
        for key, value in flat.items()
        if key not in OLD_PLACES and not (str(key).startswith("args.") and value in (None, False))
    }
