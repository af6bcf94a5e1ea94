"""Stand-ins for experiments: they write what the runner writes, quickly, and count their runs."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from s3prl_varan.errors import UserError
from s3prl_varan.sweep.cells import Work
from s3prl_varan.sweep.engine import run_sweep
from s3prl_varan.sweep.spec import Cell


def fake_cells(seeds: list[int], steps: int = 10, **flags: object) -> list[Cell]:
    """A cell for each seed."""
    task = {"name": "fake", "metric": "acc", "higher_is_better": True, "fold": None, "corpus": "x"}
    stored = {"task": task, "config": {"runner": {"total_steps": steps}}, "settings": {"a": 1}}
    args = {"upstream": "fake", "downstream": "fake", "featurizer": "varan", **flags}
    return [
        Cell(
            f"cell{seed:03}",
            ("--seed", str(seed)),
            {"seed": seed},
            {"id": f"cell{seed:03}", **stored, "args": {**args, "seed": seed}},
        )
        for seed in seeds
    ]


def fake_sweep(folder: Path, cells: list[Cell], workers: int = 1) -> int:
    """Run them as a grid."""
    return run_sweep(Work(folder, cells), workers=workers, run=quick)


def quick(argv: list[str]) -> None:
    """An experiment of FAKE_SECONDS; `--seed N` decides its figures, and for some its fate."""
    flags = {key: value for key, value in zip(argv, argv[1:], strict=False) if key[:2] == "--"}
    folder, seed = Path(flags["--expdir"]), int(flags["--seed"])
    with open(folder / "runs.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
    runs = len((folder / "runs.txt").read_text().splitlines())
    print(f"hello from seed {seed}, {os.environ['OMP_NUM_THREADS']} threads")
    print(f"optuna is loaded: {'optuna' in sys.modules}")
    if seed == 101 and runs == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 102:
        raise RuntimeError("always broken")
    if seed == 103:
        raise UserError("a mistake in the input")
    if seed == 104:
        os.kill(os.getpid(), signal.SIGKILL)
    for step in range(10):
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "split": "dev", "acc": 50.0 - seed + step}) + "\n")
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0.1")) / 10)
    with open(folder / "ended.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
    result = {"dev": {"acc": 59.0 - seed}, "metric": "acc", "steps": 10, "seconds": 0.1}
    (folder / "states-10.ckpt").touch()
    (folder / "result.json").write_text(json.dumps(result))
