"""What is to be known of each downstream: its metric, its splits, what its data must look like. One registry, `-d NAME`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.tasks import metrics

Records = dict[str, list]


@dataclass(frozen=True)
class Task:
    """A downstream of s3prl that can be adapted."""

    name: str
    metric: str  # the figure that chooses the best checkpoint
    higher_is_better: bool
    measure: Callable[[Records], dict[str, float]]  # records of a whole split -> figures in percent
    check_data: Callable[[dict[str, Any], str | None, list[str]], None] = (
        lambda section, variant, splits: None
    )
    adjust: Callable[[Any, dict[str, Any], str | None], None] = lambda expert, section, variant: (
        None
    )
    truth: str = "truth"  # records' key of the labels
    predict: str = "predict"
    filename: str = "filename"
    default_fold: str | None = None
    splits: Callable[[dict[str, Any]], list[str]] = lambda section: ["train", "dev", "test"]
    expert_section: Callable[[dict[str, Any]], dict[str, Any]] = lambda section: (
        section
    )  # as s3prl's expert is to see it
    infer: Callable[..., None] | None = None  # its own -m inference: (args, model, device)

    def better(self, value: float, than: float | None) -> bool:
        """Is `value` of the metric better than the best so far?"""
        if than is None:
            return True
        return value > than if self.higher_is_better else value < than


def _emotion_folder(section: dict[str, Any], variant: str | None) -> Path:
    """Where s3prl's emotion expert looks for a fold's metadata."""
    fold = section["datarc"].get("test_fold") or variant or "fold1"
    return Path(section["datarc"]["meta_data"]) / fold.replace("fold", "Session")


def _check_emotion(section: dict[str, Any], variant: str | None, splits: list[str]) -> None:
    """The corpus and the fold's metadata are there, and every clip it names can be read."""
    datarc = section["datarc"]
    root, folder = Path(datarc["root"]), _emotion_folder(section, variant)
    remedy = (
        "Prepare the corpus with `python run/prepare_data.py iemocap|ravdess ROOT`, then point to it with "
        '-o "config.downstream_expert.datarc.root=ROOT,,config.downstream_expert.datarc.meta_data=ROOT/meta_data".'
    )
    problems = []
    if not root.is_dir():
        problems.append(f"config.downstream_expert.datarc.root: no folder {root}")
    missing = [
        name
        for name in ("train_meta_data.json", "test_meta_data.json")
        if not (folder / name).is_file()
    ]
    if missing:
        there = sorted(
            path.name.replace("Session", "fold")
            for path in folder.parent.glob("*")
            if path.is_dir()
        )
        folds = f" (-v can be: {', '.join(there)})" if there else ""
        problems.append(f"no {' and no '.join(missing)} in {folder}{folds}")
    if not problems:
        problems = _emotion_clip_problems(root, folder)
        remedy = "Run `python run/prepare_data.py` on the corpus again: it reports and handles such files."
    if problems:
        raise problems_error("The emotion corpus cannot be used:", problems, remedy)


def _emotion_clip_problems(root: Path, folder: Path) -> list[str]:
    """What is wrong with the clips of a fold: missing, unreadable, empty, or not 16 kHz mono as the expert takes them."""
    from s3prl_varan.audio import examine_audio_files

    problems, paths = [], set()
    for file in sorted(folder.glob("*_meta_data.json")):
        try:
            paths |= {
                entry["path"] for entry in json.loads(file.read_text(encoding="utf-8"))["meta_data"]
            }
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{file}: not emotion metadata ({type(error).__name__}: {error})")
    for found in examine_audio_files((root / path for path in sorted(paths)), decode=False):
        if found.problem:
            problems.append(found.problem)
        elif found.info is not None and not found.info.is_16k_mono:
            problems.append(
                f"{found.path}: {found.info.rate} Hz, {found.info.channels} channel(s); expected 16 kHz mono"
            )
    return problems


def _speaker_independent_dev(expert: Any, section: dict[str, Any], variant: str | None) -> None:
    """Where the fold has a dev_meta_data.json, dev is that and train is all of train (s3prl draws dev at random)."""
    from s3prl.downstream.emotion.dataset import IEMOCAPDataset

    path = _emotion_folder(section, variant) / "dev_meta_data.json"
    if path.is_file():
        expert.train_dataset = expert.train_dataset.dataset
        expert.dev_dataset = IEMOCAPDataset(
            section["datarc"]["root"], str(path), section["datarc"]["pre_load"]
        )


def _paths_exist(*keys: str) -> Callable[[dict[str, Any], str | None, list[str]], None]:
    """A check that the corpus is where these keys of datarc say."""

    def check(section: dict[str, Any], variant: str | None, splits: list[str]) -> None:
        datarc = section["datarc"]
        absent = [key for key in keys if not Path(str(datarc.get(key))).exists()]
        missing = [
            f"config.downstream_expert.datarc.{key}: nothing at {datarc.get(key)}" for key in absent
        ]
        if missing:
            raise problems_error(
                "The corpus is not there:",
                missing,
                "Set these keys with -o or in a config given by -c.",
            )

    return check


TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Make a downstream known to -d."""
    TASKS[task.name] = task
    return task


register_task(
    Task(
        "emotion",
        metric="acc",
        higher_is_better=True,
        measure=metrics.classification,
        check_data=_check_emotion,
        adjust=_speaker_independent_dev,
        default_fold="fold1",
    )
)
register_task(
    Task(
        "speech_commands",
        metric="acc",
        higher_is_better=True,
        measure=metrics.classification,
        check_data=_paths_exist("speech_commands_root", "speech_commands_test_root"),
    )
)
register_task(
    Task(
        "fluent_commands",
        metric="acc",
        higher_is_better=True,
        measure=metrics.accuracy,
        check_data=_paths_exist("file_path"),
    )
)
register_task(
    Task(
        "voxceleb1",
        metric="acc",
        higher_is_better=True,
        measure=metrics.accuracy,
        check_data=_paths_exist("file_path", "meta_data"),
        truth="truth_speaker",
        predict="predict_speaker",
    )
)

_WHY_NOT = {
    "sv_voxceleb1": "speaker verification learns an embedding with its own pooling and a margin loss",
    "diarization": "its loss is permutation-invariant over speakers and frames, not a likelihood of one label",
    "separation_stft": "it regresses spectral masks",
    "separation_stft2": "it regresses spectral masks",
    "enhancement_stft": "it regresses spectral masks",
    "enhancement_stft2": "it regresses spectral masks",
    "speech_translation": "it trains a fairseq sequence-to-sequence model inside the expert",
    "a2o-vc-vcc2020": "it regresses spectrograms",
    "mos_prediction": "it regresses scores from segments",
    "quesst14_dtw": "nothing is trained in it",
    "quesst14_embedding": "it learns an embedding, not a label's likelihood",
}


def find_task(name: str) -> Task:
    """The task of -d, or a UserError with the reason and the way out."""
    if name in TASKS:
        return TASKS[name]
    known = ", ".join(sorted(TASKS))
    if name in _WHY_NOT:
        raise UserError(
            f"Downstream '{name}' cannot be adapted to layer-wise heads: {_WHY_NOT[name]}. "
            f"Use s3prl's own run_downstream.py for it (weighted sum only), or one of: {known}."
        )
    raise UserError(
        f"Unknown downstream '{name}': expected one of {known}.{did_you_mean(name, TASKS)}"
    )


from s3prl_varan.tasks.asr import task as _asr  # noqa: E402, F401 (registers itself)
