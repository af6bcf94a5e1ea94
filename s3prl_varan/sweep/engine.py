"""Run a sweep's cells on local workers until the study they share with others is over. Ctrl-C and SIGTERM lose nothing."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import Trial
from tqdm import tqdm

from s3prl_varan.sweep.plan import Costs, PlannedCell, planned_steps, readable_time, varied_settings
from s3prl_varan.sweep.study import SharedStudy
from s3prl_varan.sweep.worker import ENTRY, Child, Outcome, Worker, child_environment


class Engine:
    """Workers, progress and the watch over other machines' workers. `cells`: those of a grid; empty for a search."""

    def __init__(
        self,
        shared: SharedStudy,
        cells: list[PlannedCell],
        folder: Path,
        *,
        workers: int = 1,
        entry: str = ENTRY,
        gpus: list[str] | None = None,
        cells_of: Callable[[Trial], list[PlannedCell]] | None = None,
        prune: bool = False,
        wait: bool = True,
    ):
        self.shared, self.folder = shared, folder
        self.by_id = {cell.id: cell for cell in cells}
        self.shown = varied_settings(cells)
        self.stopping = threading.Event()
        self.costs = Costs()
        self.costs.read(folder)
        self.ran = 0
        self.bar = tqdm(
            total=shared.tally().total,
            desc="sweep",
            unit="cell",
            dynamic_ncols=True,
            bar_format=_BAR,
        )
        find = cells_of or (lambda trial: [self.by_id[trial.user_attrs["key"]]])
        self.workers = [
            Worker(
                shared,
                find,
                folder,
                Child(entry, child_environment(number, workers, gpus or [])),
                self.stopping,
                self._finished,
                prune=prune,
                wait=wait,
            )
            for number in range(workers)
        ]

    def run(self) -> int:
        """Until all is done (0), something was given up (1) or it was interrupted (130)."""
        with _signals(self.stopping):
            for worker in self.workers:
                worker.start()
            beat, next_beat = max(0.2, self.shared.stale / 6), 0.0
            while any(worker.is_alive() for worker in self.workers):
                if time.monotonic() >= next_beat:
                    self.shared.tend()
                    self._show()
                    next_beat = time.monotonic() + beat
                time.sleep(0.1)
        self._show()
        self.bar.close()
        for worker in self.workers:
            if worker.error is not None:
                raise worker.error
        if self.stopping.is_set():
            print(
                "interrupted: finished cells are kept, the same command goes on from here",
                file=sys.stderr,
            )
            return 130
        self._point_out_missing()
        return self._failures()

    def _point_out_missing(self) -> None:
        done = self.shared.done_keys()
        missing = [
            key
            for key in self.by_id
            if key in done and not (self.folder / key / "result.json").is_file()
        ]
        if missing:
            print(
                f"{len(missing)} cells are done by the study's book and have no result in {self.folder}: "
                f"{', '.join(missing[:5])}. Were they run on another machine's disk? "
                "If you deleted them to run them again, delete the study too.",
                file=sys.stderr,
            )

    def _failures(self) -> int:
        failures = self.shared.failures()
        for key, message in failures.items():
            print(
                f"failed: {self.folder / key} {self._describe(key)}: {message.splitlines()[0]}",
                file=sys.stderr,
            )
        if failures:
            print(
                f"{len(failures)} failed; see log.txt in their folders, then --retry_failed",
                file=sys.stderr,
            )
        return 1 if failures else 0

    def _describe(self, key: str) -> str:
        return ", ".join(
            f"{name.removeprefix('config.')}={value}"
            for name, value in self.shown.get(key, {}).items()
        )

    def _finished(self, cell: PlannedCell, outcome: Outcome) -> None:
        """Called by the workers."""
        self.ran += outcome.seconds > 0
        if outcome.end == "done" and outcome.seconds:
            self.costs.add(cell.args, planned_steps(cell.config), outcome.seconds)
        if outcome.seconds or outcome.end not in ("done", "interrupted"):
            figure = f" dev {cell.metric} {outcome.dev:.2f}" if outcome.dev is not None else ""
            first = f" ({outcome.message.splitlines()[0]})" if outcome.message else ""
            self.bar.write(
                f"{cell.id} {outcome.end}{figure} {readable_time(outcome.seconds)} {self._describe(cell.id)}{first}"
            )

    def _show(self) -> None:
        tally = self.shared.tally()
        self.bar.n = tally.done + tally.pruned + tally.failed
        parts = [f"{tally.running} running"]
        parts += [f"{tally.pruned} pruned"] * bool(tally.pruned) + [
            f"{tally.failed} failed"
        ] * bool(tally.failed)
        left = self._seconds_left(tally.total - self.bar.n)
        parts.append(f"ETA {readable_time(None if left is None else left / max(1, tally.running))}")
        self.bar.set_postfix_str(", ".join(parts))

    def _seconds_left(self, left: int) -> float | None:
        """Work left in the whole study, on one worker."""
        missing = [
            cell
            for cell in self.by_id.values()
            if not (self.folder / cell.id / "result.json").is_file()
        ]
        known = [self.costs.seconds(cell) for cell in missing]
        if not left:
            return 0.0
        if missing and all(seconds is not None for seconds in known):
            return sum(filter(None, known)) * min(
                1.0, left / len(missing)
            )  # fewer are left than missing: others' disks
        return None


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}{postfix}]"


@contextmanager
def _signals(stopping: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the event; a second one has the usual effect."""
    before: dict[int, Any] = {}

    def stop(number: int, _frame: object) -> None:
        stopping.set()
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[int(number)] = signal.signal(number, stop)
    try:
        yield
    finally:
        for key, handler in before.items():
            signal.signal(key, handler)


def cell_status(folder: Path) -> str:
    """done | failed | pruned | started | -"""
    if (folder / "result.json").is_file():
        return "done"
    if (folder / "status.json").is_file():
        return json.loads((folder / "status.json").read_text(encoding="utf-8"))["status"]
    return "started" if (folder / "config.yaml").is_file() else "-"
