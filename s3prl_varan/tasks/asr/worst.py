"""The worst utterances of a split, reference and hypothesis side by side."""

from collections.abc import Sequence

from s3prl_varan.edit_distance import edit_distance
from s3prl_varan.tasks.shapes.base import Record


def worst_utterances(records: Sequence[Record], count: int = 10) -> str:
    """The `count` utterances with the most word errors, aligned; "" where all are right."""
    wrong = []
    for record in records:
        errors = edit_distance(record["truth"], record["predict"])
        if errors:
            rate = 100.0 * errors / max(1, len(record["truth"]))
            wrong.append((-errors, -rate, record["name"], record))
    wrong.sort(key=lambda row: row[:3])
    return "\n".join(_block(-errors, -rate, record) for errors, rate, _, record in wrong[:count])


def _block(errors: int, rate: float, record: Record) -> str:
    pairs = align(record["truth"], record["predict"])
    widths = [max(len(word) for word in pair) for pair in pairs]
    ref, hyp = (
        " ".join(pair[side].ljust(width) for pair, width in zip(pairs, widths, strict=True))
        for side in (0, 1)
    )
    return (
        f"{record['name']}: {errors} errors in {len(record['truth'])} words ({rate:.0f} %)\n"
        f"  ref  {ref.rstrip()}\n  hyp  {hyp.rstrip()}\n"
    )


def align(target: Sequence[str], guess: Sequence[str], gap: str = "*") -> list[tuple[str, str]]:
    """Word pairs of a cheapest edit path; `gap`, as often as needed, stands for a missing word."""
    rows, columns = len(target), len(guess)
    cost = [[row + column for column in range(columns + 1)] for row in range(rows + 1)]
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            change = cost[row - 1][column - 1] + (target[row - 1] != guess[column - 1])
            cost[row][column] = min(change, cost[row - 1][column] + 1, cost[row][column - 1] + 1)
    pairs: list[tuple[str, str]] = []
    row, column = rows, columns
    while row or column:
        if row and column:
            change = cost[row - 1][column - 1] + (target[row - 1] != guess[column - 1])
            if cost[row][column] == change:
                row, column = row - 1, column - 1
                pairs.append((target[row], guess[column]))
                continue
        if row and cost[row][column] == cost[row - 1][column] + 1:
            row -= 1
            pairs.append((target[row], gap * len(target[row])))
        else:
            column -= 1
            pairs.append((gap * len(guess[column]), guess[column]))
    return pairs[::-1]
