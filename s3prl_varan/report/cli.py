"""Command line of run/report.py: experiment folders in, tables, figures and one HTML page out."""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from s3prl_varan.errors import UserError

EPILOG = """examples:
  report.py result/downstream/* --out report
  report.py sweeps/featurizers sweeps/prior_ablation --metric uar
  report.py result/downstream/wavlm_emotion_varan_fold*_seed1337 --submission submission

writes: leaderboard.md .tex .csv, settings.md .csv, cells.csv, figures/*.png .pdf, report.html
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Compare finished experiments: tables, figures, one HTML page. Reads result files only.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", metavar="EXPDIR", help="experiment or sweep folders, or globs of them"
    )
    parser.add_argument(
        "--out", default="report", metavar="DIR", help="where the report goes (default: report)"
    )
    parser.add_argument(
        "--metric", help="another figure of the test results than the task's own, e.g. uar"
    )
    parser.add_argument(
        "--baseline",
        default="weighted_sum",
        metavar="FEATURIZER",
        help="what differences are taken to",
    )
    parser.add_argument("--title", default="Layer aggregation compared", help="title of the page")
    parser.add_argument("--no_figures", action="store_true", help="tables only")
    parser.add_argument(
        "--submission",
        metavar="DIR",
        help="collect the files of a SUPERB submission there, instead",
    )
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
            make_report(
                cells,
                Path(args.out),
                args.metric,
                args.baseline,
                args.title,
                figures=not args.no_figures,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make_report(
    cells: list, out: Path, metric: str | None, baseline: str, title: str, *, figures: bool = True
) -> None:
    """Write every table and figure of the cells to `out` and print the leaderboard."""
    from s3prl_varan.files import write_atomic
    from s3prl_varan.report import page, render
    from s3prl_varan.report.table import build_rows

    rows, notes = build_rows(cells, metric, baseline)
    notes = [*render.chosen_notes(rows), *notes, _status_note(cells)]
    legend = render.LEGEND.format(baseline=baseline)
    out.mkdir(parents=True, exist_ok=True)
    board = render.markdown(*render.leaderboard_table(rows, render.bold_markdown))
    text = "\n".join([board, legend, "", *(f"- {note}" for note in notes), ""])
    write_atomic(out / "leaderboard.md", text)
    write_atomic(
        out / "leaderboard.tex",
        render.latex(*render.leaderboard_table(rows, render.bold_latex), title),
    )
    write_atomic(out / "leaderboard.csv", render.rows_csv(render.leaderboard(rows)))
    write_atomic(
        out / "settings.md", render.markdown(*render.settings_table(rows, render.bold_markdown))
    )
    write_atomic(out / "settings.csv", render.rows_csv(rows))
    write_atomic(out / "cells.csv", render.cells_csv(rows))
    sections = [
        (
            "Leaderboard",
            page.table(*render.leaderboard_table(rows, page.bold_html))
            + page.paragraphs([legend, *notes]),
        ),
        (
            "Every setting",
            page.table(*render.settings_table(rows, page.bold_html))
            + page.paragraphs([render.SETTINGS_LEGEND]),
        ),
    ]
    if figures:
        sections.append(("Figures", _draw(rows, out / "figures")))
    sections.append(("Experiments", page.table(*render.cells_table(rows))))
    write_atomic(out / "report.html", page.page(title, sections))
    print(text)
    print(f"report: {out / 'report.html'}")


def _status_note(cells: list) -> str:
    counts = Counter(cell.status for cell in cells)
    return (
        f"{len(cells)} experiments: "
        + ", ".join(f"{number} {status}" for status, number in counts.most_common())
        + "."
    )


def _draw(rows: list, folder: Path) -> str:
    """Write the figures as PNG and PDF; returns them as HTML."""
    from s3prl_varan.files import write_atomic
    from s3prl_varan.report.figures import all_pictures
    from s3prl_varan.report.page import picture

    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for drawn in all_pictures(rows):
        for kind in ("png", "pdf"):
            data = io.BytesIO()
            drawn.figure.savefig(
                data,
                format=kind,
                dpi=120,
                metadata={"CreationDate": None} if kind == "pdf" else None,
            )
            write_atomic(folder / f"{drawn.name}.{kind}", data.getvalue())
            if kind == "png":
                shown.append(picture(data.getvalue(), drawn.caption))
    return "\n".join(shown)
