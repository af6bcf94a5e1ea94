"""The sections of the benchmark: each measures and gives rows, plain dictionaries of one table."""

import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from benchmark.cases import FEATURIZERS, TASKS, Case, Step, build_step, timed_run
from benchmark.measure import CLOCKS, RETURN_MEMORY, in_process, in_turns, ratio
from benchmark.tasks import write_noise

Row = dict[str, Any]
CLIPS = 64  # of the noise that whole runs are trained on
RUN_DOWNSTREAM = Path(__file__).resolve().parents[1] / "run_downstream.py"


def milliseconds(times: list[float]) -> Row:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "median_ms": 1e3 * middle,
        "q1_ms": 1e3 * low,
        "q3_ms": 1e3 * high,
        "repeats": len(times),
    }


def cases(args: Namespace, featurizer: str) -> Iterator[tuple[Row, Case]]:
    """Every upstream, tuning and task asked for: what a table shows of it, and the case."""
    for upstream, tuning, task in product(args.geometries, args.tunings, TASKS):
        shown = {"geometry": upstream, "tuning": tuning, "task": task}
        size = {"batch": args.batch, "seconds": args.seconds}
        case = Case(upstream, tuning, task, featurizer, **size, device=args.device)
        yield {**shown, **size}, case


def built(case: Case, featurizers: tuple[str, ...]) -> dict[str, Step]:
    """A step of each featurizer, on one shared upstream."""
    steps: dict[str, Step] = {}
    upstream: Any = None
    for name in featurizers:
        steps[name] = build_step(replace(case, featurizer=name), upstream)
        upstream = steps[name].model.upstream
    return steps


def steps(args: Namespace) -> Iterator[Row]:
    """Step time of every featurizer, in turns."""
    for shown, case in cases(args, "varan"):
        found = built(case, FEATURIZERS)
        times = in_turns(found, args.repeats, device=args.device, clock=args.clock)
        for name, taken in times.items():
            against = ratio(taken, times["weighted_sum"])
            yield {
                **shown,
                "featurizer": name,
                **milliseconds(taken),
                "per_weighted_sum": against,
            }


def memory(args: Namespace) -> Iterator[Row]:
    """Peak memory of a step, each in a process of its own."""
    for shown, case in cases(args, "varan"):
        peaks = {}
        for name in FEATURIZERS:
            child = asdict(replace(case, featurizer=name))
            peaks[name] = in_process("memory_of", child, args.threads, RETURN_MEMORY)
        for name, peak in peaks.items():
            against = peak["peak_mb"] / peaks["weighted_sum"]["peak_mb"]
            yield {**shown, "featurizer": name, **peak, "per_weighted_sum": against}


def growth(args: Namespace) -> Iterator[Row]:
    """Forward and backward of all that follows the upstream.

    With dropout in the head and without, without and with the gradient for the upstream.
    """
    base = {"num_layers": 12, "frames": 200, "batch": 16}
    varied: dict[str, tuple[int, ...]] = {
        "num_layers": (4, 24),
        "frames": (50, 400),
        "batch": (1, 4, 32),
    }
    if args.quick:
        base, varied = {"num_layers": 3, "frames": 20, "batch": 2}, {"num_layers": (4,)}
    sizes = [{**base, name: value} for name, values in varied.items() for value in values]
    runs = [(base, 0.1, "frozen"), (base, 0.0, "frozen"), (base, 0.1, "full")]
    runs += [(size, 0.1, "frozen") for size in sizes]
    for task, (size, dropout, tuning) in product(TASKS, runs):
        upstream = f"{size['num_layers']}x{32 if args.quick else 768}"
        seconds = size["frames"] / 50
        case = Case(upstream, tuning, task, "", size["batch"], seconds, dropout, device=args.device)
        # Frames are not pooled for CTC.
        pooled = () if task == "ctc" else ("plain_pooled",)
        found = built(case, ("weighted_sum", "varan", "plain", *pooled))
        calls = {name: step.gradients for name, step in found.items()}
        times = in_turns(calls, args.repeats, device=args.device, clock=args.clock)
        shown = {"task": task, **size, "dropout": dropout, "upstream_gradient": tuning == "full"}
        for name, taken in times.items():
            faster = 1 / ratio(taken, times["plain"])
            yield {**shown, "heads": name, **milliseconds(taken), "faster_than_plain": faster}


def precision(args: Namespace) -> Iterator[Row]:
    """VARAN's step in float32, halves and compiled; compiling happens in the first two steps."""
    variants: dict[str, Row] = {"fp32": {}, "bf16": {"precision": "bf16"}}
    if args.device != "cpu":
        variants["fp16"] = {"precision": "fp16"}
    if not args.quick:  # it compiles for minutes
        variants["fp32 compiled"] = {"compiled": True}
        variants["bf16 compiled"] = {"precision": "bf16", "compiled": True}
    for shown, case in cases(args, "varan"):
        found: dict[str, Step] = {}
        notes = {}
        for name, options in variants.items():
            try:
                step = build_step(replace(case, **options))  # compiling changes the upstream
                first = in_turns({name: step}, 2, device=args.device, warm_up=0)[name]
                found[name], notes[name] = step, f"{sum(first):.1f} s"
            except Exception as error:  # no compiler, an operation that this type lacks, ...
                said = next(iter(str(error).splitlines()), type(error).__name__)
                notes[name] = f"failed: {said[:150]}"
        times = in_turns(found, args.repeats, device=args.device, clock=args.clock, warm_up=0)
        for name, note in notes.items():
            taken = times.get(name, [float("nan")] * args.repeats)
            against = ratio(taken, times["fp32"]) if "fp32" in times else float("nan")
            turns = len(times.get(name, ()))
            figures = {**milliseconds(taken), "repeats": turns, "per_fp32": against}
            yield {**shown, "variant": name, **figures, "first_two_steps": note}


def epochs(args: Namespace) -> Iterator[Row]:
    """Epochs with a frozen upstream: without the feature cache, while it fills, and later."""
    per_epoch = -(-CLIPS // args.batch)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_noise(root, CLIPS, (2.5, 5.0))
        for upstream, featurizer in product(args.geometries, ("weighted_sum", "varan")):
            case = Case(upstream, "frozen", "er", featurizer, args.batch, 0, device=args.device)
            argv = case.argv("-p", f"{root}/run", "--overwrite", root=root)

            def seconds(count: int, *flags: str, argv: list[str] = argv) -> list[float]:
                marks = timed_run([*argv, *flags], count * per_epoch, CLOCKS[args.clock])
                return [after - before for before, after in pairwise(marks[::per_epoch])]

            [plain] = seconds(1)
            first, *later = seconds(1 + args.repeats, "--cache", f"{root}/cache-{featurizer}")
            kinds = {
                "uncached": plain,
                "first cached": first,
                "later cached": statistics.median(later),
            }
            shown = {"geometry": upstream, "featurizer": featurizer, "batch": args.batch}
            for kind, taken in kinds.items():
                faster = plain / taken
                yield {**shown, "epoch": kind, "seconds": taken, "faster_than_uncached": faster}


def startup(args: Namespace) -> Iterator[Row]:
    """Wall time of --help, and of a new process up to the end of its first training step."""
    command = [sys.executable, str(RUN_DOWNSTREAM), "--help"]
    [times] = in_turns(
        {"": lambda: subprocess.run(command, capture_output=True, check=True)}, args.repeats
    ).values()
    yield {"what": "--help", "seconds": statistics.median(times)}
    with tempfile.TemporaryDirectory() as root:
        write_noise(Path(root), CLIPS, (0.5, 1.0))
        for upstream in args.geometries:
            case = Case(upstream, "frozen", "er", "varan", 4, 0, device=args.device)
            argv = case.argv("-p", f"{root}/run", "--overwrite", root=root)
            times = []
            for _ in range(min(3, args.repeats)):
                started = time.time()
                times.append(in_process("first_step", argv, args.threads, {}) - started)
            what = f"first step, {upstream}, {CLIPS} clips"
            yield {"what": what, "seconds": statistics.median(times)}


SECTIONS: dict[str, Callable[[Namespace], Iterator[Row]]] = {
    "startup": startup,
    "steps": steps,
    "memory": memory,
    "growth": growth,
    "epochs": epochs,
    "precision": precision,
}
