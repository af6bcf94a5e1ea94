"""Word and character error rates of a whole split, by edit distance, and the worst utterances side by side."""

from collections.abc import Sequence

Records = dict[str, list]


def error_rates(records: Records) -> dict[str, float]:
    """wer and cer in percent of the reference: errors of the whole split over its words, over its characters (spaces count).

    records: pred_words and target_words, a list of words per utterance. (The `uer` that s3prl's expert logs is over the
    greedy output's units instead, each word followed by a '|', also where a beam search gives the words.)
    """
    import editdistance

    pairs = list(zip(records["target_words"], records["pred_words"], strict=True))
    texts = [(" ".join(target), " ".join(guess)) for target, guess in pairs]
    words = sum(editdistance.eval(list(target), list(guess)) for target, guess in pairs)
    characters = sum(editdistance.eval(target, guess) for target, guess in texts)
    return {
        "wer": _percent(words, sum(len(target) for target, _ in pairs)),
        "cer": _percent(characters, sum(len(target) for target, _ in texts)),
    }


def worst_utterances(records: Records, count: int = 10) -> str:
    """The `count` utterances with the most word errors, reference and hypothesis aligned word by word; "" where all are right."""
    import editdistance

    rows = []
    for name, target, guess in zip(
        records["filenames"], records["target_words"], records["pred_words"], strict=True
    ):
        errors = editdistance.eval(list(target), list(guess))
        if errors:
            rows.append(
                (errors, _percent(errors, len(target)), str(name), list(target), list(guess))
            )
    rows.sort(key=lambda row: (-row[0], -row[1], row[2]))
    blocks = []
    for errors, rate, name, target, guess in rows[:count]:
        aligned = align(target, guess)
        widths = [max(len(word) for word in pair) for pair in aligned]
        shown = [
            " ".join(pair[side].ljust(width) for pair, width in zip(aligned, widths, strict=True))
            for side in (0, 1)
        ]
        blocks.append(
            f"{name}: {errors} errors in {len(target)} words ({rate:.0f} %)\n"
            f"  ref  {shown[0].rstrip()}\n  hyp  {shown[1].rstrip()}\n"
        )
    return "\n".join(blocks)


def align(target: Sequence[str], guess: Sequence[str], gap: str = "*") -> list[tuple[str, str]]:
    """Word pairs of a cheapest edit path; `gap` repeated to the other word's length stands for a missing word."""
    rows, columns = len(target), len(guess)
    cost = [
        [row + column if 0 in (row, column) else 0 for column in range(columns + 1)]
        for row in range(rows + 1)
    ]
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            change = cost[row - 1][column - 1] + (target[row - 1] != guess[column - 1])
            cost[row][column] = min(change, cost[row - 1][column] + 1, cost[row][column - 1] + 1)
    pairs: list[tuple[str, str]] = []
    row, column = rows, columns
    while row or column:
        both = row and column
        if both and cost[row][column] == cost[row - 1][column - 1] + (
            target[row - 1] != guess[column - 1]
        ):
            row, column = row - 1, column - 1
            pairs.append((target[row], guess[column]))
        elif row and cost[row][column] == cost[row - 1][column] + 1:
            row -= 1
            pairs.append((target[row], gap * len(target[row])))
        else:
            column -= 1
            pairs.append((gap * len(guess[column]), guess[column]))
    return pairs[::-1]


def _percent(errors: int, total: int) -> float:
    return 100.0 * errors / max(1, total)
