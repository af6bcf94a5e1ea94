"""The sections of the benchmark: each measures and returns rows, plain dictionaries that one table shows."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from s3prl_varan.benchmark import epochs
from s3prl_varan.benchmark.cases import FEATURIZERS, TASKS, Case, Step, build_step, tuned_upstream
from s3prl_varan.benchmark.heads import HEADS, build_heads
from s3prl_varan.benchmark.measure import in_turns, peak_memory, ratio
from s3prl_varan.benchmark.upstreams import GEOMETRIES

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    geometries: tuple[str, ...]
    tunings: tuple[str, ...]
    batch: int
    seconds: float
    repeats: int
    threads: int
    clock: str
    device: str
    actors: int = 8  # of the corpus for epochs, 8 clips each
    quick: bool = False


def milliseconds(times: list[float]) -> Row:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "median_ms": 1e3 * middle,
        "q1_ms": 1e3 * low,
        "q3_ms": 1e3 * high,
        "repeats": len(times),
    }


def _combinations(settings: Settings) -> Iterator[tuple[str, str, str]]:
    return (
        (geometry, tuning, task) for geometry in settings.geometries for tuning in settings.tunings for task in TASKS
    )  # fmt: skip


def steps(settings: Settings) -> Iterator[Row]:
    """Step time of every featurizer, in turns, on one shared upstream."""
    for geometry, tuning, task in _combinations(settings):
        upstream = tuned_upstream(geometry, tuning, settings.device)
        case = Case(
            geometry, tuning, task, "", settings.batch, settings.seconds, device=settings.device
        )
        built = {name: build_step(replace(case, featurizer=name), upstream) for name in FEATURIZERS}
        times = in_turns(built, settings.repeats, device=settings.device, clock=settings.clock)
        for name, taken in times.items():
            against = ratio(taken, times["weighted_sum"])
            yield {
                **_shown(case),
                "featurizer": name,
                **milliseconds(taken),
                "per_weighted_sum": against,
            }


def memory(settings: Settings) -> Iterator[Row]:
    """Peak memory of a step, each in a process of its own."""
    for geometry, tuning, task in _combinations(settings):
        case = Case(
            geometry, tuning, task, "", settings.batch, settings.seconds, device=settings.device
        )
        found = {
            name: peak_memory(replace(case, featurizer=name), settings.threads)
            for name in FEATURIZERS
        }
        for name, peak in found.items():
            against = peak["peak_mb"] / found["weighted_sum"]["peak_mb"]
            yield {**_shown(case), "featurizer": name, **peak, "per_weighted_sum": against}


def growth(settings: Settings) -> Iterator[Row]:
    """Forward and backward of all that follows the upstream, without and with the gradient for the upstream."""
    base = {"num_layers": 12, "frames": 200, "batch": 16}
    varied = {"num_layers": (4, 24), "frames": (50, 400), "batch": (1, 4, 32)}
    if settings.quick:
        base, varied = {"num_layers": 3, "frames": 20, "batch": 2}, {"num_layers": (4,)}
    sizes = [base, *({**base, name: value} for name, values in varied.items() for value in values)]
    for task in TASKS:
        for size in sizes:
            for dropout, train_inputs in ((0.1, False), (0.0, False), (0.1, True)):
                if (dropout == 0.0 or train_inputs) and size is not base:
                    continue
                options: dict[str, Any] = {
                    "dropout": dropout,
                    "train_inputs": train_inputs,
                    "device": settings.device,
                }
                options |= {"dim": 32 if settings.quick else 768, **size}
                kinds = HEADS if task == "er" else HEADS[:-1]
                built = {kind: build_heads(kind, task, **options) for kind in kinds}
                times = in_turns(
                    built, settings.repeats, device=settings.device, clock=settings.clock
                )
                for kind, taken in times.items():
                    shown = {
                        "task": task,
                        **size,
                        "dropout": dropout,
                        "upstream_gradient": train_inputs,
                        "heads": kind,
                    }
                    yield {
                        **shown,
                        **milliseconds(taken),
                        "faster_than_plain": 1 / ratio(taken, times["plain"]),
                    }


def precision(settings: Settings) -> Iterator[Row]:
    """VARAN's step in float32, halves and compiled. The first two steps (wall time) are where compiling happens."""
    variants: dict[str, Row] = {"fp32": {}, "bf16": {"precision": "bf16"}}
    if settings.device != "cpu":
        variants["fp16"] = {"precision": "fp16"}
    if not settings.quick:  # it compiles for minutes
        variants |= {
            "fp32 compiled": {"compiled": True},
            "bf16 compiled": {"precision": "bf16", "compiled": True},
        }
    for geometry, tuning, task in _combinations(settings):
        case = Case(
            geometry,
            tuning,
            task,
            "varan",
            settings.batch,
            settings.seconds,
            device=settings.device,
        )
        built, notes = _started(
            {name: replace(case, **options) for name, options in variants.items()}
        )
        times = in_turns(
            built, settings.repeats, device=settings.device, clock=settings.clock, warm_up=0
        )
        for name in variants:
            taken = times.get(name)
            figures = {**milliseconds(taken or [float("nan")]), "repeats": len(taken or [])}
            against = ratio(taken, times["fp32"]) if taken and "fp32" in times else float("nan")
            yield {
                **_shown(case),
                "variant": name,
                **figures,
                "per_fp32": against,
                "first_two_steps": notes[name],
            }


def _started(cases: dict[str, Case]) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that run here, after two calls of each; and what those took, or why there is no such step."""
    built: dict[str, Step] = {}
    notes: dict[str, str] = {}
    for name, case in cases.items():
        try:
            step = build_step(case)  # with its own upstream: compiling changes it
            [taken, again] = in_turns({name: step}, 2, device=case.device, warm_up=0)[name]
            built[name], notes[name] = step, f"{taken + again:.1f} s"
        except Exception as error:  # no compiler, an operation that this type lacks, ...
            notes[name] = (
                "failed: " + next(iter(str(error).splitlines()), type(error).__name__)[:150]
            )
    return built, notes


def cached_epochs(settings: Settings) -> Iterator[Row]:
    """Epochs of emotion recognition with a frozen upstream: without cache, while it fills, and later."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus = epochs.noise_corpus(root / "corpus", settings.actors)
        for geometry in settings.geometries:
            for featurizer in ("weighted_sum", "varan"):
                device = () if settings.device == "cuda" else ("--device", "cpu")
                cache = ("--cache", str(root / f"cache-{featurizer}"))
                given = (
                    corpus,
                    root / "run",
                    GEOMETRIES[geometry],
                    featurizer,
                    settings.batch,
                    *device,
                )
                [plain] = epochs.epoch_seconds(epochs.arguments(*given), 1, settings.clock)
                first, *later = epochs.epoch_seconds(
                    epochs.arguments(*given, *cache), 1 + settings.repeats, settings.clock
                )
                for kind, taken in (
                    ("uncached", plain),
                    ("first cached", first),
                    ("later cached", statistics.median(later)),
                ):
                    shown = {
                        "geometry": geometry,
                        "featurizer": featurizer,
                        "batch": settings.batch,
                        "epoch": kind,
                    }
                    yield {**shown, "seconds": taken, "faster_than_uncached": plain / taken}


def startup(settings: Settings) -> Iterator[Row]:
    """Wall time of --help, and of a new process up to the end of its first training step."""
    times = [epochs.help_seconds(settings.threads) for _ in range(settings.repeats)]
    yield {"what": "--help", "seconds": statistics.median(times)}
    with tempfile.TemporaryDirectory() as folder:
        corpus = epochs.noise_corpus(Path(folder) / "corpus", 8, (0.5, 1.0))
        for geometry in settings.geometries:
            argv = epochs.arguments(
                corpus,
                Path(folder) / "run",
                GEOMETRIES[geometry],
                "varan",
                4,
                "--device",
                settings.device,
            )
            times = [
                epochs.first_step_seconds(argv, settings.threads)
                for _ in range(min(3, settings.repeats))
            ]
            yield {"what": f"first step, {geometry}, 64 clips", "seconds": statistics.median(times)}


def _shown(case: Case) -> Row:
    return {name: asdict(case)[name] for name in ("geometry", "tuning", "task", "batch", "seconds")}


SECTIONS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "startup": startup,
    "steps": steps,
    "memory": memory,
    "growth": growth,
    "epochs": cached_epochs,
    "precision": precision,
}
