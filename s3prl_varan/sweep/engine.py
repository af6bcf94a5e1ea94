"""Run a sweep with local workers until nothing is left of it. Ctrl-C and SIGTERM lose nothing."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

from s3prl_varan.sweep import worker
from s3prl_varan.sweep.folder import RETRIES
from s3prl_varan.sweep.progress import Progress
from s3prl_varan.sweep.work import Work

BEAT = 5.0  # seconds between looks at the folders
PATIENCE = 20.0  # seconds that interrupted cells have to stop before they are killed


def run_sweep(
    work: Work,
    *,
    workers: int = 1,
    entry: str = worker.ENTRY,
    gpus: Sequence[str] = (),
    wait: bool = True,
) -> int:
    """Until all is done (0), something was given up (1) or it was interrupted (130).

    wait: workers stay while others run the last cells, to take over should they be killed.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Progress(work)
    try:
        _keep_running(work, progress, workers, entry, gpus, wait)
    except KeyboardInterrupt:
        _stop()
        print("interrupted: finished cells are kept, the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.show()
        progress.bar.close()
    failures = work.failures()
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    if failures:
        told = f"{len(failures)} failed; see log.txt in their folders, then --retry_failed"
        print(told, file=sys.stderr)
    return int(bool(failures))


def _keep_running(
    work: Work, progress: Progress, workers: int, entry: str, gpus: Sequence[str], wait: bool
) -> None:
    """Start workers, and others for those that are killed, until they find nothing left to do."""
    context = multiprocessing.get_context("spawn")

    def start(number: int) -> BaseProcess:
        args = (work, entry, wait, _environment(number, workers, gpus))
        process = context.Process(target=worker.main, args=args)
        process.start()
        return process

    running = {number: start(number) for number in range(workers)}
    starts_left = (2 + RETRIES) * work.total  # beyond, it cannot be for the cells
    next_beat = 0.0
    while running:
        for number, process in list(running.items()):
            status = process.exitcode
            if status == worker.OVER:
                del running[number]
            elif status is not None and (status == 1 or not starts_left):
                _stop()
                raise RuntimeError(f"a worker ended with exit status {status}, see above")
            elif status is not None:
                starts_left -= 1
                running[number] = start(number)
        if time.monotonic() >= next_beat:
            progress.show()
            next_beat = time.monotonic() + BEAT
        time.sleep(0.1)


def _stop() -> None:
    """Interrupt the workers' cells, and wait until they have ended."""
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
    environment = {key: os.environ.get(key, value) for key, value in wanted.items()}
    return environment | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
