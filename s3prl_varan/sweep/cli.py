"""Command line of run/sweep.py."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError

EPILOG = """examples:
  sweep.py downstream_configs/sweeps/featurizers.yaml --set upstream=wavlm --dry_run
  sweep.py downstream_configs/sweeps/featurizers.yaml --set upstream=wavlm --workers 2
  sweep.py my_sweep.yaml --storage postgresql://user@host/optuna --workers 1     on each of many machines

Start the same command on as many machines as you like: they share the study, no cell runs twice, and what a killed one was at
is done by another. Interrupt with Ctrl-C; the same command goes on. `report.py result/sweeps/NAME` makes the tables.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        description="Run the experiments that a YAML file declares: a grid, or a search with Optuna.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP.yaml")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="local processes, which share the cores (default 1)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="a folder per cell goes in there (default: result/sweeps/NAME)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the sweep; repeat at will",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna storage to share (default: a journal file in the folder)",
    )
    parser.add_argument(
        "--gpus", default="", metavar="0,1", help="give each worker one of these GPUs"
    )
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="list the cells and what they will cost, run nothing",
    )
    parser.add_argument(
        "--print_worker",
        "--print-worker",
        action="store_true",
        help="print the command of one worker, for SLURM",
    )
    parser.add_argument(
        "--retry_failed", action="store_true", help="try once more what was given up"
    )
    parser.add_argument(
        "--no_wait",
        action="store_true",
        help="end when no cell is left to start, though others still run some",
    )
    parser.add_argument(
        "--stale",
        type=float,
        default=60.0,
        metavar="S",
        help="a worker silent for so long is dead (default 60 s)",
    )
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 all done, 1 some cells failed, 2 a mistake in the input, 130 interrupted."""
    args = build_parser().parse_args(argv)
    try:
        return _sweep(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _sweep(args: argparse.Namespace) -> int:
    from s3prl_varan.sweep.plan import check_corpora, resolve_spec, write_plan
    from s3prl_varan.sweep.spec import read_spec

    if args.workers < 1:
        raise UserError(f"--workers: expected 1 or more, found {args.workers}.")
    spec = read_spec(Path(args.sweep), args.set)
    folder = Path(args.out or Path("result/sweeps") / spec.name)
    if args.print_worker:
        print(worker_command(args, folder))
        return 0
    cells = resolve_spec(spec, args.sweep)
    if args.dry_run:
        print(listing(cells, folder, args.workers, spec.trials))
        return 0
    check_corpora(cells)
    folder.mkdir(parents=True, exist_ok=True)
    if not spec.space:
        write_plan(cells, folder / f"{spec.name}.plan.json")
    return _run(args, spec, cells, folder)


def _run(args: argparse.Namespace, spec: Any, cells: list, folder: Path) -> int:
    try:
        from s3prl_varan.sweep.engine import Engine
        from s3prl_varan.sweep.study import SharedStudy, key_of, open_study
    except ModuleNotFoundError as error:
        raise UserError(f"Sweeps need {error.name}: pip install 's3prl_varan[sweep]'.") from error
    search = bool(spec.space)
    # A changed sweep is another study; what its cells share with the earlier one is found in their folders.
    name = f"{spec.name}-{key_of(sorted(cell.id for cell in cells))}"
    study = open_study(
        args.storage or str(folder / f"{spec.name}.journal"), name, cells[0].higher_is_better, spec
    )
    shared = SharedStudy(study, [] if search else [cell.id for cell in cells], spec, args.stale)
    if args.retry_failed:
        print(f"trying {shared.retry_failed()} failed again")
    engine = Engine(
        shared,
        [] if search else cells,
        folder,
        workers=args.workers,
        gpus=[gpu for gpu in args.gpus.split(",") if gpu],
        cells_of=_drawn_cells(shared, spec, args.sweep) if search else None,
        prune=search and spec.pruner != "none",
        wait=not args.no_wait,
        **({"entry": args.entry} if args.entry else {}),
    )
    code = engine.run()
    print(f"report: python run/report.py {folder}")
    if search and code == 0:
        _print_best(study)
    return code


def _drawn_cells(shared: Any, spec: Any, source: str) -> Any:
    from s3prl_varan.sweep.plan import resolve_all
    from s3prl_varan.sweep.spec import expand

    return lambda trial: resolve_all(expand(spec, shared.draw(trial)), source)


def _print_best(study: Any) -> None:
    if any(trial.value is not None for trial in study.trials):
        drawn = ", ".join(f"{key}={value}" for key, value in study.best_trial.params.items())
        print(f"best on dev: {study.best_value:.2f} with {drawn}")


def worker_command(args: argparse.Namespace, folder: Path) -> str:
    """A command line that runs one worker from anywhere, and how to hand it to SLURM."""
    script = Path(__file__).resolve().parents[2] / "run" / "sweep.py"
    words = [
        sys.executable,
        str(script),
        str(Path(args.sweep).resolve()),
        "--out",
        str(folder.resolve()),
        "--workers",
        "1",
    ]
    for change in args.set:
        words += ["--set", change]
    if args.storage:
        words += ["--storage", args.storage]
    command = shlex.join([*words, "--no_wait"])
    return f"{command}\n# SLURM, 8 workers: sbatch --array=0-7 --gpus=1 --requeue --wrap {shlex.quote(command)}"


def listing(cells: list, folder: Path, workers: int, trials: int) -> str:
    """The cells with their state and estimated cost, and the total."""
    from s3prl_varan.sweep.plan import Costs, readable_time, varied_settings

    costs = Costs()
    costs.read(folder)
    varied, lines, left = varied_settings(cells), [], []
    for cell in cells:
        done = (folder / cell.id / "result.json").is_file()
        seconds = 0.0 if done else costs.seconds(cell)
        left.append(seconds)
        shown = ", ".join(
            f"{key.removeprefix('config.')}={value}" for key, value in varied[cell.id].items()
        )
        lines.append(f"{cell.id}  {'done' if done else readable_time(seconds):>10}  {shown}")
    if trials:
        lines.append(f"a search of {trials} draws; above are cells at the ends of its space")
        return "\n".join(lines)
    waiting = [seconds for seconds in left if seconds != 0.0]
    known = [seconds for seconds in waiting if seconds is not None]
    total = (
        readable_time(sum(known) / workers)
        if len(known) == len(waiting)
        else "unknown until a first cell has run"
    )
    lines.append(
        f"{len(cells)} cells, {len(cells) - len(waiting)} done; the rest on {workers} worker(s): {total}"
    )
    return "\n".join(lines)
