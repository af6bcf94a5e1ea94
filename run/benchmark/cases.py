"""What is timed: a training step on noise, and whole runs.

All that the benchmark asks of s3prl_varan.app and training is here.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.measure import peak_memory
from benchmark.plain import PlainVaran
from s3prl_varan.app.build import build_model
from s3prl_varan.app.cli import parse_args
from s3prl_varan.app.run import run
from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.config.resolve import resolve
from s3prl_varan.training.compiled import compile_model
from s3prl_varan.training.loop import Trainer

HERE = Path(__file__).parent
TASKS = {"er": f"{HERE}/tasks.py:Labels", "ctc": f"{HERE}/tasks.py:Symbols"}
TUNINGS = {"frozen": (), "lora": ("--lora",), "full": ("--upstream_trainable",)}
FEATURIZERS = ("last_layer", "weighted_sum", "varan", "plain")


@dataclass(frozen=True)
class Case:
    """One line of the table; also the arguments of a child process."""

    upstream: str  # a name of upstreams.noise
    tuning: str
    task: str
    featurizer: str  # -f, or plain, plain_pooled: VARAN as a loop over layers
    batch: int
    seconds: float
    head_dropout: float = 0.1  # as in the shipped configs
    precision: str = "fp32"
    compiled: bool = False
    device: str = "cpu"

    def argv(self, *flags: str, root: str | Path = "") -> list[str]:
        """The command line of run_downstream.py; root: the folder of the clips."""
        datarc = "config.downstream_expert.datarc"
        settings = {
            "config.heads.dropout": self.head_dropout,
            f"{datarc}.root": root or '""',
            f"{datarc}.train_batch_size": self.batch,
        }
        override = ",,".join(f"{key}={value}" for key, value in settings.items())
        featurizer = "varan" if self.featurizer.startswith("plain") else self.featurizer
        source = ("-u", f"{HERE}/upstreams.py:noise", "-k", self.upstream)
        names = ("-d", TASKS[self.task], "-f", featurizer, "--device", self.device)
        return [*source, *names, *TUNINGS[self.tuning], "-o", override, *flags]


@dataclass
class Step:
    """A training step that can be repeated."""

    case: Case
    model: nn.Module
    wavs: list[Tensor]
    targets: Any
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.trained = [each for each in self.model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        if self.case.compiled:
            compile_model(self.model)

    def gradients(self) -> Tensor:
        """Forward and backward; the loss."""
        self.optimizer.zero_grad()
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.case.precision)
        with torch.autocast(self.case.device, half, enabled=half is not None):
            step = self.model(self.wavs, self.targets)
        loss = step if isinstance(self.model, PlainVaran) else step.terms.loss
        loss.backward()
        return loss.detach()

    def __call__(self) -> float:
        """Gradients, clipping, optimizer; the loss."""
        loss = self.gradients()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return float(loss)


def build_step(case: Case, upstream: nn.Module | None = None) -> Step:
    """The step of a case; several may share the upstream of one of the same size and tuning."""
    settings = resolve(parse_args(case.argv()))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        model: Any = build_model(settings)
    if upstream is not None:
        model.upstream = upstream
    if case.featurizer.startswith("plain"):
        trains = model.trains_upstream
        model = PlainVaran(model, pool_first=case.featurizer == "plain_pooled").train()
        model.upstream.train(trains)
    model.to(case.device)
    samples = round(SAMPLE_RATE * case.seconds)
    wavs = [0.1 * torch.randn(samples, device=case.device) for _ in range(case.batch)]
    targets = [settings.task.draw(case.seconds) for _ in range(case.batch)]
    return Step(case, model, wavs, settings.task.collate(targets).to(case.device))


def memory_of(case: dict[str, Any]) -> dict[str, float]:
    """Peak memory of a Case's step, for a process of its own."""
    return peak_memory(build_step(Case(**case)), case["device"])


class _Enough(Exception):
    """Ends a run after its last timed step."""


def timed_run(argv: list[str], steps: int, clock: Callable[[], float]) -> list[float]:
    """Carry out a run up to `steps` optimizer steps: readings before the first and after each."""
    readings: list[float] = []
    original = Trainer._step

    def step(self: Trainer, *args: Any) -> Any:
        readings.extend([] if readings else [clock()])
        result = original(self, *args)
        readings.append(clock())
        if len(readings) > steps:
            raise _Enough
        return result

    Trainer._step = step  # type: ignore[method-assign]
    try:
        with open(os.devnull, "w") as nowhere, contextlib.suppress(_Enough):
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                run(parse_args(argv))
    finally:
        Trainer._step = original  # type: ignore[method-assign]
    return readings


def first_step(argv: list[str]) -> float:
    """The time of day at the end of a run's first step."""
    return timed_run(argv, 1, time.time)[-1]
