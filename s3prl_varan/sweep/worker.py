"""A worker: a thread that claims work from the study and a child process that runs its cells, one after the other."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState

from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic
from s3prl_varan.report.cells import STATUS, read_metrics
from s3prl_varan.sweep.plan import PlannedCell, planned_steps
from s3prl_varan.sweep.study import SharedStudy

TICK = 0.2  # seconds between looks at a running cell
PATIENCE = 20.0  # seconds an interrupted cell has to stop before its process is killed
ENTRY = "s3prl_varan.sweep.child:run_cell"
CELLS_PER_CHILD = 100  # then a fresh process, should memory leak


@dataclass
class Outcome:
    """How one cell ended."""

    end: str  # done | crashed | user_error | interrupted | pruned | lost
    message: str = ""
    dev: float | None = None  # best dev figure of a finished cell
    seconds: float = 0.0  # of this run; 0 where the result was there already


class Child:
    """The process. Started on first use, replaced after a crash."""

    def __init__(self, entry: str, environment: dict[str, str]):
        self.entry, self.environment = entry, environment
        self.process: subprocess.Popen | None = None
        self.answers: queue.Queue[dict | None] = queue.Queue()
        self.cells = 0

    def send(self, argv: list[str], folder: Path) -> None:
        """Have it run a cell."""
        if self.process is None or self.process.poll() is not None or self.cells >= CELLS_PER_CHILD:
            self.stop()
            self._start()
        assert self.process is not None and self.process.stdin is not None
        self.cells += 1
        self.process.stdin.write(json.dumps({"argv": argv, "folder": str(folder)}) + "\n")
        self.process.stdin.flush()

    def _start(self) -> None:
        self.cells, self.answers = 0, queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s3prl_varan.sweep.child", self.entry],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        threading.Thread(
            target=self._listen, args=(self.process, self.answers), daemon=True
        ).start()

    @staticmethod
    def _listen(process: subprocess.Popen, answers: "queue.Queue[dict | None]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(json.loads(line))
        answers.put(None)

    def interrupt(self) -> None:
        """Ask the cell to stop; its process goes on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """End the process."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except OSError:
                pass
        self.process = None


class Worker(threading.Thread):
    """Claims and runs until the study is over or `stopping` is set.

    cells_of: a trial's cells, in order. prune: let the study's pruner stop a search's poor draws.
    """

    def __init__(
        self,
        shared: SharedStudy,
        cells_of: Callable[[Trial], list[PlannedCell]],
        folder: Path,
        child: Child,
        stopping: threading.Event,
        finished: Callable[[PlannedCell, Outcome], None],
        *,
        prune: bool = False,
        wait: bool = True,
    ):
        super().__init__(daemon=True)
        self.shared, self.cells_of, self.folder, self.child = shared, cells_of, folder, child
        self.stopping, self.finished, self.prune, self.wait = stopping, finished, prune, wait
        self.reported: dict[int, set[int]] = {}  # trial -> steps its pruner knows of
        self.error: BaseException | None = None

    def run(self) -> None:
        """The thread."""
        try:
            while not self.stopping.is_set():
                trial = self.shared.claim()
                if trial is not None:
                    self._work(trial)
                elif not self.wait or self.shared.over():
                    break
                else:
                    self.stopping.wait(1.0)
        except BaseException as error:  # noqa: BLE001 (shown by the main thread)
            self.error = error
        finally:
            self.child.stop()

    def _work(self, trial: Trial) -> None:
        figures: list[float] = []
        try:
            cells = self.cells_of(trial)
        except UserError as error:  # values that do not go together
            self.shared.finish(trial, TrialState.FAIL, "user_error", message=str(error))
            return
        for cell in cells:
            outcome = self.run_cell(cell, trial, figures)
            self.finished(cell, outcome)
            if outcome.end != "done":
                self._conclude(trial, cell, outcome)
                return
            figures.append(outcome.dev if outcome.dev is not None else float("nan"))
        self.shared.finish(trial, TrialState.COMPLETE, "done", sum(figures) / len(figures))

    def _conclude(self, trial: Trial, cell: PlannedCell, outcome: Outcome) -> None:
        """A piece of work that did not come to its end: tell the study, leave a note in the cell's folder where it stays so."""
        if outcome.end in ("interrupted", "lost"):
            self.shared.finish(trial, TrialState.FAIL, "released")
            return
        if outcome.end == "pruned":
            self._note(cell, "pruned", "stopped by the search's pruner")
            self.shared.finish(trial, TrialState.PRUNED, "pruned")
            return
        if outcome.end == "user_error" or self.shared.gives_up(trial):
            self._note(cell, "failed", outcome.message)
        self.shared.finish(trial, TrialState.FAIL, outcome.end, message=outcome.message)

    def _note(self, cell: PlannedCell, status: str, note: str) -> None:
        content = {"status": status, "note": note, "args": cell.args, "config": cell.config}
        write_atomic(self.folder / cell.id / STATUS, json.dumps(content, default=str) + "\n")

    def run_cell(self, cell: PlannedCell, trial: Trial, before: list[float]) -> Outcome:
        """Run a cell in the child, unless its result is there already; `before`: dev figures of the trial's earlier cells."""
        folder = self.folder / cell.id
        if (folder / "result.json").is_file():
            return Outcome("done", dev=_dev_figure(folder))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATUS).unlink(missing_ok=True)
        started = time.monotonic()
        shared_features = (
            ["--cache", str(self.folder / "features")]
            if cell.settings.get("cache") == "auto"
            else []
        )
        self.child.send(
            [*cell.argv, *shared_features, "--expdir", str(folder), "--auto_resume"], folder
        )
        asked: tuple[str, float] | None = None  # why the cell was asked to stop, and when
        while True:
            try:
                answer = self.child.answers.get(timeout=TICK)
                break
            except queue.Empty:
                asked = asked or self._reason_to_stop(cell, trial, folder, before)
                if asked is not None and time.monotonic() - asked[1] > PATIENCE:
                    self.child.stop()
        outcome = self._outcome(answer, asked)
        if outcome.end == "done":
            if not (folder / "result.json").is_file():
                return Outcome("crashed", "ended without a result.json")
            for states in folder.glob("states-*.ckpt"):  # to resume from; dev-best.ckpt stays
                states.unlink()
            outcome.dev, outcome.seconds = _dev_figure(folder), time.monotonic() - started
        return outcome

    def _reason_to_stop(
        self, cell: PlannedCell, trial: Trial, folder: Path, before: list[float]
    ) -> tuple[str, float] | None:
        reason = None
        if self.stopping.is_set():
            reason = "interrupted"
        elif trial.number in self.shared.lost:
            reason = "lost"
        elif self.prune and self._poor(cell, trial, folder, before):
            reason = "pruned"
        if reason is None:
            return None
        self.child.interrupt()
        return reason, time.monotonic()

    def _poor(self, cell: PlannedCell, trial: Trial, folder: Path, before: list[float]) -> bool:
        """Report the dev figures so far to the study and ask its pruner. A trial's cells count on one axis of steps."""
        total = planned_steps(cell.config)
        if trial.number not in self.reported:
            self.reported = {trial.number: set()}
        known = self.reported[trial.number]
        for row in read_metrics(folder):
            step = len(before) * total + int(row.get("step", 0))
            if (
                str(row.get("split", "")).startswith("dev")
                and cell.metric in row
                and step not in known
            ):
                known.add(step)
                trial.report((sum(before) + row[cell.metric]) / (len(before) + 1), step)
        return bool(known) and trial.should_prune()

    @staticmethod
    def _outcome(answer: dict[str, Any] | None, asked: tuple[str, float] | None) -> Outcome:
        if answer is not None and answer["end"] == "done":
            return Outcome("done")
        if asked is not None:
            return Outcome(asked[0])
        if answer is None:
            return Outcome("crashed", "the process that ran it was killed or died")
        if answer["end"] == "interrupted":
            return Outcome("crashed", "interrupted from outside")
        return Outcome(answer["end"], answer["message"])


def _dev_figure(folder: Path) -> float | None:
    """The best dev figure of a finished cell."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return (result.get("dev") or {}).get(result.get("metric"))


def child_environment(number: int, workers: int, gpus: list[str]) -> dict[str, str]:
    """The child's environment: its share of the cores, its GPU, and this package importable."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    environment = dict(os.environ)
    threads = environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    environment.setdefault(
        "MKL_NUM_THREADS", threads
    )  # MKL would take all cores, and wait for the others' work
    environment.setdefault("TQDM_MININTERVAL", "30")  # seconds: a log is no terminal
    package_parent = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (package_parent, environment.get("PYTHONPATH")))
    )
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environment
