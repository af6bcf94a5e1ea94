"""The process that runs cells, one after the other: torch is imported once, not once per cell."""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from s3prl_varan.errors import UserError
from s3prl_varan.files import RESULT, STATUS
from s3prl_varan.sweep.folder import RETRIES, State, locked, read_state, write_state
from s3prl_varan.sweep.plan import Cell
from s3prl_varan.sweep.work import Look, Work

ENTRY = "s3prl_varan.sweep.worker:run_experiment"
CELLS = 100  # then it is time for a fresh process, should memory leak
OVER, RESTART = 0, 3  # exit statuses: nothing is left to run; a fresh process is wanted
IDLE = 1.0  # seconds between looks for cells that others may drop
GLANCE = 0.2  # seconds between looks at a cell that may be pruned


def run_experiment(argv: list[str]) -> None:
    """Run one experiment in this process."""
    from accelerate.state import AcceleratorState

    from s3prl_varan.app.cli import parse_args
    from s3prl_varan.app.run import run

    AcceleratorState._reset_state(reset_partial_state=True)  # it holds the last cell's precision
    run(parse_args(argv))


def main(work: Work, entry: str, wait: bool, environment: dict[str, str]) -> None:
    """Run cells with `entry`, a MODULE:FUNCTION, in this process of its own, then exit.

    Until none is left or, without `wait`, until others are at all that are left. SIGINT and SIGTERM
    interrupt the cell and end the process, which also ends when the one that started it does.
    """
    os.setsid()  # Ctrl-C in a terminal reaches who started us, who passes it on
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = entry.partition(":")
    worker = Worker(work, getattr(importlib.import_module(module), name))
    ran = 0
    while ran < CELLS and not worker.stopping:
        found = worker.run_next()
        ran += found == "ran"
        if found == "nothing" or (found == "busy" and not wait):
            sys.exit(OVER)
        if found == "busy":
            time.sleep(IDLE)
    sys.exit(RESTART)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(RESTART)  # nobody is told: the cell may be given to others


class Worker:
    """Runs cells by `function`, and lets signals interrupt them, nothing else.

    SIGINT and SIGTERM set `stopping`; SIGUSR1 is the worker's own and sets `pruned`.
    """

    def __init__(self, work: Work, function: Callable[[list[str]], None]) -> None:
        self.work, self.function = work, function
        self.stopping = self.pruned = self.in_cell = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._received)

    def run_next(self) -> str:
        """Run the first cell that nobody is at: ran | busy, where there is none | nothing left."""
        found = "nothing"
        for cell, poor in self.work.open_cells():
            if self.run_cell(cell, poor):
                return "ran"
            found = "busy"
        return found

    def run_cell(self, cell: Cell, poor: Look | None) -> bool:
        """Run a cell and write in its folder how it ended; False where somebody is at it.

        poor: a look at the running cell that says whether to prune it.
        """
        folder = self.work.folder / cell.id
        with locked(folder) as mine:
            state = read_state(folder)
            if not mine or not state.open:
                return mine
            crashes = state.crashes + (state.status == "started")  # nobody is at it: a killed one
            if crashes > RETRIES:
                state = State("failed", crashes, "the process that ran it was killed or died")
            else:
                write_state(folder, State("started", crashes), cell.stored)
                with _output_to(folder / "log.txt"), self._pruning(poor):
                    state = self._outcome(cell, folder, crashes)
            if read_state(folder).status == "done":
                for path in (folder / STATUS, *folder.glob("states-*.ckpt")):  # not dev-best.ckpt
                    path.unlink(missing_ok=True)
            else:
                write_state(folder, state, cell.stored)
        return True

    def _outcome(self, cell: Cell, folder: Path, crashes: int) -> State:
        """Run a cell; where it stands then."""
        argv = [*cell.argv, "--expdir", str(folder), "--auto_resume"]
        if cell.keys.get("cache") == "auto":  # one for all cells
            argv += ["--cache", str(self.work.folder / "features")]
        try:
            self._interruptibly(argv)
            if not (folder / RESULT).is_file():
                raise RuntimeError(f"ended without a {RESULT}")
            return State("done")
        except KeyboardInterrupt:
            return State("pruned" if self.pruned and not self.stopping else "waiting", crashes)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return State("failed", crashes, str(error))
        except BaseException as error:  # noqa: BLE001 (whatever it was, it is tried once more)
            traceback.print_exc()
            status = "failed" if crashes >= RETRIES else "waiting"
            return State(status, crashes + 1, f"{type(error).__name__}: {error}")

    def _interruptibly(self, argv: list[str]) -> None:
        try:
            self.in_cell, self.pruned = True, False
            if self.stopping:
                raise KeyboardInterrupt
            self.function(argv)
        finally:
            self.in_cell = False

    def _received(self, number: int, _frame: object) -> None:
        self.pruned |= number == signal.SIGUSR1
        self.stopping |= number != signal.SIGUSR1
        if self.in_cell:
            self.in_cell = False
            raise KeyboardInterrupt

    @contextmanager
    def _pruning(self, poor: Look | None) -> Iterator[None]:
        """Meanwhile, interrupt the cell once `poor` says so."""
        over, main_thread = threading.Event(), threading.get_ident()

        def watch() -> None:
            while poor is not None and not over.wait(GLANCE):
                if poor():
                    return signal.pthread_kill(main_thread, signal.SIGUSR1)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield
        over.set()
        watcher.join()


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """All output of this process, C code's too, goes to a file meanwhile."""
    kept = [(number, os.dup(number)) for number in (1, 2)]
    with open(path, "a") as file:
        for number, _ in kept:
            os.dup2(file.fileno(), number)
    yield
    sys.stdout.flush()
    sys.stderr.flush()
    for number, before in kept:
        os.dup2(before, number)
        os.close(before)
