"""Whole runs on a corpus of noise: epochs with and without the feature cache, and the time to the first step."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s3prl_varan.benchmark.measure import CLOCKS


class _Enough(Exception):
    """Ends a run after its last timed step."""


def noise_corpus(root: Path, actors: int, seconds: tuple[float, float] = (2.5, 5.0)) -> Path:
    """Noise in RAVDESS's layout, 8 clips per actor (at least 8 actors), prepared; its lengths are about RAVDESS's."""
    import numpy as np
    import soundfile

    from s3prl_varan.corpora.ravdess import prepare_ravdess

    generator = np.random.default_rng(0)
    for actor in range(1, actors + 1):
        folder = root / f"Actor_{actor:02d}"
        folder.mkdir(parents=True)
        for emotion in range(1, 9):
            wave = 0.1 * generator.standard_normal(int(16000 * generator.uniform(*seconds)))
            soundfile.write(
                folder / f"03-01-{emotion:02d}-01-01-01-{actor:02d}.wav",
                wave.astype("float32"),
                16000,
            )
    prepare_ravdess(root)
    return root


def arguments(
    corpus: Path, expdir: Path, upstream: str, featurizer: str, batch: int, *flags: str
) -> list[str]:
    """Command line of run_downstream.py that trains on the corpus without ever evaluating."""
    settings = {
        "config.downstream_expert.datarc.root": corpus,
        "config.downstream_expert.datarc.meta_data": corpus / "meta_data",
        "config.downstream_expert.datarc.train_batch_size": batch,
        "config.runner.gradient_accumulate_steps": 1,
        "config.runner.total_steps": 10**6,
        "config.runner.eval_step": 10**6,
        "config.runner.save_step": 10**6,
        "config.runner.log_step": 10**6,
    }
    override = ",,".join(f"{key}={value}" for key, value in settings.items())
    return [
        "-u",
        upstream,
        "-d",
        "emotion",
        "-f",
        featurizer,
        "-p",
        str(expdir),
        "--overwrite",
        "-o",
        override,
        *flags,
    ]


@contextlib.contextmanager
def timed_steps(limit: Callable[[int], int], clock: str) -> Iterator[list[float]]:
    """Clock readings before the first and after every optimizer step of the runs inside; `limit(steps an epoch)` ends them."""
    from s3prl_varan.training.runner import Runner

    original = Runner._step
    readings: list[float] = []
    left: list[int] = []

    def step(
        self: Any,
        wrapped: Any,
        optimizer: Any,
        scheduler: Any,
        stream: Any,
        records: Any,
        number: int,
    ) -> Any:
        if not readings:
            data = self.model.downstream.expert.get_dataloader(self.config.runner.train_dataloader)
            left.append(limit(len(data)))
            readings.append(CLOCKS[clock]())
        result = original(self, wrapped, optimizer, scheduler, stream, records, number)
        readings.append(CLOCKS[clock]())
        left[0] -= 1
        if left[0] == 0:
            raise _Enough
        return result

    Runner._step = step  # type: ignore[method-assign, assignment]
    try:
        yield readings
    finally:
        Runner._step = original  # type: ignore[method-assign]


def epoch_seconds(argv: list[str], epochs: int, clock: str) -> list[float]:
    """Seconds of every epoch of a run: loading, features, step, log."""
    from s3prl_varan.app.cli import parse_args
    from s3prl_varan.app.experiment import run

    per_epoch = [0]

    def limit(steps: int) -> int:
        per_epoch[0] = steps
        return steps * epochs

    with (
        timed_steps(limit, clock) as readings,
        contextlib.suppress(_Enough),
        open(os.devnull, "w") as nowhere,
    ):
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            run(parse_args(argv))
    marks = readings[:: per_epoch[0]]
    return [after - before for before, after in zip(marks[:-1], marks[1:], strict=True)]


def first_step_seconds(argv: list[str], threads: int) -> float:
    """Wall time from the start of a new process to the end of its first training step."""
    root = Path(__file__).resolve().parents[2]  # of a clone that is not installed
    started = time.time()
    command = [sys.executable, "-m", "s3prl_varan.benchmark.epochs", str(threads), *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the first step could not be timed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1]) - started


def help_seconds(threads: int) -> float:
    """Wall time of `run_downstream.py --help`."""
    code = "import sys; from s3prl_varan.app.cli import main; main(['--help'])"
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=root, check=True, env=environment
    )
    return time.perf_counter() - started


def _first_step(argv: list[str]) -> None:
    from s3prl_varan.app.cli import parse_args
    from s3prl_varan.app.experiment import run

    with timed_steps(lambda steps: 1, "wall"), contextlib.suppress(_Enough):
        run(parse_args(argv))
    print(time.time())


if __name__ == "__main__":
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    _first_step(sys.argv[2:])
