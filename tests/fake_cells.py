"""Stand-ins for an experiment, for tests of the sweep: they write what the runner writes, quickly, and count their runs."""

import json
import os
import signal
import time
from pathlib import Path

from s3prl_varan.errors import UserError


def _flags(argv: list[str]) -> dict[str, str]:
    return {key: value for key, value in zip(argv, argv[1:], strict=False) if key.startswith("--")}


def quick(argv: list[str]) -> None:
    """An experiment of FAKE_SECONDS; `--seed N` decides its figures, and for some seeds its fate, once or always."""
    flags = _flags(argv)
    folder, seed = Path(flags["--expdir"]), int(flags["--seed"])
    with open(folder / "runs.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
    runs = len((folder / "runs.txt").read_text().splitlines())
    print(f"hello from seed {seed}, {os.environ['OMP_NUM_THREADS']} threads")
    if seed == 101 and runs == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 102:
        raise RuntimeError("always broken")
    if seed == 103:
        raise UserError("a mistake in the input")
    for step in range(10):
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "split": "dev", "acc": 50.0 - seed + step}) + "\n")
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0.1")) / 10)
    with open(folder / "ended.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
    result = {
        "dev": {"acc": 59.0 - seed},
        "metric": "acc",
        "args": {"seed": seed},
        "steps": 10,
        "seconds": 0.1,
    }
    (folder / "result.json").write_text(json.dumps(result))
