"""Labelled clips and the splits that they get: folds with speakers kept apart and labels alike."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_varan.audio import AudioInfo
from s3prl_varan.corpora.metadata import SPLITS
from s3prl_varan.corpora.preparation import first_problems
from s3prl_varan.errors import UserError, problems_error

DEV_SHARE = 5  # dev is one part in so many of what is left for training
Assignment = dict[str, list[str]]  # `split`, or the name of each fold -> the split of every clip


@dataclass(frozen=True)
class LabelledClip:
    """A recording, or a stretch of one, with its label."""

    shown: str  # the path as written
    path: Path
    label: str
    speaker: str = ""
    fold: str = ""  # where the user's table has them: the one that this clip is tested in
    split: str = ""
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: to the end of the file
    info: AudioInfo | None = None  # of the file, once it has been checked

    @property
    def name(self) -> str:
        """Unique, without white space."""
        stretch = "" if self.end is None and not self.start else f":{self.start}-{self.end or ''}"
        return "_".join(self.shown.split()) + stretch

    @property
    def seconds(self) -> float:
        """Length of the stretch."""
        assert self.info is not None, "only checked files are asked"
        return min(self.info.seconds, self.end or math.inf) - self.start


def assign(clips: Sequence[LabelledClip], folds: int, seed: int, notes: list[str]) -> Assignment:
    """The split of every clip, in each fold; what is worth knowing of them goes into `notes`.

    Given splits are kept. Given folds are each tested once, and so are those that are made: as
    alike in their labels as can be, none with a speaker (where none is named: a recording) of
    another's. Where there is no dev it is taken out of train the same way.
    """
    if any(clip.split for clip in clips):
        return {"split": _with_dev(clips, [clip.split for clip in clips], seed, notes)}
    if any(clip.fold for clip in clips):
        names = sorted({clip.fold for clip in clips}, key=lambda name: (len(name), name))
        tested = {name: {at for at, c in enumerate(clips) if c.fold == name} for name in names}
        if len(names) < 2:
            raise UserError(f"column fold: at least two folds are expected, found {names[0]}.")
    else:
        parts = _parts(clips, folds, seed, notes)
        if len(parts) < folds:
            notes.append(f"{len(parts)} speakers or recordings make so many folds, not {folds}")
        tested = {f"fold{number}": set(part) for number, part in enumerate(parts, start=1)}
    return {
        name: _with_dev(
            clips, ["test" if at in part else "train" for at in range(len(clips))], seed, notes
        )
        for name, part in tested.items()
    }


def _with_dev(
    clips: Sequence[LabelledClip], splits: list[str], seed: int, notes: list[str]
) -> list[str]:
    """The splits with a part of train as dev where there is none."""
    places = [at for at, split in enumerate(splits) if split == "train"]
    if "dev" in splits or not places:
        return splits
    train = [clips[at] for at in places]
    most = max(Counter(clip.label for clip in train).values())
    parts = _parts(train, min(DEV_SHARE, max(2, most)), seed, notes)
    dev = min(parts, key=lambda part: len(labels_of(train) - labels_of(train, without=part)))
    chosen = {places[at] for at in dev}
    return ["dev" if at in chosen else split for at, split in enumerate(splits)]


def labels_of(clips: Sequence[LabelledClip], without: Sequence[int] = ()) -> set[str]:
    left_out = set(without)
    return {clip.label for at, clip in enumerate(clips) if at not in left_out}


def _parts(
    clips: Sequence[LabelledClip], count: int, seed: int, notes: list[str]
) -> list[list[int]]:
    """Places of the clips in `count` parts with about the same labels; groups are kept whole.

    A group is a speaker, or where none is named a recording. Fewer groups make fewer parts.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if count < 2:
        raise UserError(f"--folds {count}: at least 2 are expected.")
    groups = [clip.speaker or str(clip.path) for clip in clips]
    distinct, note = len(set(groups)), ""
    if distinct == 1:
        note = f"nothing but {groups[0]} to part: two splits share this speaker or recording"
    elif not clips[0].speaker:
        note = "no column speaker: a speaker may be in several splits of those that were made"
    if note and note not in notes:
        notes.append(note)
    whole = distinct == len(clips) or distinct == 1
    count = count if whole else min(count, distinct)
    splitter = StratifiedKFold if whole else StratifiedGroupKFold
    labels = [clip.label for clip in clips]
    try:
        with warnings.catch_warnings():  # of classes with fewer clips than parts: see the table
            warnings.simplefilter("ignore", UserWarning)
            found = splitter(n_splits=count, shuffle=True, random_state=seed).split(
                labels, labels, groups
            )
            parts = [test.tolist() for _, test in found]
    except ValueError as error:
        raise UserError(
            f"{len(clips)} clips of {len(set(labels))} labels cannot be parted into {count} folds "
            f"({error}). Give more clips a label, fewer --folds, or a column fold or split."
        ) from error
    return [part for part in parts if part]


def check_columns(clips: Sequence[LabelledClip], columns: Assignment) -> None:
    """UserError where a split lacks clips or has labels that its train does not know."""
    problems = [f"{column}: no test clips" for column in columns if "test" not in columns[column]]
    for column, splits in columns.items():
        counts = {split: Counter[str]() for split in SPLITS}
        for clip, split in zip(clips, splits, strict=True):
            counts[split][clip.label] += 1
        if len(counts["train"]) < 2:
            found = ", ".join(counts["train"]) or "none"
            problems.append(f"{column}: at least two labels are needed in train, found {found}")
            continue
        problems += [
            f"{column}: {count} {split} clips of {label!r}, of which train has none"
            for split in ("dev", "test")
            for label, count in counts[split].items()
            if label not in counts["train"]
        ]
    if problems:
        headline = f"{len(problems)} problems in the splits; nothing was written:"
        remedy = (
            "A label needs clips in train: of several speakers where folds keep speakers apart. "
            "Take it out of the table, or give a column fold or split."
        )
        raise problems_error(headline, first_problems(problems), remedy)
