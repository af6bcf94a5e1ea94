"""Files of experiments: written whole or not at all, read as they are meant. Imports no torch."""

import copy
import fcntl
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

RESULT = "result.json"  # of a finished experiment
CONFIG = "config.yaml"  # of one that was started
METRICS = "metrics.jsonl"  # a row per evaluation and per stretch of training
STATUS = "status.json"  # what a sweep knows of an experiment that has no result
LOCK = ".lock"  # held by the process that runs an experiment
PLAN = ".plan.json"  # end of the name of a sweep's list of experiments, started or not


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """`with atomic_path(target) as temporary:` write `temporary`; it then takes target's place.

    It lies in the same folder and has the same suffix, since some writers choose their format by
    it; it may become a file or a folder (whose target must be none yet, or an empty one). On an
    error it is removed and an earlier target stays as it was.
    """
    writer = f"{os.getpid()}.{threading.get_ident()}"
    temporary = target.with_name(f".{target.stem}.{writer}.tmp{target.suffix}")
    try:
        yield temporary
        _to_disk(temporary)  # else a power cut may keep the new name and lose what it names
        os.replace(temporary, target)
        _to_disk(target.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


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
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write several files, all or none: none takes its place before all of them are written."""
    with ExitStack() as written:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.enter_context(atomic_path(path)).write_text(text, encoding="utf-8")


_held_here: set[Path] = set()  # lock files that this process holds


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
        _held_here.add(path)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        try:
            yield True
        finally:  # not closed alone: processes that load data may have inherited the open file
            _held_here.discard(path)
            fcntl.flock(lock, fcntl.LOCK_UN)


def holder(folder: Path) -> str:
    """Who holds a folder's lock, as they wrote it there: "process 123 on HOST"."""
    try:
        return (folder / LOCK).read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"


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
