"""Run a sweep with local workers until nothing is left of it. Ctrl-C and SIGTERM lose nothing.

A worker is a process that runs cells, one after the other: torch is imported once, not once a cell.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path

from s3prl_varan.errors import UserError
from s3prl_varan.files import RESULT, STATUS
from s3prl_varan.sweep.cells import RETRIES, Look, State, Work, locked, read_state, write_state
from s3prl_varan.sweep.progress import Progress
from s3prl_varan.sweep.spec import Cell

BEAT = 5.0  # seconds between looks at the folders
PATIENCE = 20.0  # seconds that interrupted cells have to stop before they are killed
IDLE = 1.0  # seconds between looks for cells that others may drop
GLANCE = 0.2  # seconds between looks at a cell that may be pruned
OVER, INTERRUPTED = 0, 3  # exit statuses of workers: nothing is left to run; told to end
Run = Callable[[list[str]], None]  # an experiment of these flags; from a module's top


def run_experiment(argv: list[str]) -> None:
    """Run one experiment in this process."""
    from accelerate.state import AcceleratorState

    from s3prl_varan.app.cli import parse_args
    from s3prl_varan.app.run import run

    AcceleratorState._reset_state(reset_partial_state=True)  # it holds the last cell's precision
    run(parse_args(argv))


def run_sweep(
    work: Work,
    *,
    workers: int = 1,
    run: Run = run_experiment,
    gpus: Sequence[str] = (),
    wait: bool = True,
) -> int:
    """Until all is done (0), something was given up (1) or it was interrupted (130).

    wait: workers stay while others run the last cells, to take over should they be killed.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress, context = Progress(work), multiprocessing.get_context("spawn")
    running: dict[int, BaseProcess | None] = dict.fromkeys(range(workers))
    starts_left = workers + (2 + RETRIES) * work.total  # beyond, it cannot be for the cells
    try:
        while running:
            for number, process in list(running.items()):
                status = process.exitcode if process else INTERRUPTED
                if status == OVER:
                    del running[number]
                elif status is not None:  # not begun yet, or killed
                    if status == 1 or not starts_left:
                        raise RuntimeError(f"a worker ended with exit status {status}, see above")
                    starts_left -= 1
                    args = (work, run, wait, _environment(number, workers, gpus))
                    running[number] = process = context.Process(target=be_worker, args=args)
                    process.start()
            progress.show()
            wait_for([process.sentinel for process in running.values() if process], BEAT)
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, the same command goes on", file=sys.stderr)
        return 130
    finally:
        _stop()
        signal.signal(signal.SIGTERM, before)
        progress.show()
        progress.bar.close()
    failures = [f"failed: {line}" for line in work.failures()]
    if failures:
        failures.append(
            f"{len(failures)} failed; see log.txt in their folders, then --retry_failed"
        )
        print("\n".join(failures), file=sys.stderr)
    return int(bool(failures))


def _stop() -> None:
    """Interrupt the cells of workers that still run, and wait until they have ended."""
    processes = multiprocessing.active_children()
    for process in processes:
        os.kill(process.pid or 0, signal.SIGINT)
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()


def _environment(number: int, workers: int, gpus: Sequence[str]) -> dict[str, str]:
    """What a worker sets before anything heavy is imported: its share of the cores, its GPU."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    wanted = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,  # MKL would take all cores
        "TQDM_MININTERVAL": "30",  # seconds: a log is no terminal
    }
    gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
    return {key: os.environ.get(key, value) for key, value in wanted.items()} | gpu


def be_worker(work: Work, run: Run, wait: bool, environment: dict[str, str]) -> None:
    """Run cells in this process of its own, then exit.

    Until none is left or, without `wait`, until others are at all that are left. SIGINT and SIGTERM
    interrupt the cell and end the process, which also ends when the one that started it does.
    """
    os.setsid()  # Ctrl-C in a terminal reaches who started us, who passes it on
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = Worker(work, run)
    while not worker.stopping:
        found = worker.run_next()
        if found == "nothing" or (found == "busy" and not wait):
            sys.exit(OVER)
        if found == "busy":
            time.sleep(IDLE)
    sys.exit(INTERRUPTED)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(INTERRUPTED)  # nobody is told: the cell may be given to others


class Worker:
    """Runs cells, and lets signals interrupt them, nothing else.

    SIGINT and SIGTERM set `stopping`; SIGUSR1 is the worker's own and sets `pruned`.
    """

    def __init__(self, work: Work, run: Run) -> None:
        self.work, self.run = work, run
        self.stopping = self.pruned = self.in_cell = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._received)

    def run_next(self) -> str:
        """Run the first cell that nobody is at: ran | busy, where there is none | nothing left."""
        found = "nothing"
        for cell, poor in self.work.open_cells():
            with locked(self.work.folder / cell.id) as mine:
                if mine:
                    self._run_cell(cell, self.work.folder / cell.id, poor)
                    return "ran"
            found = "busy"
        return found

    def _run_cell(self, cell: Cell, folder: Path, poor: Look | None) -> None:
        """Run a cell, unless it was done meanwhile, and write in its folder how it ended."""
        state = read_state(folder)
        crashes = state.crashes + (state.status == "started")  # nobody is at it: a killed one
        if not state.open:
            return
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
            self.run(argv)
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
