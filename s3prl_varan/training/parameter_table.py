"""How many parameters each part of a model has and trains: the table a run prints and writes to result.json."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class PartSize:
    """Row of the table."""

    part: str
    trainable: int
    total: int

    @property
    def percent(self) -> float:
        """Share that trains, 0 to 100."""
        return 100 * self.trainable / self.total if self.total else 0.0


def parameter_table(parts: Mapping[str, nn.Module]) -> list[PartSize]:
    """One row per part, then "all". A parameter that parts share counts once in "all"."""
    rows: list[PartSize] = []
    seen: dict[int, nn.Parameter] = {}
    for name, module in parts.items():
        own = {id(parameter): parameter for parameter in module.parameters()}
        rows.append(_size(name, own.values()))
        seen |= own
    return [*rows, _size("all", seen.values())]


def format_parameter_table(rows: list[PartSize]) -> str:
    """The table as text, columns aligned."""
    cells = [("part", "trainable", "total", "%")]
    cells += [
        (row.part, f"{row.trainable:,}", f"{row.total:,}", f"{row.percent:.2f}") for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in cells
    )


def _size(name: str, parameters: Iterable[nn.Parameter]) -> PartSize:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    return PartSize(
        name, sum(count for count, trains in sizes if trains), sum(count for count, _ in sizes)
    )
