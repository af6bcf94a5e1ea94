"""Collect the prediction files that the SUPERB public leaderboard takes into one folder and predict.zip.

The names inside are those of the upload that s3prl/submit/submit.py makes: predict/TASK_public/predict.txt|ark|csv.
"""

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from s3prl_varan.errors import problems_error
from s3prl_varan.files import write_atomic
from s3prl_varan.report.cells import Cell

ER_FOLDS = 5  # IEMOCAP's sessions; the leaderboard scores ER only with all of them


@dataclass(frozen=True)
class Item:
    """One prediction file of one experiment."""

    task: str  # folder in the upload
    source: Path
    target: str  # file name in the upload
    cell: Cell


def submission_item(cell: Cell) -> Item | None:
    """The prediction file of a finished experiment under the leaderboard's name; None for a task it does not have here."""
    folder = cell.path
    if cell.setup.downstream == "emotion":
        return Item(
            f"er_{cell.fold}_public", folder / f"test_{cell.fold}_predict.txt", "predict.txt", cell
        )
    if cell.setup.downstream == "asr":
        with_lm, without = folder / "test-clean-LM-hyp.ark", folder / "test-clean-noLM-hyp.ark"
        if with_lm.is_file() and not without.is_file():
            return Item("asr_lm_public", with_lm, "predict.ark", cell)
        return Item("asr_public", without, "predict.ark", cell)
    simple = {
        "ctc": ("pr_public", "test-hyp.ark", "predict.ark"),
        "speech_commands": ("ks_public", "test_predict.txt", "predict.txt"),
        "fluent_commands": ("ic_public", "test_predict.csv", "predict.csv"),
        "voxceleb1": ("sid_public", "test_predict.txt", "predict.txt"),
    }
    if cell.setup.downstream not in simple:
        return None
    task, source, target = simple[cell.setup.downstream]
    return Item(task, folder / source, target, cell)


def collect_submission(cells: list[Cell], out: Path) -> Path:
    """Copy the prediction files of the finished cells to OUT/predict, zip them, write a README. Returns the zip's path.

    Raises UserError where a file is missing or two experiments claim one place (choose one method and one seed).
    """
    items = [
        item
        for item in map(submission_item, (cell for cell in cells if cell.done))
        if item is not None
    ]
    problems = [
        f"{item.cell.path}: no {item.source.name}" for item in items if not item.source.is_file()
    ]
    by_task: dict[str, Item] = {}
    for item in items:
        other = by_task.setdefault(item.task, item)
        if other is not item:
            problems.append(f"{item.task}: both {other.cell.path} and {item.cell.path}")
    if not items:
        problems.append("none of the experiments is a finished run of a task the leaderboard takes")
    if problems:
        remedy = "Name the folders of one method and one seed: a fold each for emotion recognition, one for any other task."
        raise problems_error("No submission can be made of these experiments:", problems, remedy)
    for item in items:
        folder = out / "predict" / item.task
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item.source, folder / item.target)
    with zipfile.ZipFile(out / "predict.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for item in sorted(items, key=lambda item: item.task):
            archive.write(
                out / "predict" / item.task / item.target, f"predict/{item.task}/{item.target}"
            )
    write_atomic(out / "README.md", _readme(items))
    return out / "predict.zip"


def _readme(items: list[Item]) -> str:
    lines = ["# SUPERB submission", "", "Upload predict.zip. What is in it:", ""]
    lines += [
        "| file | upstream | method | fold | seed | steps | test | experiment |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in sorted(items, key=lambda item: item.task):
        cell = item.cell
        figures = next(iter(cell.test.values()), {})
        value = f"{cell.metric} {figures[cell.metric]:.2f}" if cell.metric in figures else ""
        lines.append(
            f"| predict/{item.task}/{item.target} | {cell.setup.upstream} | {cell.featurizer} ({cell.tuning}) | {cell.fold} | "
            f"{cell.seed} | {cell.best_step}/{cell.steps} | {value} | {cell.path} |"
        )
    folds = {item.task for item in items if item.task.startswith("er_fold")}
    if folds and len(folds) < ER_FOLDS:
        lines += [
            "",
            f"Emotion recognition: {len(folds)} of {ER_FOLDS} folds. The leaderboard scores it only with all of them.",
        ]
    if any(
        item.cell.setup.corpus.lower() != "iemocap"
        for item in items
        if item.task.startswith("er_fold")
    ):
        lines += [
            "",
            "The leaderboard's emotion recognition is IEMOCAP; these predictions are on another corpus.",
        ]
    settings = {f"{key}: {value}" for item in items for key, value in item.cell.settings.items()}
    lines += [
        "",
        "Settings of these experiments (as config and flags name them):",
        "",
        *(f"- {line}" for line in sorted(settings)),
    ]
    return "\n".join(lines) + "\n"
