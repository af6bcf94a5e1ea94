"""Timing in turns, so that a drift of the machine meets all alike; peak memory in processes of their own."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s3prl_varan.benchmark.cases import Case

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def in_turns(
    steps: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    device: str = "cpu",
    clock: str = "wall",
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Seconds of every call: A B C A B C ..., after `warm_up` rounds that do not count.

    clock "cpu": processor time of all threads, which does not count the waiting while others use the machine.
    """
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + repeats):
        for name, step in steps.items():
            _wait(device)
            start = now()
            step()
            _wait(device)
            if turn >= warm_up:
                times[name].append(now() - start)
    return times


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def ratio(times: list[float], reference: list[float]) -> float:
    """Median over turns of time / reference; both of a pair were taken one after the other."""
    return statistics.median(one / other for one, other in zip(times, reference, strict=True))


def peak_memory(case: Case, threads: int) -> dict[str, float]:
    """Peak of two training steps in MB, and what of it comes on top of the process before them; in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "s3prl_varan.benchmark.measure",
        json.dumps(asdict(case)),
        str(threads),
    ]
    root = Path(__file__).resolve().parents[2]  # of a clone that is not installed
    # glibc hands freed memory back at once: the peak is of what is in use, not of what an allocator happens to keep.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    environment = {**os.environ, **allocator}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, check=False, env=environment
    )
    if done.returncode != 0:
        raise RuntimeError(f"the memory of {case} could not be measured:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(case: Case) -> dict[str, float]:
    import torch

    from s3prl_varan.benchmark.cases import build_step

    step = build_step(case)
    if case.device != "cpu":
        before = torch.cuda.memory_allocated() / 1e6
        torch.cuda.reset_peak_memory_stats()
        step(), step()
        return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6, "before_mb": before}
    if not Path("/proc/self/clear_refs").exists():  # not Linux: the peak since the process began
        import resource

        step(), step()
        scale = 1.0 if sys.platform == "darwin" else 1024
        return {
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6,
            "before_mb": float("nan"),
        }
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    step(), step()
    return {"peak_mb": _status("VmHWM"), "before_mb": before}


def _status(field: str) -> float:
    """A field of /proc/self/status in MB."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024 / 1e6


if __name__ == "__main__":
    import torch

    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(_child(Case(**json.loads(sys.argv[1])))))
