"""Tables of rows, and how they are written: Markdown, LaTeX (booktabs), CSV, one HTML page."""

import base64
import html
import math
from collections.abc import Iterable
from typing import NamedTuple

from s3prl_varan.report.table import Difference, Row, by_column, leaderboard, method_order

LEGEND = (
    "± is the standard deviation over seeds of the mean over folds (with † over folds: a single "
    "seed). Δ is the paired difference to {baseline} of the same tuning, in points. Its first 95 % "
    "interval is a bootstrap over (fold, seed) pairs: would other folds and seeds say the same? * "
    "marks one without zero. With few pairs it is too narrow: read it as a lower bound of the "
    "doubt. The second is a bootstrap over the test speakers (over clips where none are known), "
    "the runs as they are: would other speakers say the same? Bold: best complete row of its "
    "column. A method with several settings shows the one best on dev."
)
DYNAMICS_LEGEND = (
    "I(L;X) is what the weights of layers know of the utterance, in nats; behind it the paired "
    "difference to the same runs with their mean weights in the place of those of each utterance: "
    "what weighing by utterance adds. Around zero, the gain over a baseline is not one of it."
)
SETTINGS_LEGEND = (
    "Still rising: cells whose best dev figure came in the last tenth of their steps; where there "
    "are many, the budget was too short to compare. Of many settings about one in twenty seems to "
    "differ (*) by chance alone."
)
SETTINGS_HEADER = (
    "setup", "split", "metric", "method", "test", "dev", "Δ [95 %]", "I(L;X), Δ to its mean q",
    "cells", "still rising", "steps", "seconds",
)  # fmt: skip
CELLS_HEADER = (
    "setup", "method", "fold", "seed", "status", "split", "test", "dev", "best step", "steps",
    "folder", "note",
)  # fmt: skip
CSV_HEADER = (
    "upstream", "downstream", "corpus", "split", "metric", "featurizer", "tuning", "variant",
    "mean", "std", "std_over", "dev_mean", "cells", "expected_cells", "complete", "best",
    "baseline", "difference", "ci_low", "ci_high", "pairs", "clips_low", "clips_high",
    "information_nats", "gain_over_mean_q", "gain_low", "gain_high", "still_rising",
)  # fmt: skip
BOLD, END = "\x01", "\x02"  # around what is to be bold, until it is written


class Table(NamedTuple):
    """A header and lines of equal length."""

    header: list[str]
    body: list[list[str]]


# ---- tables


def score_text(row: Row) -> str:
    """ "68.5 ± 0.4", or how much of an incomplete row is there."""
    if not row.complete:
        so_far = f" ({row.mean:.1f} so far)" if row.values else ""
        return f"incomplete {_count(row)}{so_far}"
    spread, over = row.spread
    text = f"{row.mean:.1f}"
    if not math.isnan(spread):
        text += f" ± {spread:.1f}{'†' if over == 'folds' else ''}"
    return f"{BOLD}{text}{END}" if row.best else text


def difference_text(row: Row) -> str:
    """ "+1.2 [-0.3, +2.6] [-1.0, +3.1]", with * where the first interval leaves out zero."""
    if row.difference is None:
        return ""
    text, clips = _with_interval(row.difference, 1), row.difference.over_clips
    if clips is not None and not math.isnan(clips[0]):
        text += f" [{clips[0]:+.1f}, {clips[1]:+.1f}]"
    return text


def dynamics_text(row: Row) -> str:
    """ "0.002, +0.25 [+0.02, +0.51]*" of a method that weighs by the input."""
    if math.isnan(row.information):
        return ""
    gain = "" if row.gain is None else f", {_with_interval(row.gain, 2)}"
    return f"{row.information:.4f}{gain}"


def _with_interval(found: Difference, digits: int) -> str:
    text = f"{found.mean:+.{digits}f}"
    if found.pairs < 2:
        return f"{text} (one pair)"
    star = "*" if found.significant else ""
    return f"{text} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]{star}"


def _count(row: Row) -> str:
    return f"{len(row.values)}/{len(row.expected)}"


def leaderboard_table(rows: list[Row]) -> Table:
    """A row per featurizer and tuning; per setup the score, the difference, the number of cells."""
    chosen = leaderboard(rows)
    columns = by_column(chosen)
    table = Table(["method"], [])
    for (setup, split), held in columns.items():
        direction = "↑" if held[0].higher_is_better else "↓"
        name = f"{setup}, {split} {held[0].metric} {direction}"
        table.header.extend([name, "Δ [95 %]", "I(L;X), Δ to its mean q", "cells"])
    for method in dict.fromkeys(row.method for row in sorted(chosen, key=method_order)):
        table.body.append([method])
        for held in columns.values():
            shown = [row for row in held if row.method == method]
            texts = [
                [score_text(row), difference_text(row), dynamics_text(row), _count(row)]
                for row in shown
            ]
            table.body[-1].extend(texts[0] if texts else [""] * 4)
    return without_empty(table)


def without_empty(table: Table) -> Table:
    """Columns that say something: of runs without dynamics none is shown."""
    kept = [n for n in range(len(table.header)) if any(line[n] for line in table.body)]
    return Table([table.header[n] for n in kept], [[line[n] for n in kept] for line in table.body])


def settings_table(rows: list[Row]) -> Table:
    """Every setting of every method, best on dev first."""

    def order(row: Row) -> float:
        return -row.goodness(row.dev_mean) if row.values else math.inf

    body = []
    for held in by_column(rows).values():
        for row in sorted(held, key=order):
            steps = sorted({cell.steps for cell in row.finished})
            seconds = [cell.seconds for cell in row.finished if cell.seconds]
            body.append(
                [
                    *(str(row.setup), row.split, row.metric, row.label, score_text(row)),
                    "" if math.isnan(row.dev_mean) else f"{row.dev_mean:.1f}",
                    *(difference_text(row), dynamics_text(row), _count(row)),
                    f"{row.rising}/{len(row.finished)}",
                    "-".join(str(step) for step in dict.fromkeys([*steps[:1], *steps[-1:]])),
                    f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
                ]
            )
    return Table([*SETTINGS_HEADER], body)


def cells_table(rows: list[Row]) -> Table:
    """Every experiment, and every (fold, seed) a method lacks."""
    body = []
    for row in rows:
        for key in sorted(row.expected | set(row.cells)):
            cell, line = row.cells.get(key), [str(row.setup), row.label, key[0], str(key[1])]
            if cell is None:
                body.append([*line, "incomplete: missing", row.split, *[""] * 6])
                continue
            status = "done" if cell.done else f"incomplete: {cell.status}"
            figures = _number(row.values.get(key)), _number(cell.dev.get(row.metric))
            steps = str(cell.best_step or ""), str(cell.steps or "")
            body.append([*line, status, row.split, *figures, *steps, str(cell.path), cell.note])
    return Table([*CELLS_HEADER], body)


def figures_table(rows: list[Row]) -> Table:
    """Every row with all its figures, for programs.

    An incomplete one has complete=0 and a mean over what is there.
    """
    body = []
    for row in rows:
        (spread, over), delta, gain = row.spread, row.difference, row.gain
        setup, difference, own = row.setup, [""] * 7, [""] * 3
        if delta is not None:
            numbers = map(_number, (delta.mean, delta.low, delta.high))
            clips = map(_number, delta.over_clips or (None, None))
            difference = [delta.baseline, *numbers, str(delta.pairs), *clips]
        if gain is not None:
            own = [_number(gain.mean), _number(gain.low), _number(gain.high)]
        counts = (len(row.values), len(row.expected), int(row.complete), int(row.best))
        body.append(
            [
                *(setup.upstream, setup.downstream, setup.corpus, row.split, row.metric),
                *(row.featurizer, row.tuning),
                "; ".join(f"{name}={value}" for name, value in row.variant.items()),
                *(_number(row.mean), _number(spread), over, _number(row.dev_mean)),
                *map(str, counts),
                *difference,
                *(_number(row.information), *own),
                str(row.rising),
            ]
        )
    return Table([*CSV_HEADER], body)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def chosen_notes(rows: list[Row]) -> list[str]:
    """Which setting of a method stands in the leaderboard, and what its labels leave out."""

    def place(row: Row) -> tuple[object, ...]:
        return row.setup, row.split, row.method

    notes = []
    for row in leaderboard(rows):
        count = sum(place(other) == place(row) for other in rows)
        if count > 1:
            best = f"{row.label} was best on dev of {count} settings of {row.method}"
            notes.append(f"{row.setup}, {row.split}: {best}.")
    usual = {place(row): row for row in rows if row.usual}
    notes += [f"{row.setup}, {row.split}: {row.usual_note}" for row in usual.values()]
    return notes


# ---- Markdown, LaTeX, CSV


def markdown(table: Table) -> str:
    """A pipe table."""
    lines = [table.header, ["---"] * len(table.header), *table.body]
    text = "\n".join(
        f"| {' | '.join(one.replace('|', chr(92) + '|') for one in line)} |" for line in lines
    )
    return text.replace(BOLD, "**").replace(END, "**") + "\n"


def latex(table: Table, caption: str) -> str:
    """A booktabs table; needs \\usepackage{booktabs}."""
    header, *body = (
        f"    {' & '.join(map(escape_latex, line))} \\\\" for line in [table.header, *table.body]
    )
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escape_latex(caption)}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        *("    \\toprule", header, "    \\midrule", *body, "    \\bottomrule"),
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{
        "±": "$\\pm$",
        "Δ": "$\\Delta$",
        "†": "$^\\dagger$",
        "↑": "$\\uparrow$",
        "↓": "$\\downarrow$",
    },
    **{BOLD: "\\textbf{", END: "}"},
}


def escape_latex(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(LATEX.get(char, char) for char in text)


# ---- HTML, pictures inside it: opens anywhere, fetches nothing

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #333; vertical-align: bottom; }
td.incomplete { color: #a33; font-style: italic; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; }
figcaption, .legend { color: #555; font-size: 13px; }
"""


def html_table(table: Table) -> str:
    """A table; what is incomplete has another colour."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.header)
    lines = "".join(f"<tr>{''.join(map(_html_cell, line))}</tr>\n" for line in table.body)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody>'
        "</table></div>"
    )


def _html_cell(text: str) -> str:
    kind = ' class="incomplete"' if text.startswith("incomplete") else ""
    return f"<td{kind}>{html.escape(text).replace(BOLD, '<b>').replace(END, '</b>')}</td>"


def html_picture(png: bytes, caption: str) -> str:
    """A figure with the picture inside the page."""
    data, text = base64.b64encode(png).decode(), html.escape(caption, quote=True)
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def html_notes(lines: Iterable[str]) -> str:
    """Notes, one under the other."""
    return "\n".join(f'<p class="legend">{html.escape(line)}</p>' for line in lines)


def html_page(title: str, sections: dict[str, str]) -> str:
    """The whole page; sections: heading -> HTML."""
    name = html.escape(title)
    parts = "\n".join(f"<h2>{html.escape(head)}</h2>\n{text}" for head, text in sections.items())
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>'
        f"\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{parts}\n</body>\n</html>\n"
    )
