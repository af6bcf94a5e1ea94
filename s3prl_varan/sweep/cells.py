"""Cells in a sweep's folder: who may run one, and what became of it. All of "exactly once" is here.

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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError
from s3prl_varan.files import RESULT, STATUS, held, read_json, write_atomic
from s3prl_varan.sweep.spec import Cell, varied_keys

RETRIES = 1  # of a cell that crashed or whose process was killed
Look = Callable[[], bool]  # at a running cell: is it to be pruned?


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


class Work:
    """What a sweep has its workers do: a grid's cells, all known beforehand. See search.py too.

    Goes to other processes, so it holds plain values. total: how many pieces of work there are.
    shown: keys that tell one cell from another.
    """

    unit = "cell"

    def __init__(self, folder: Path, cells: Sequence[Cell]) -> None:
        self.folder, self.total, self.shown = folder, len(cells), varied_keys(cells)
        self.planned = [replace(cell, settings=None) for cell in cells]
        self.done: set[str] = set()  # ids, so that their folders are looked at no more

    def cells(self) -> Sequence[Cell]:
        """All cells that are known of."""
        return self.planned

    def open_cells(self) -> Iterator[tuple[Cell, Look | None]]:
        """Cells that are not finished, whether somebody is at them or not."""
        return ((cell, None) for cell in self.cells() if self.state(cell).open)

    def tally(self) -> Counter[str]:
        """How many pieces of work are done, pruned, failed, started, whoever does them."""
        return Counter(self.state(cell).status for cell in self.cells())

    def state(self, cell: Cell) -> State:
        """Where a cell stands."""
        state = State("done") if cell.id in self.done else read_state(self.folder / cell.id)
        if state.status == "done":
            self.done.add(cell.id)
        return state

    def given_up(self) -> dict[str, Cell]:
        """The cells that failed, by id."""
        return {cell.id: cell for cell in self.cells() if self.state(cell).status == "failed"}

    def failures(self) -> list[str]:
        """What was given up and why, a line each."""
        return [
            f"{self.folder / cell.id} {cell.describe(self.shown)}: {self.state(cell).reason}"
            for cell in self.given_up().values()
        ]

    def retry_failed(self) -> int:
        """Have what was given up run again, with a clean record. Returns how many cells."""
        given_up = self.given_up()
        for name in given_up:
            (self.folder / name / STATUS).unlink()
        return len(given_up)

    def best(self) -> str:
        """What a search found best so far, in words; "" for nothing."""
        return ""
