"""The process that runs cells: stays alive, so that torch and s3prl are imported once, not once per cell.

Started by a worker as `python -m s3prl_varan.sweep.child MODULE:FUNCTION`. Takes {"argv": [...], "folder": DIR} a line on stdin,
runs FUNCTION(argv) with all output going to DIR/log.txt, answers {"end": "done" | "user_error" | "crashed" | "interrupted",
"message": ...} a line on stdout. SIGINT interrupts the cell, not the process. It ends when its stdin does: whoever started it is
gone, and the cell may be given to another.
"""

import fcntl
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def run_cell(argv: list[str]) -> None:
    """Run one experiment in this process."""
    from accelerate.state import AcceleratorState

    from s3prl_varan.app.cli import parse_args
    from s3prl_varan.app.experiment import run

    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # it holds the precision of the cell before
    run(parse_args(argv))


def load_entry(entry: str) -> Callable[[list[str]], None]:
    """MODULE:FUNCTION."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _redirect(target: str) -> None:
    """Send all output of this process, C code's too, to a file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _read_commands(stream: int, commands: "queue.Queue[dict]") -> None:
    with os.fdopen(stream, encoding="utf-8") as lines:
        for line in lines:
            commands.put(json.loads(line))
    os._exit(3)  # nobody is left to answer to


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder against any other process; wait while another holds it. The system lets go when the process dies."""
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.5)
            except OSError:
                break  # a file system without locks
        yield
    finally:
        os.close(file)


def _run(function: Callable[[list[str]], None], argv: list[str], folder: Path) -> dict[str, str]:
    from s3prl_varan.errors import UserError

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with only_one(folder):
            if not (folder / "result.json").is_file():
                function(argv)
        return {"end": "done", "message": ""}
    except KeyboardInterrupt:
        return {"end": "interrupted", "message": ""}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return {"end": "user_error", "message": str(error)}
    except BaseException as error:  # noqa: BLE001 (whatever it was, the worker decides)
        traceback.print_exc()
        return {"end": "crashed", "message": f"{type(error).__name__}: {error}"}
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    """Serve cells until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    stream = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    commands: queue.Queue[dict] = queue.Queue()
    threading.Thread(target=_read_commands, args=(stream, commands), daemon=True).start()
    function = load_entry(sys.argv[1])
    while True:
        command = commands.get()
        folder = Path(command["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        _redirect(str(folder / "log.txt"))
        answer = _run(function, command["argv"], folder)
        _redirect(os.devnull)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
