"""`run_downstream.py --folds all`: the folds of a corpus one after another, and their average."""

import copy
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd

from s3prl_varan.app.run import RESULTS, named_folder, run
from s3prl_varan.config.resolve import resolve
from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.files import RESULT, read_json, write_atomic
from s3prl_varan.training.artifacts import figures_table, finite_json

SUMMARY = "summary.json"
SHARED = ("upstream", "downstream", "featurizer", "tuning", "seed", "metric", "higher_is_better")


def run_folds(args: Namespace) -> Path:
    """Train on every fold that --folds names, each in a folder below one parent, and average.

    With -a a fold that is finished is not run again. Returns the path of the summary. Raises
    UserError, before the first fold is started, for what any of them lacks.
    """
    if args.mode != "train" or args.past_exp:
        raise UserError(
            "--folds trains a model on each fold: leave out -m and -e. Evaluate a fold by "
            "-e PARENT/FOLD."
        )
    if args.downstream_variant:
        raise UserError(f"--folds {args.folds} and -v {args.downstream_variant}: give one of them.")
    parent = _parent(args)
    runs = {fold: _one_fold(args, fold, parent / fold) for fold in fold_names(args)}
    for fold in [fold for fold, one in runs.items() if not _finished(one)]:
        print(f"==== {fold}", flush=True)
        run(runs[fold])
    if int(os.environ.get("RANK", "0")):
        return parent / SUMMARY  # one process sums up
    return write_summary(parent, list(runs))


def fold_names(args: Namespace) -> list[str]:
    """What --folds means: a list with commas, or `all` that the prepared corpus has.

    Raises UserError where there is none of a name, or none at all.
    """
    there = resolve(_one_fold(args, None)).task.folds()
    if not there:
        raise UserError(
            f"--folds: no folds of '{args.downstream}' found. Where it has some, the corpus must "
            "be prepared first (run/prepare_data.py) and the config must say where."
        )
    if args.folds == "all":
        return there
    asked = [name.strip() for name in args.folds.split(",") if name.strip()]
    for name in asked:
        if name not in there:
            hint = did_you_mean(name, there)
            raise UserError(f"--folds: no {name}, there are {', '.join(there)}.{hint}")
    return asked


def _one_fold(args: Namespace, fold: str | None, folder: Path | None = None) -> Namespace:
    one = copy.deepcopy(args)
    one.folds, one.downstream_variant = None, fold
    if folder is not None:
        one.expdir, one.expname = str(folder), None
    return one


def _parent(args: Namespace) -> Path:
    """-p or -n name the parent; else the usual name, without a fold."""
    return named_folder(args) or RESULTS / resolve(_one_fold(args, "folds")).folder_name


def _finished(args: Namespace) -> bool:
    """With -a: is the fold done already? Its settings and corpus are checked in any case.

    Raises UserError where they are not right, or what is there was run with others.
    """
    fold, settings = args.downstream_variant, resolve(args)
    found = settings.stored()["task"]["fold"]
    if found != fold:
        raise UserError(
            f"--folds: the config sets the fold itself, {found}, so that {fold} cannot be run: "
            "leave that to --folds."
        )
    settings.check_corpus()
    path = Path(args.expdir) / RESULT
    if not args.auto_resume or not path.is_file():
        return False
    if read_json(path).get("id") != settings.id:
        raise UserError(
            f"{args.expdir} was run with other flags or another config (or by version 0.1): "
            "choose another folder with -n or -p."
        )
    print(f"==== {fold}: done before")
    return True


def write_summary(parent: Path, folds: list[str]) -> Path:
    """Average the result.json of PARENT/FOLD, print the table, write PARENT/summary.json."""
    results = {fold: read_json(parent / fold / RESULT) for fold in folds}
    first = results[folds[0]]
    summary: dict[str, Any] = {
        **{key: first[key] for key in SHARED},
        "folds": {fold: result["test"] for fold, result in results.items()},
        "mean": {},
        "std": {},
        "experiments": {fold: str(parent / fold) for fold in folds},
    }
    for split in first["test"]:
        table = pd.DataFrame(
            {fold: one["test"][split] for fold, one in results.items()}, dtype=float
        )
        mean, std = table.mean(axis=1), table.std(axis=1)  # std: NaN for a single fold
        summary["mean"][split], summary["std"][split] = mean.to_dict(), std.to_dict()
        rows = {**table, "mean": mean, **({"std": std} if len(folds) > 1 else {})}
        print(figures_table({f"{name} {split}": dict(row) for name, row in rows.items()}))
    path = parent / SUMMARY
    write_atomic(path, json.dumps(finite_json(summary), indent=2) + "\n")
    print(f"summary: {path}")
    return path
