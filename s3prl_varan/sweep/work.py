"""What a sweep has its workers do: a grid's cells, all known beforehand. See search.py too."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from s3prl_varan.sweep.folder import State, forgive, read_state
from s3prl_varan.sweep.plan import Cell, varied_keys

Look = Callable[[], bool]  # at a running cell: is it to be pruned?


class Work:
    """Cells in a sweep's folder. Goes to other processes, so it holds plain values.

    total: how many pieces of work there are. shown: keys that tell one cell from another.
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

    def failures(self) -> list[str]:
        """What was given up and why, a line each."""
        failed = {cell.id: cell for cell in self.cells() if self.state(cell).status == "failed"}
        return [
            f"{self.folder / cell.id} {cell.describe(self.shown)}: {self.state(cell).reason}"
            for cell in failed.values()
        ]

    def retry_failed(self) -> int:
        """Have what was given up run again. Returns how many cells."""
        return sum(forgive(self.folder / cell.id) for cell in self.cells())

    def best(self) -> str:
        """What a search found best so far, in words; "" for nothing."""
        return ""
