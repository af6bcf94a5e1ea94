"""Collect the prediction files that the SUPERB public leaderboard takes, as predict.zip.

Their places in the upload are stored by the experiments themselves.
"""

import shutil
import zipfile
from pathlib import Path

from s3prl_varan.errors import problems_error
from s3prl_varan.files import write_atomic
from s3prl_varan.report.cells import Cell


def collect_submission(cells: list[Cell], out: Path) -> Path:
    """Copy the prediction files of the finished cells to OUT/predict, zip them, write a README.

    Returns the zip's path. Raises UserError where a file is missing or two experiments claim one
    place (choose one method and one seed).
    """
    places: dict[str, tuple[Cell, Path]] = {}
    problems = []
    for cell in cells:
        if cell.done and cell.submission is None:
            problems.append(f"{cell.path}: made by version 0.1, submit it with that version")
        entries = cell.submission or {}
        sources = {place: cell.path / name for place, name in entries.items() if cell.done}
        present = {place: source for place, source in sources.items() if source.exists()}
        if sources and not present:
            names = " and no ".join(source.name for source in sources.values())
            problems.append(f"{cell.path}: no {names}")
        for place, source in (present or sources).items():
            other = places.setdefault(place, (cell, source))[0]
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
    ordered = dict(sorted(places.items()))
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out / "predict.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for place, (_, source) in ordered.items():
            # A folder has a file for each recording.
            for file in sorted(source.iterdir()) if source.is_dir() else [source]:
                target = out / "predict" / place / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                archive.write(target, target.relative_to(out))
    write_atomic(out / "README.md", _readme({place: one for place, (one, _) in ordered.items()}))
    return out / "predict.zip"


def _readme(cells: dict[str, Cell]) -> str:
    lines = [
        "# SUPERB submission\n\nUpload predict.zip. What is in it:\n",
        "| file | upstream | corpus | method | fold | seed | steps | test | experiment |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for place, cell in cells.items():
        figures = next(iter(cell.test.values()), {})
        value = f"{cell.metric} {figures[cell.metric]:.2f}" if cell.metric in figures else ""
        shown = (
            f"predict/{place}", cell.setup.upstream, cell.setup.corpus,
            f"{cell.featurizer} ({cell.tuning})", cell.fold, cell.seed,
            f"{cell.best_step}/{cell.steps}", value, cell.path,
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, shown))} |")
    lines.append("\nThe leaderboard scores predictions on SUPERB's own corpora.")
    folds: dict[str, list[str]] = {}
    for cell in cells.values():
        if cell.fold != "-":
            folds.setdefault(f"{cell.title} on {cell.setup.corpus}", []).append(cell.fold)
    for task, held in folds.items():
        lines.append(
            f"Here: {len(held)} fold(s) of {task} ({', '.join(held)}); it is scored only with all."
        )
    settings = {
        f"- {key}: {value}" for one in cells.values() for key, value in one.settings.items()
    }
    lines += ["\nSettings of these experiments (as config and flags name them):\n"]
    return "\n".join([*lines, *sorted(settings)]) + "\n"
