"""Command line of run/sweep.py."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from s3prl_varan.errors import UserError

EPILOG = """examples:
  sweep.py downstream_configs/sweeps/featurizers.yaml --set upstream=wavlm --dry_run
  sweep.py downstream_configs/sweeps/featurizers.yaml --set upstream=wavlm --workers 2
  sweep.py my_sweep.yaml --out /shared/my_sweep --workers 1      on each of many machines

Start the same command on as many machines as you like, with one folder on a file system that they
share: no cell runs twice, and what a killed one was at is done by another. Interrupt with Ctrl-C;
the same command goes on. `report.py result/sweeps/NAME` makes the tables.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        description="Run the experiments of a YAML file: a grid, or a search with Optuna.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sweep", metavar="SWEEP.yaml")
    add(
        "--workers", type=int, default=1, metavar="N", help="local processes, which share the cores"
    )
    add("--out", metavar="DIR", help="a folder per cell goes there (default: result/sweeps/NAME)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key; repeatable")
    add("--storage", metavar="URL", help="where Optuna keeps the draws of a search (default: DIR)")
    add("--gpus", default="", metavar="0,1", help="give each worker one of these GPUs")
    add("--dry_run", "--dry-run", action="store_true", help="list cells and costs, run nothing")
    add("--print_worker", "--print-worker", action="store_true", help="one worker, for SLURM")
    add("--retry_failed", action="store_true", help="try once more what was given up")
    add("--no_wait", action="store_true", help="end when others are at all cells that are left")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 all done, 1 some cells failed, 2 a mistake in the input, 130 interrupted."""
    args = build_parser().parse_args(argv)
    try:
        return _sweep(args, sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _sweep(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from s3prl_varan.sweep.cells import Work, locked
    from s3prl_varan.sweep.engine import run_sweep
    from s3prl_varan.sweep.progress import listing
    from s3prl_varan.sweep.spec import check_corpora, plan_sweep, read_spec, write_plan

    if args.workers < 1:
        raise UserError(f"--workers: expected 1 or more, found {args.workers}.")
    spec = read_spec(Path(args.sweep), args.set)
    if args.storage and spec.search is None:
        raise UserError("--storage keeps the draws of a search, and this sweep is a grid.")
    if args.print_worker:
        print(worker_command(argv))
        return 0
    folder = Path(args.out or Path("result/sweeps") / spec.name)
    cells = plan_sweep(spec, args.sweep)
    work = Work(folder, cells)
    if spec.search is not None:
        from s3prl_varan.sweep.search import Search

        work = Search(folder, cells, spec, args.storage)
    if args.dry_run:
        print(listing(work, args.workers))
        return 0
    check_corpora(cells)
    with locked(folder):
        pass  # or there are no locks, which is better said before a cell starts
    if spec.search is None:
        write_plan(cells, folder, spec.name)
    if args.retry_failed:
        print(f"trying {work.retry_failed()} failed again")
    gpus = [gpu for gpu in args.gpus.split(",") if gpu]
    code = run_sweep(work, workers=args.workers, gpus=gpus, wait=not args.no_wait)
    print(f"report: python run/report.py {folder}")
    if code == 0 and work.best():
        print(work.best())
    return code


def worker_command(argv: Sequence[str]) -> str:
    """This command as one worker's, which can be given anywhere, and how to hand it to SLURM."""
    script = Path(__file__).resolve().parents[2] / "run" / "sweep.py"
    kept = [word for word in argv if not word.startswith("--p")]  # print_worker, maybe cut short
    worker = [sys.executable, str(script), *kept, "--workers", "1", "--no_wait"]
    command = f"cd {shlex.quote(os.getcwd())} && {shlex.join(worker)}"
    batch = "sbatch --array=0-7 --gpus=1 --requeue --wrap"
    return f"{command}\n# SLURM, 8 workers: {batch} {shlex.quote(command)}"
