"""Tables of rows, and how they are written: Markdown, LaTeX (booktabs), CSV, one HTML page."""

import base64
import html
import math
from collections.abc import Iterable
from typing import NamedTuple

from s3prl_varan.report.table import (
    Difference,
    Row,
    by_column,
    grouped,
    leaderboard,
    method_order,
)  # fmt: skip

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
BOLD, END = "\x01", "\x02"  # around what is to be bold, until it is written


class Table(NamedTuple):
    """A header and lines of equal length."""

    header: list[str]
    body: list[list[str]]


def table_of(records: list[dict[str, str]]) -> Table:
    """A line for each record, a column for each key; what a record lacks stays empty."""
    header = list(dict.fromkeys(key for record in records for key in record))
    return Table(header, [[record.get(key, "") for key in header] for record in records])


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
    columns, table = by_column(chosen), Table(["method"], [])
    for (setup, split), held in columns.items():
        direction = "↑" if held[0].higher_is_better else "↓"
        name = f"{setup}, {split} {held[0].metric} {direction}"
        table.header.extend([name, "Δ [95 %]", "I(L;X), Δ to its mean q", "cells"])
    for method in dict.fromkeys(row.method for row in sorted(chosen, key=method_order)):
        line = [method]
        for held in columns.values():
            shown = [row for row in held if row.method == method]
            texts = [
                [score_text(row), difference_text(row), dynamics_text(row), _count(row)]
                for row in shown
            ]
            line += texts[0] if texts else [""] * 4
        table.body.append(line)
    return without_empty(table)


def without_empty(table: Table) -> Table:
    """Columns that say something: of runs without dynamics none is shown."""
    kept = [n for n in range(len(table.header)) if any(line[n] for line in table.body)]
    return Table([table.header[n] for n in kept], [[line[n] for n in kept] for line in table.body])


def settings_table(rows: list[Row]) -> Table:
    """Every setting of every method, best on dev first."""

    def order(row: Row) -> float:
        return -row.goodness(row.dev_mean) if row.values else math.inf

    records = []
    columns = by_column(rows).values()
    for row in (row for held in columns for row in sorted(held, key=order)):
        steps = sorted({cell.steps for cell in row.finished})
        seconds = [cell.seconds for cell in row.finished if cell.seconds]
        record = {
            "setup": str(row.setup),
            "split": row.split,
            "metric": row.metric,
            "method": row.label,
            "test": score_text(row),
            "dev": "" if math.isnan(row.dev_mean) else f"{row.dev_mean:.1f}",
            "Δ [95 %]": difference_text(row),
            "I(L;X), Δ to its mean q": dynamics_text(row),
            "cells": _count(row),
            "still rising": f"{row.rising}/{len(row.finished)}",
            "steps": "-".join(str(step) for step in dict.fromkeys([*steps[:1], *steps[-1:]])),
            "seconds": f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        }
        records.append(record)
    return table_of(records)


def cells_table(rows: list[Row]) -> Table:
    """Every experiment, and every (fold, seed) a method lacks."""
    records = []
    for row in rows:
        for key in sorted(row.expected | set(row.cells)):
            cell = row.cells.get(key)
            status = cell.status if cell else "missing"
            record = {
                "setup": str(row.setup),
                "method": row.label,
                "fold": key[0],
                "seed": str(key[1]),
                "status": status if status == "done" else f"incomplete: {status}",
                "split": row.split,
                "test": _number(row.values.get(key)),
                "dev": _number(cell.dev.get(row.metric) if cell else None),
                "best step": str(cell.best_step or "") if cell else "",
                "steps": str(cell.steps or "") if cell else "",
                "folder": str(cell.path) if cell else "",
                "note": cell.note if cell else "",
            }
            records.append(record)
    return table_of(records)


def figures_table(rows: list[Row]) -> Table:
    """Every row with all its figures, for programs.

    An incomplete one has complete=0 and a mean over what is there.
    """
    records = []
    for row in rows:
        delta, gain = row.difference, row.gain
        low, high = (delta and delta.over_clips) or (None, None)
        varied = [key for key in row.varied if key in row.settings]
        record = {
            "upstream": row.setup.upstream,
            "downstream": row.setup.downstream,
            "corpus": row.setup.corpus,
            "split": row.split,
            "metric": row.metric,
            "featurizer": row.featurizer,
            "tuning": row.tuning,
            "variant": "; ".join(f"{row.varied[key]}={row.settings[key]}" for key in varied),
            "mean": _number(row.mean),
            "std": _number(row.spread[0]),
            "std_over": row.spread[1],
            "dev_mean": _number(row.dev_mean),
            "cells": str(len(row.values)),
            "expected_cells": str(len(row.expected)),
            "complete": str(int(row.complete)),
            "best": str(int(row.best)),
            "baseline": delta.baseline if delta else "",
            "difference": _number(delta.mean if delta else None),
            "ci_low": _number(delta.low if delta else None),
            "ci_high": _number(delta.high if delta else None),
            "pairs": str(delta.pairs) if delta else "",
            "clips_low": _number(low),
            "clips_high": _number(high),
            "information_nats": _number(row.information),
            "gain_over_mean_q": _number(gain.mean if gain else None),
            "gain_low": _number(gain.low if gain else None),
            "gain_high": _number(gain.high if gain else None),
            "still_rising": str(row.rising),
        }
        records.append(record)
    return table_of(records)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def chosen_notes(rows: list[Row]) -> list[str]:
    """Which setting of a method stands in the leaderboard, and what its labels leave out."""
    groups = grouped(rows, lambda row: (row.setup, row.split, row.method))
    notes = [
        f"{row.setup}, {row.split}: {row.label} was best on dev of {len(group)} settings of "
        f"{row.method}."
        for row, group in zip(leaderboard(rows), groups.values(), strict=True)
        if len(group) > 1
    ]
    hidden = [group[0] for group in groups.values() if group[0].usual_note]
    return notes + [f"{row.setup}, {row.split}: {row.usual_note}" for row in hidden]


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
