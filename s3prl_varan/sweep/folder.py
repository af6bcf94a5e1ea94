"""A cell's folder: who may run the cell, and what became of it. All of "exactly once" is here.

Whoever runs a cell holds the lock of its folder, and the system lets go of it when that process
ends, however it ends. A result.json says that the cell is done. Until then status.json, which only
who holds the lock writes, says

    started   somebody is at it; where nobody holds the lock, he was killed: that is a crash
    waiting   interrupted, or crashed and to be tried again
    failed    given up: a mistake in the input, or one crash too many
    pruned    stopped by a search

with `crashes` so far, a `note`, and the cell's settings for reports. So any number of processes on
any number of machines share a sweep by sharing its folder.
"""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError
from s3prl_varan.files import RESULT, STATUS, held, read_json, write_atomic

RETRIES = 1  # of a cell that crashed or whose process was killed


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a cell's folder; yields False where another process does.

    Raises UserError on a file system that has no locks.
    """
    try:
        with held(folder) as mine:
            yield mine
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        raise UserError(
            f"{folder} cannot be locked ({error}), so workers would run the same cells. "
            "Choose a folder on a file system with locks (flock) for --out."
        ) from error


@dataclass(frozen=True)
class State:
    """What the files of a cell's folder say."""

    status: str = ""  # done, or as status.json has it; "" for a cell that nobody began
    crashes: int = 0
    note: str = ""

    @property
    def open(self) -> bool:
        """Is there something left to do?"""
        return self.status not in ("done", "failed")

    @property
    def reason(self) -> str:
        """The note's first line."""
        return self.note.partition("\n")[0]


def read_state(folder: Path) -> State:
    """Where the cell stands."""
    if (folder / RESULT).is_file():
        return State("done")
    try:
        content = read_json(folder / STATUS)
    except FileNotFoundError:
        return State()
    return State(content["status"], content.get("crashes", 0), content.get("note", ""))


def write_state(folder: Path, state: State, stored: dict[str, Any]) -> None:
    """Say where the cell stands; stored: its settings, as a report reads them."""
    write_atomic(folder / STATUS, json.dumps({**vars(state), **stored}, default=str) + "\n")


def forgive(folder: Path) -> bool:
    """Give a failed cell a clean record, so that it is run again; False for any other."""
    if read_state(folder).status != "failed":
        return False
    (folder / STATUS).unlink()
    return True
