"""Timing in turns, so that a drift of the machine meets all alike; child processes; memory."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# glibc hands freed memory back at once: the peak is of what is in use, not of what is kept.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def in_turns(
    steps: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    device: str = "cpu",
    clock: str = "wall",
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Seconds of every call: A B C A B C ..., after `warm_up` rounds that do not count.

    clock "cpu": processor time of all threads, which does not count the waiting while others use
    the machine.
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


def in_process(function: str, argument: Any, threads: int, environment: Mapping[str, str]) -> Any:
    """cases.NAME(argument) in a new process; argument and result are plain values."""
    call = f"print(json.dumps({function}(json.loads(sys.argv[1]))))"
    code = f"import json, sys; from benchmark.cases import {function}; {call}"
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(argument)],
        capture_output=True,
        text=True,
        env={**os.environ, **path, **environment},
    )
    if done.returncode != 0:
        said = f"{function}({argument}) ended with status {done.returncode}"
        raise RuntimeError(f"{said}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(step: Callable[[], Any], device: str) -> dict[str, float]:
    """Peak of this process in MB over two calls of `step`, and what it was before them."""
    if device != "cpu":
        import torch

        before = torch.cuda.memory_allocated() / 1e6
        torch.cuda.reset_peak_memory_stats()
        step(), step()
        return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6, "before_mb": before}
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():  # not Linux: the peak since the process began
        import resource

        step(), step()
        unit = 1e-6 if sys.platform == "darwin" else 1.024e-3
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_mb": unit * peak, "before_mb": float("nan")}
    clear.write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    step(), step()
    return {"peak_mb": _status("VmHWM"), "before_mb": before}


def _status(field: str) -> float:
    """A field of /proc/self/status in MB."""
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024 / 1e6
