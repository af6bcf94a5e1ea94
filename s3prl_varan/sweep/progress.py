"""How far a sweep is, as its folders show it: everybody's cells, on whatever machine; its costs."""

import statistics
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s3prl_varan.files import RESULT, read_json
from s3prl_varan.sweep.cells import Work
from s3prl_varan.sweep.spec import Cell

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}{postfix}]"
COST_FLAGS = (
    "upstream", "upstream_ckpt", "downstream", "featurizer", "lora", "upstream_trainable",
)  # fmt: skip
UNKNOWN = "unknown until a first cell has run"


class Costs:
    """What cells took, and so will take: seconds per planned step of cells like them, else of any.

    Planned, not trained: cells that early stopping ended at half of total_steps let the others be
    expected to end there too. Starts from the results in a sweep's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.rates: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for path in sorted(folder.glob(f"*/{RESULT}")):
            with suppress(ValueError, KeyError, TypeError):
                result = read_json(path)
                self.add(result, result["seconds"])

    def add(self, stored: dict[str, Any], seconds: float) -> None:
        """One finished cell."""
        self.rates[_kind(stored)].append(seconds / stored["config"]["runner"]["total_steps"])

    def seconds(self, *cells: Cell) -> float | None:
        """Estimate of cells, one after the other; None while nothing is known."""
        every = [rate for group in self.rates.values() for rate in group]
        if not every:
            return None if cells else 0.0
        rates = [statistics.median(self.rates.get(_kind(cell.stored), every)) for cell in cells]
        return sum(rate * cell.steps for rate, cell in zip(rates, cells, strict=True))


def _kind(stored: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(stored["args"].get(flag)) for flag in COST_FLAGS)


def readable_time(seconds: float | None) -> str:
    """ "3:20:00" or "04:00"; "?" for None."""
    return "?" if seconds is None else tqdm.format_interval(seconds)


def listing(work: Work, workers: int) -> str:
    """The cells with their state and estimated cost, and the total."""
    costs, lines, left = Costs(work.folder), [], []
    for cell in work.planned:
        state = work.state(cell)
        shown = readable_time(costs.seconds(cell)) if state.open else state.status
        lines.append(f"{cell.id}  {shown:>10}  {cell.describe(work.shown)}")
        left += [cell] if state.open else []
    if work.unit == "draw":
        lines.append(f"a search of {work.total} draws; above are cells at the ends of its space")
    else:
        seconds, done = costs.seconds(*left), work.tally()["done"]
        told = readable_time(seconds / workers) if seconds is not None else UNKNOWN
        lines.append(f"{work.total} cells, {done} done; the rest on {workers} worker(s): {told}")
    return "\n".join(lines)


class Progress:
    """A bar over the whole sweep, and a line for every cell that came to an end."""

    def __init__(self, work: Work) -> None:
        self.work, self.costs = work, Costs(work.folder)
        self.seen = {cell.id: work.state(cell).status for cell in work.cells()}
        self.bar = tqdm(
            total=work.total, desc="sweep", unit=work.unit, dynamic_ncols=True, bar_format=BAR
        )

    def show(self) -> None:
        """Bring the bar up to date and say what became of cells since the last time."""
        for cell in self.work.cells():
            self._tell(cell)
        tally, left = self.work.tally(), self.seconds_left()
        self.bar.n = tally["done"] + tally["pruned"] + tally["failed"]
        parts = [f"{tally[one]} {one}" for one in ("pruned", "failed") if tally[one]]
        eta = readable_time(None if left is None else left / max(1, tally["started"]))
        self.bar.set_postfix_str(", ".join([f"{tally['started']} running", *parts, f"ETA {eta}"]))

    def _tell(self, cell: Cell) -> None:
        state = self.work.state(cell)
        before, self.seen[cell.id] = self.seen.get(cell.id), state.status
        if state.status in (before, "", "started"):
            return
        told = [cell.id, state.status]
        if state.status == "done":
            result = read_json(self.work.folder / cell.id / RESULT)
            self.costs.add(cell.stored, result["seconds"])
            told.append(f"dev {cell.metric} {result['dev'][cell.metric]:.2f}")
            told.append(readable_time(result["seconds"]))
        told.append(cell.describe(self.work.shown))
        self.bar.write(" ".join([*told, f"({state.reason})"] if state.reason else told))

    def seconds_left(self) -> float | None:
        """Work left in a grid, on one worker; None where it is not known."""
        if len(self.work.cells()) != self.work.total:
            return None
        return self.costs.seconds(*(cell for cell, _ in self.work.open_cells()))
