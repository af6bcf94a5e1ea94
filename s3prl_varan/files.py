"""Files of experiments: written whole or not at all, read as they are meant. Imports no torch."""

import copy
import csv
import errno
import fcntl
import io
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from s3prl_varan.errors import UserError

RESULT = "result.json"  # of a finished experiment
CONFIG = "config.yaml"  # of one that was started
METRICS = "metrics.jsonl"  # a row per evaluation and per stretch of training
CLIPS = "_clips.csv"  # ends the name of a split's file: what each clip adds to the metric
STATUS = "status.json"  # what a sweep knows of an experiment that has no result
LOCK = ".lock"  # held by the process that runs an experiment
PLAN = ".plan.json"  # end of the name of a sweep's list of experiments, started or not
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, quota used up, larger than allowed


@contextmanager
def atomic_path(target: Path, needs: int = 0) -> Iterator[Path]:
    """`with atomic_path(target) as temporary:` write `temporary`; it then takes target's place.

    It lies in the same folder and has the same suffix, since some writers choose their format by
    it; it may become a file or a folder (whose target must be none yet, or an empty one). On an
    error it is removed and an earlier target stays as it was. needs: its bytes, where known.
    UserError where the disk has no room for it.
    """
    writer = f"{os.getpid()}.{threading.get_ident()}"
    temporary = target.with_name(f".{target.stem}.{writer}.tmp{target.suffix}")
    try:
        yield temporary
        _to_disk(temporary)  # else a power cut may keep the new name and lose what it names
        os.replace(temporary, target)
        _to_disk(target.parent)
    except OSError as error:
        if error.errno not in FULL:
            raise
        written = temporary.stat().st_size if temporary.is_file() else 0
        raise no_room(target, error, written, needs) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def no_room(path: Path, error: OSError, written: int, needs: int = 0) -> UserError:
    """A full disk as an error that says what to do. written, needs: bytes; 0 where not known."""
    whole = f" of {needs:,}" if needs else ""
    return UserError(
        f"{path}: no room to write it ({error.strerror}). {written:,}{whole} bytes were written, "
        "and removed again; files written before are as they were. Make space there, then give "
        "the same command again, with -a to go on with a training."
    )


def _to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's names, out of its buffers."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, where the system does not open them
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file so that readers find the old content or the new, never half of it."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path, len(data)) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Add a line, all of it or nothing; a last line that a crash cut off is ended first.

    UserError where the disk has no room for it.
    """
    with open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = size > 0 and file.read(1) != b"\n"
        rest = b"\n" * torn + line.encode() + b"\n"
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            written = file.seek(0, os.SEEK_END) - size
            file.truncate(size)
            if error.errno not in FULL:
                raise
            raise no_room(path, error, written, written + len(rest)) from error


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write several files, all or none: none takes its place before all of them are written."""
    with ExitStack() as written:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.enter_context(atomic_path(path)).write_text(text, encoding="utf-8")


_held_here: dict[Path, TextIO] = {}  # lock files that this process holds


def _let_go() -> None:
    """In a forked process, such as loads data: else it held the lock on when its parent is dead."""
    for file in _held_here.values():
        file.close()
    _held_here.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a folder's lock; yields False where another process does and `wait` is not set.

    The system lets go of it when the process ends, however it ends. A process that has it may
    enter again. Raises OSError on a file system that has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / LOCK).resolve()
    if path in _held_here:
        yield True
        return
    with open(path, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        _held_here[path] = lock
        with suppress(OSError):  # for people: it is held on a full disk too
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield True
        finally:
            if _held_here.pop(path, None) is not None:  # in a forked process it is not held
                fcntl.flock(lock, fcntl.LOCK_UN)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing; for whoever holds the folder."""
    for path in folder.glob(".*.tmp.*"):
        path.unlink(missing_ok=True)


def holder(folder: Path) -> str:
    """Who holds a folder's lock, as they wrote it there: "process 123 on HOST"."""
    try:
        return (folder / LOCK).read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"


def csv_text(rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_json(path: Path) -> Any:
    """The file's content. Raises ValueError where it is no JSON, OSError where it is not there."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with an object a line; a line torn by a crash is passed over."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def parse_yaml(text: str) -> Any:
    """YAML text as plain values, 1e-4 among them as a number (YAML 1.2); never runs anything."""
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=512)
def _parsed(text: str) -> Any:
    """Parsed once: a sweep reads one config for each of hundreds of cells, at 20 ms a time."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A SafeLoader with numbers as everybody writes them."""

    number = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return yaml.load(text, Loader=Loader)  # noqa: S506 (a SafeLoader)
