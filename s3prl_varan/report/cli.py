"""Command line of run/report.py: experiment folders in, tables, figures and one HTML page out."""

import argparse
import io
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError
from s3prl_varan.files import csv_text, write_atomic

EPILOG = """examples:
  report.py result/downstream/* --out report
  report.py sweeps/featurizers sweeps/prior_ablation --metric uar
  report.py result/downstream/wavlm_*_varan_*_seed1337 --submission submission

writes: leaderboard.md .tex .csv, settings.md .csv, cells.csv, figures/*.png .pdf, report.html
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Compare experiments: tables, figures, one HTML page. Reads result files only.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", nargs="+", metavar="EXPDIR", help="experiment or sweep folders, or globs")
    add("--out", default="report", metavar="DIR", help="where the report goes (default: report)")
    add("--metric", help="another figure of the test results than the task's own, e.g. uar")
    add(
        "--baseline",
        default="weighted_sum",
        metavar="FEATURIZER",
        help="what differences are taken to (default: weighted_sum)",
    )
    add("--title", default="Layer aggregation compared", help="title of the page")
    add("--no_figures", action="store_true", help="tables only")
    add("--submission", metavar="DIR", help="collect a SUPERB submission's files there, instead")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success, 2 for a mistake in the input."""
    args = build_parser().parse_args(argv)
    try:
        from s3prl_varan.report.cells import find_cells

        cells = find_cells(args.folders)
        if args.submission:
            from s3prl_varan.report.submission import collect_submission

            path = collect_submission(cells, Path(args.submission))
            print(f"submission: {path} (see README.md beside it)")
        else:
            make_report(cells, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make_report(cells: list[Any], args: argparse.Namespace) -> None:
    """Write every table and figure of the cells and print the leaderboard."""
    from s3prl_varan.report import render
    from s3prl_varan.report.table import build_rows, leaderboard

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows, notes = build_rows(cells, args.metric, args.baseline)
    counts = Counter(cell.status for cell in cells).most_common()
    told = ", ".join(f"{number} {status}" for status, number in counts)
    notes = [*render.chosen_notes(rows), *notes, f"{len(cells)} experiments: {told}."]
    legend = render.LEGEND.format(baseline=args.baseline)
    if any(not math.isnan(row.information) for row in rows):
        legend = f"{legend} {render.DYNAMICS_LEGEND}"
    board, settings = render.leaderboard_table(rows), render.settings_table(rows)
    all_cells = render.cells_table(rows)
    text = "\n".join([render.markdown(board), legend, "", *(f"- {note}" for note in notes), ""])
    written = {
        "leaderboard.md": text,
        "leaderboard.tex": render.latex(board, args.title),
        "leaderboard.csv": as_csv(render.figures_table(leaderboard(rows))),
        "settings.md": render.markdown(settings),
        "settings.csv": as_csv(render.figures_table(rows)),
        "cells.csv": as_csv(all_cells),
    }
    sections = {
        "Leaderboard": render.html_table(board) + render.html_notes([legend, *notes]),
        "Every setting": render.html_table(settings) + render.html_notes([render.SETTINGS_LEGEND]),
        "Figures": "" if args.no_figures else _draw(rows, out / "figures"),
        "Experiments": render.html_table(all_cells),
    }
    shown = {head: content for head, content in sections.items() if content}
    written["report.html"] = render.html_page(args.title, shown)
    for name, content in written.items():
        write_atomic(out / name, content)
    print(text)
    print(f"report: {out / 'report.html'}")


def as_csv(table: Any) -> str:
    """A table as comma-separated values."""
    return csv_text([table.header, *table.body])


def _draw(rows: list[Any], folder: Path) -> str:
    """Write the figures as PNG and PDF; returns them as HTML."""
    from s3prl_varan.report.figures import all_pictures
    from s3prl_varan.report.render import html_picture

    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for drawn in all_pictures(rows):
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
            data = io.BytesIO()
            drawn.figure.savefig(data, format=kind, dpi=120, metadata=metadata)
            write_atomic(folder / f"{drawn.name}.{kind}", data.getvalue())
        shown.append(html_picture(data.getvalue(), drawn.caption))
    return "\n".join(shown)
