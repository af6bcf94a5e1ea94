"""Collect the prediction files that the SUPERB public leaderboard takes, as predict.zip.

Their places in the upload are stored by the experiments themselves.
"""

import shutil
import zipfile
from pathlib import Path

from s3prl_varan.errors import problems_error
from s3prl_varan.files import write_atomic
from s3prl_varan.report.cells import Cell
from s3prl_varan.report.render import markdown, table_of
from s3prl_varan.report.table import grouped


def collect_submission(cells: list[Cell], out: Path) -> Path:
    """Copy the prediction files of the finished cells to OUT/predict, zip them, write a README.

    Returns the zip's path. Raises UserError where a file is missing or two experiments claim one
    place (choose one method and one seed).
    """
    places: dict[str, tuple[Cell, Path]] = {}
    problems = []
    for cell in (cell for cell in cells if cell.done):
        if cell.submission is None:
            problems.append(f"{cell.path}: made by version 0.1, submit it with that version")
        sources = {place: cell.path / name for place, name in (cell.submission or {}).items()}
        present = {place: source for place, source in sources.items() if source.exists()}
        if sources and not present:
            names = " and no ".join(source.name for source in sources.values())
            problems.append(f"{cell.path}: no {names}")
        for place, source in (present or sources).items():
            other, _ = places.setdefault(place, (cell, source))
            if other is not cell:
                problems.append(f"{place}: both {other.path} and {cell.path}")
    if not places and not problems:
        problems.append("none of the experiments is a finished run of a task the leaderboard takes")
    if problems:
        remedy = (
            "Name the folders of one method and one seed: one for each task, or one for each fold "
            "of a task that has folds."
        )
        raise problems_error("No submission can be made of these experiments:", problems, remedy)
    archive = out / "predict.zip"
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for place, (_, source) in sorted(places.items()):
            # A folder has a file for each recording.
            for file in sorted(source.iterdir()) if source.is_dir() else [source]:
                target = out / "predict" / place / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                content.write(target, target.relative_to(out))
    write_atomic(out / "README.md", _readme({place: places[place][0] for place in sorted(places)}))
    return archive


def _readme(cells: dict[str, Cell]) -> str:
    """place -> cell, as text for whoever uploads."""
    records = []
    for place, cell in cells.items():
        figures = next(iter(cell.test.values()), {})
        record = {
            "file": f"predict/{place}",
            "upstream": cell.setup.upstream,
            "corpus": cell.setup.corpus,
            "method": f"{cell.featurizer} ({cell.tuning})",
            "fold": cell.fold,
            "seed": str(cell.seed),
            "steps": f"{cell.best_step}/{cell.steps}",
            "test": f"{cell.metric} {figures[cell.metric]:.2f}" if cell.metric in figures else "",
            "experiment": str(cell.path),
        }
        records.append(record)
    with_folds = [cell for cell in cells.values() if cell.fold != "-"]
    folds = grouped(with_folds, lambda cell: f"{cell.title} on {cell.setup.corpus}")
    told = [
        f"Here: {len(held)} fold(s) of {task} ({', '.join(cell.fold for cell in held)}); it is "
        "scored only with all."
        for task, held in folds.items()
    ]
    settings = {f"- {key}: {one}" for cell in cells.values() for key, one in cell.settings.items()}
    lines = [
        "# SUPERB submission\n\nUpload predict.zip. What is in it:\n",
        markdown(table_of(records)),
        "The leaderboard scores predictions on SUPERB's own corpora.",
        *told,
        "\nSettings of these experiments (as config and flags name them):\n",
        *sorted(settings),
    ]
    return "\n".join(lines) + "\n"
