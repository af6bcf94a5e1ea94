"""`run_downstream.py --folds all`: the folds of a corpus one after another, and their average."""

import copy
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from s3prl_varan.app import experiment
from s3prl_varan.config import reading as configs
from s3prl_varan.config.identity import cell_id
from s3prl_varan.config.options import CALL_FLAGS
from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.files import write_atomic
from s3prl_varan.tasks.registry import find_task
from s3prl_varan.training.results import figures_table

SUMMARY = "summary.json"


def run_folds(args: Namespace) -> Path:
    """Train on every fold that --folds names, each in a folder below one parent; print and write mean and spread there.

    With -a a fold that is finished is not run again. Returns the path of the summary. Raises UserError, before the first fold
    is started, for what any of them lacks.
    """
    if args.mode != "train" or args.past_exp:
        raise UserError(
            "--folds trains a model on each fold: leave out -m and -e. Evaluate a fold by -e PARENT/FOLD."
        )
    if args.downstream_variant:
        raise UserError(f"--folds {args.folds} and -v {args.downstream_variant}: give one of them.")
    runs = {fold: _fold_args(args, fold) for fold in fold_names(args)}
    parent = _parent(args)
    for fold, one in runs.items():
        one.expdir, one.expname = str(parent / fold), None
    wanted = {fold: _checked(one) for fold, one in runs.items()}
    for fold, one in runs.items():
        if not _finished(one, wanted[fold]):
            print(f"==== {fold}", flush=True)
            experiment.run(one)
    if int(os.environ.get("RANK", "0")):
        return parent / SUMMARY  # one process sums up
    return write_summary(parent, list(runs))


def fold_names(args: Namespace) -> list[str]:
    """What --folds means: a list with commas, or `all` that the prepared corpus has. UserError where there is none."""
    raw, _ = _config(_fold_args(args, None))
    folder = Path(((raw.get("downstream_expert") or {}).get("datarc") or {}).get("meta_data") or "")
    if find_task(args.downstream).default_fold is None:
        raise UserError(f"--folds: downstream '{args.downstream}' has no folds.")
    there = sorted(
        (
            path.name.replace("Session", "fold")
            for path in folder.glob("Session*")
            if (path / "train_meta_data.json").is_file()
        ),
        key=lambda name: (len(name), name),
    )
    if not there:
        raise UserError(
            f"--folds: no Session*/train_meta_data.json in {folder}. Prepare the corpus with run/prepare_data.py."
        )
    if args.folds == "all":
        return there
    asked = [name.strip() for name in args.folds.split(",") if name.strip()]
    for name in asked:
        if name not in there:
            raise UserError(
                f"--folds: no {name} in {folder}, there are {', '.join(there)}.{did_you_mean(name, there)}"
            )
    return asked


def _fold_args(args: Namespace, fold: str | None) -> Namespace:
    one = copy.deepcopy(args)
    one.folds, one.downstream_variant = None, fold
    return one


def _config(args: Namespace) -> tuple[dict[str, Any], str]:
    raw, origin = experiment.fresh_config(args)
    experiment.apply_overrides(args, raw)
    return raw, origin


def _parent(args: Namespace) -> Path:
    """-p or -n name the parent; else the usual name, without a fold."""
    if args.expdir or args.expname:
        return experiment.experiment_folder(args)
    return experiment.experiment_folder(_fold_args(args, "folds"))


def _checked(args: Namespace) -> str:
    """Check flags, config and data of a fold without starting it; the identity of the run."""
    one = copy.deepcopy(args)
    raw, origin = _config(one)
    if ((raw.get("downstream_expert") or {}).get("datarc") or {}).get("test_fold"):
        raise UserError(
            f"--folds: {origin} sets downstream_expert.datarc.test_fold, which is one fold: make it null."
        )
    experiment.check_flags(one)
    checked = configs.check_config(
        raw, one.featurizer, experiment.shipped_reference(one.downstream), origin
    )
    experiment.check_splits(one, checked)
    task = find_task(one.downstream)
    task.check_data(
        raw["downstream_expert"], one.downstream_variant, experiment.splits_used(one, checked, task)
    )
    return cell_id(
        {name: value for name, value in vars(one).items() if name not in CALL_FLAGS}, raw
    )


def _finished(args: Namespace, wanted: str) -> bool:
    """With -a: is the fold done already? UserError where what is there was run with other settings."""
    path = Path(args.expdir) / "result.json"
    if not args.auto_resume or not path.is_file():
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    if cell_id(result["args"], result["config"]) != wanted:
        raise UserError(
            f"{args.expdir} was run with other flags or another config: choose another folder with -n or -p."
        )
    print(f"==== {args.downstream_variant}: done before")
    return True


def write_summary(parent: Path, folds: list[str]) -> Path:
    """Average the result.json of PARENT/FOLD, print the table, write PARENT/summary.json."""
    results = {
        fold: json.loads((parent / fold / "result.json").read_text(encoding="utf-8"))
        for fold in folds
    }
    first = results[folds[0]]
    summary: dict[str, Any] = {
        **{
            key: first[key]
            for key in (
                "upstream",
                "downstream",
                "featurizer",
                "tuning",
                "seed",
                "metric",
                "higher_is_better",
            )
        },
        "folds": {fold: result["test"] for fold, result in results.items()},
        "mean": {},
        "std": {},
        "experiments": {fold: str(parent / fold) for fold in folds},
    }
    for split, figures in first["test"].items():
        values = {
            name: np.array([result["test"][split][name] for result in results.values()])
            for name in figures
        }
        summary["mean"][split] = {name: float(held.mean()) for name, held in values.items()}
        summary["std"][split] = {
            name: float(held.std(ddof=1)) if len(held) > 1 else None
            for name, held in values.items()
        }
        rows = {f"{fold} {split}": result["test"][split] for fold, result in results.items()}
        rows[f"mean {split}"] = summary["mean"][split]
        if len(folds) > 1:
            rows[f"std {split}"] = summary["std"][split]
        print(figures_table(rows))
    path = parent / SUMMARY
    write_atomic(path, json.dumps(summary, indent=2) + "\n")
    print(f"summary: {path}")
    return path
