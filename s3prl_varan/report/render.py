"""Rows as Markdown, LaTeX (booktabs) and CSV."""

import csv
import io
import math
from collections.abc import Callable

from s3prl_varan.report.table import Row, by_column, leaderboard, method_order

LEGEND = (
    "± is the standard deviation over seeds of the mean over folds (with † over folds: a single seed). "
    "Δ is the paired difference to {baseline} of the same tuning, in points, with a 95 % bootstrap interval over (fold, seed) "
    "pairs; * marks an interval without zero. With few pairs the interval is too narrow: read it as a lower bound of the doubt. "
    "Bold: best complete row of its column. A method with several settings shows the one best on dev."
)


def score_text(row: Row, bold: Callable[[str], str]) -> str:
    """ "68.5 ± 0.4", or how much of an incomplete row is there."""
    if not row.complete:
        so_far = f" ({row.mean:.1f} so far)" if row.values else ""
        return f"incomplete {len(row.values)}/{len(row.expected)}{so_far}"
    spread, over = row.spread
    text = f"{row.mean:.1f}" + (
        f" ± {spread:.1f}{'†' if over == 'folds' else ''}" if not math.isnan(spread) else ""
    )
    return bold(text) if row.best else text


def difference_text(row: Row) -> str:
    """ "+1.2 [-0.3, +2.6]", with * where the interval leaves out zero."""
    difference = row.difference
    if difference is None:
        return ""
    if difference.pairs < 2:
        return f"{difference.mean:+.1f} (one pair)"
    star = "*" if difference.significant else ""
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]{star}"


def leaderboard_table(
    rows: list[Row], bold: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """(header, body): a row per featurizer and tuning; per setup the score, the difference and the number of cells."""
    chosen = leaderboard(rows)
    columns = by_column(chosen)
    header = ["method"]
    for (setup, split), held in columns.items():
        direction = "↑" if held[0].higher_is_better else "↓"
        name = f"{setup}, {split} {held[0].metric} {direction}"
        header += [name, "Δ [95 %]", "cells"]
    body = []
    for method in dict.fromkeys(row.method for row in sorted(chosen, key=method_order)):
        line = [method]
        for held in columns.values():
            row = next((row for row in held if row.method == method), None)
            if row is None:
                line += ["", "", ""]
            else:
                line += [
                    score_text(row, bold),
                    difference_text(row),
                    f"{len(row.values)}/{len(row.expected)}",
                ]
        body.append(line)
    return header, body


def chosen_notes(rows: list[Row]) -> list[str]:
    """Which setting of a method stands in the leaderboard, where there were several, and what their labels leave out."""
    notes = []
    for row in leaderboard(rows):
        siblings = [other for other in rows if _group(other) == _group(row)]
        if len(siblings) > 1:
            notes.append(
                f"{row.setup}, {row.split}: {row.label} was best on dev of {len(siblings)} settings of {row.method}."
            )
    for row in {_group(row): row for row in rows if row.usual}.values():
        notes.append(f"{row.setup}, {row.split}: {row.usual_note}")
    return notes


def _group(row: Row) -> tuple:
    return row.setup, row.split, row.method


SETTINGS_HEADER = [
    "setup",
    "split",
    "metric",
    "method",
    "test",
    "dev",
    "Δ [95 %]",
    "cells",
    "still rising",
    "steps",
    "seconds",
]


def settings_table(
    rows: list[Row], bold: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """(header, body): every setting of every method, best on dev first."""
    body = []
    for held in by_column(rows).values():
        for row in sorted(
            held, key=lambda row: -row.sign() * row.dev_mean if row.values else math.inf
        ):
            done = [cell for cell in row.cells.values() if cell.done]
            steps = [cell.steps for cell in done]
            seconds = [cell.seconds for cell in done if cell.seconds]
            body.append(
                [
                    str(row.setup),
                    row.split,
                    row.metric,
                    row.label,
                    score_text(row, bold),
                    "" if math.isnan(row.dev_mean) else f"{row.dev_mean:.1f}",
                    difference_text(row),
                    f"{len(row.values)}/{len(row.expected)}",
                    f"{row.rising}/{len(done)}",
                    "-".join(str(step) for step in sorted({min(steps), max(steps)}))
                    if steps
                    else "",
                    f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
                ]
            )
    return SETTINGS_HEADER, body


SETTINGS_LEGEND = (
    "Still rising: cells whose best dev figure came in the last tenth of their steps; where there are many, the budget was too "
    "short to compare. Of many settings about one in twenty seems to differ (*) by chance alone."
)
CELLS_HEADER = [
    "setup",
    "method",
    "fold",
    "seed",
    "status",
    "split",
    "test",
    "dev",
    "best step",
    "steps",
    "folder",
    "note",
]


def cells_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """(header, body): every experiment, and every (fold, seed) a method lacks."""
    body = []
    for row in rows:
        for key in sorted(row.expected | set(row.cells)):
            cell, value = row.cells.get(key), row.values.get(key)
            line = [str(row.setup), row.label, key[0], str(key[1])]
            if cell is None:
                body.append([*line, "incomplete: missing", row.split, *[""] * 6])
                continue
            status = "done" if cell.done else f"incomplete: {cell.status}"
            shown = [
                _number(value),
                _number(cell.dev.get(row.metric)),
                str(cell.best_step or ""),
                str(cell.steps or ""),
            ]
            body.append([*line, status, row.split, *shown, str(cell.path), cell.note])
    return CELLS_HEADER, body


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A pipe table."""
    lines = [header, ["---"] * len(header), *body]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        + "\n"
    )


def bold_markdown(text: str) -> str:
    """**text**"""
    return f"**{text}**"


def latex(header: list[str], body: list[list[str]], caption: str) -> str:
    """A booktabs table; needs \\usepackage{booktabs}."""
    columns = "l" + "r" * (len(header) - 1)
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escape_latex(caption)}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {' & '.join(escape_latex(cell) for cell in header)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(escape_latex(cell) for cell in line)} \\\\" for line in body),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": "\\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "Δ": "$\\Delta$",
    "†": "$^\\dagger$",
    "↑": "$\\uparrow$",
    "↓": "$\\downarrow$",
    "\x01": "\\textbf{",
    "\x02": "}",
}


def escape_latex(text: str) -> str:
    """Text as LaTeX shows it; what `bold_latex` marked comes out bold."""
    return "".join(_LATEX.get(char, char) for char in text)


def bold_latex(text: str) -> str:
    """Marked for \\textbf; the braces come with escape_latex."""
    return f"\x01{text}\x02"


CSV_HEADER = [
    "upstream", "downstream", "corpus", "split", "metric", "featurizer", "tuning", "variant", "mean", "std", "std_over",
    "dev_mean", "cells", "expected_cells", "complete", "best", "baseline", "difference", "ci_low", "ci_high", "pairs",
    "still_rising",
]  # fmt: skip


def rows_csv(rows: list[Row]) -> str:
    """Every row with all its figures; an incomplete one has complete=0 and a mean over what is there."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in rows:
        spread, over = row.spread
        delta = row.difference
        variant = "; ".join(f"{name}={value}" for name, value in row.variant.items())
        writer.writerow(
            [row.setup.upstream, row.setup.downstream, row.setup.corpus, row.split, row.metric]
            + [row.featurizer, row.tuning, variant]
            + [_number(row.mean), _number(spread), over, _number(row.dev_mean)]
            + [len(row.values), len(row.expected), int(row.complete), int(row.best)]
            + (
                [
                    delta.baseline,
                    _number(delta.mean),
                    _number(delta.low),
                    _number(delta.high),
                    delta.pairs,
                ]
                if delta
                else [""] * 5
            )
            + [row.rising]
        )
    return table.getvalue()


def cells_csv(rows: list[Row]) -> str:
    """The table of cells as CSV."""
    table = io.StringIO()
    header, body = cells_table(rows)
    csv.writer(table, lineterminator="\n").writerows([header, *body])
    return table.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
