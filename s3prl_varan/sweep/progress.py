"""How far a sweep is, as its folders show it: everybody's cells, on whatever machine; its costs."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s3prl_varan.files import RESULT, read_json
from s3prl_varan.sweep.folder import read_state
from s3prl_varan.sweep.plan import Cell, varied_keys
from s3prl_varan.sweep.work import Work

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}{postfix}]"
COST_FLAGS = (
    "upstream", "upstream_ckpt", "downstream", "featurizer", "lora", "upstream_trainable",
)  # fmt: skip


class Costs:
    """What cells took, and so will take: seconds per planned step of cells like them, else of any.

    Planned, not trained: cells that early stopping ended at half of total_steps let the others be
    expected to end there too. Starts from the results in a sweep's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.rates: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for path in sorted(folder.glob(f"*/{RESULT}")):
            try:
                result = read_json(path)
                self.add(result, result["seconds"])
            except (ValueError, KeyError, TypeError):
                continue

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
    """ "3 h 20 min", "4 min", "12 s"; "?" for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def listing(cells: Sequence[Cell], folder: Path, workers: int, draws: int) -> str:
    """The cells with their state and estimated cost, and the total."""
    costs, names, lines = Costs(folder), varied_keys(cells), []
    states = [read_state(folder / cell.id) for cell in cells]
    for cell, state in zip(cells, states, strict=True):
        shown = readable_time(costs.seconds(cell)) if state.open else state.status
        lines.append(f"{cell.id}  {shown:>10}  {cell.describe(names)}")
    if draws:
        lines.append(f"a search of {draws} draws; above are cells at the ends of its space")
        return "\n".join(lines)
    left = [cell for cell, state in zip(cells, states, strict=True) if state.open]
    seconds, done = costs.seconds(*left), sum(state.status == "done" for state in states)
    told = "unknown until a first cell has run"
    if seconds is not None:
        told = readable_time(seconds / workers)
    lines.append(f"{len(cells)} cells, {done} done; the rest on {workers} worker(s): {told}")
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
        tally = self.work.tally()
        self.bar.n = tally["done"] + tally["pruned"] + tally["failed"]
        parts = [f"{tally['started']} running"]
        parts += [f"{tally[one]} {one}" for one in ("pruned", "failed") if tally[one]]
        left = self.seconds_left()
        eta = readable_time(None if left is None else left / max(1, tally["started"]))
        self.bar.set_postfix_str(", ".join([*parts, f"ETA {eta}"]))

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
