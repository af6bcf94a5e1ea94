"""Labelled clips with folds, in the metadata that s3prl's dataset of such corpora reads.

OUT/<fold>/{train,dev,test}_meta_data.json, each {"labels": {name: id}, "meta_data": [{"path",
"label", "speaker"}]}. `-v fold1` is the folder Session1; any other name is its folder's. Paths are
relative to the corpus root where they lie inside it. A dev file is our addition: without one, a
random fifth of the training clips takes its place.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from s3prl_varan.audio import AudioInfo, convert_to_16k_mono, examine_audio_files
from s3prl_varan.corpora.preparation import Summary, output_folder, table
from s3prl_varan.errors import problems_error
from s3prl_varan.files import write_texts

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Clip:
    """One labelled recording."""

    path: Path
    label: str
    speaker: str
    info: AudioInfo | None = None  # known once the file has been checked


Folds = dict[str, dict[str, list[Clip]]]  # name for -v: {split: clips}


@dataclass(frozen=True)
class SplitRow:
    """One line of the summary."""

    fold: str  # as given to -v
    split: str
    clips: int
    speakers: int
    hours: float
    counts: dict[str, int]  # clips per class


@dataclass
class CorpusSummary(Summary):
    """What a preparation did; `str()` of it is what the command prints."""

    name: str = ""  # of the corpus
    clips: int = 0

    def __str__(self) -> str:
        """A table of folds and splits, then what was converted, left out and odd."""
        head = ["fold", "split", "clips", "speakers", "hours", *self.rows[0].counts]
        cells = [
            [r.fold, r.split, r.clips, r.speakers, f"{r.hours:.2f}", *r.counts.values()]
            for r in self.rows
        ]
        where = f"{self.name}: {self.clips} clips, metadata in {self.out}"
        return "\n".join([*table(head, cells, 2), where, *self.remarks()])


def prepare_clips(
    name: str,
    root: Path,
    out: str | Path | None,
    found: tuple[list[Clip], list[str]],
    labels: Mapping[str, int],
    build_folds: Callable[[list[Clip]], Folds],
    *,
    skip_bad: bool,
) -> CorpusSummary:
    """Check the clips found, convert what is not 16 kHz mono, write the metadata of all folds.

    found: clips, and a line for everything that was wrong in finding them. skip_bad: leave out
    what has a problem instead of stopping. Every file is decoded once. Raises UserError listing
    all problems, or the splits that would be empty; then no metadata has been written.
    """
    clips, problems = found
    folder = output_folder(root, out)
    good, skipped = check_clips(clips, problems, skip_bad=skip_bad)
    build_folds(good)  # too few speakers: say so before anything is converted
    summary = CorpusSummary(root, folder, name=name, clips=len(good), skipped=skipped)
    summary.note_others(clip.path for clip in clips)
    good, summary.converted = convert_clips(good, root, folder)
    write_folds(summary, labels, build_folds(good))
    return summary


def check_clips(
    clips: Sequence[Clip], problems: Sequence[str], *, skip_bad: bool
) -> tuple[list[Clip], list[str]]:
    """Decode every clip; the good ones (with their length), and why the others were left out.

    problems: what finding the clips already brought up. Raises UserError with all of them and
    every bad file, unless skip_bad.
    """
    remedy = "Mend or remove these, or leave them out with --skip_bad."
    checked = examine_audio_files([clip.path for clip in clips])
    bad = [*problems, *(file.problem for file in checked if file.problem)]
    if bad and not skip_bad:
        headline = f"{len(bad)} problems in the corpus; nothing was written:"
        raise problems_error(headline, bad, remedy)
    both = zip(clips, checked, strict=True)
    good = [replace(clip, info=file.info) for clip, file in both if not file.problem]
    if not good:
        raise problems_error("no usable clip is left:", bad, remedy)
    return good, bad


def convert_clips(clips: Sequence[Clip], root: Path, out: Path) -> tuple[list[Clip], int]:
    """All clips, those that are not 16 kHz mono rewritten under out/converted, and their number.

    s3prl's dataset resamples by the rate of its first file alone and cannot take stereo.
    """
    result, count = [], 0
    for clip in clips:
        if clip.info is None or not clip.info.is_16k_mono:
            target = (out / "converted" / os.path.relpath(clip.path, root)).with_suffix(".wav")
            clip = replace(clip, path=target, info=convert_to_16k_mono(clip.path, target))
            count += 1
        result.append(clip)
    return result, count


def write_folds(summary: CorpusSummary, labels: Mapping[str, int], folds: Folds) -> None:
    """Write all folds under summary.out and fill summary.rows. Nothing is written on error.

    Raises UserError when a split of a fold is empty.
    """
    parts = [(fold, split, clips) for fold in folds for split, clips in folds[fold].items()]
    empty = [f"{fold}: no {split} clips" for fold, split, clips in parts if not clips]
    if empty:
        headline = "the corpus is too small for its folds:"
        raise problems_error(headline, empty, "More speakers are needed.")
    texts = {}
    for fold, split, clips in parts:
        rows = [_entry(clip, summary.root) for clip in clips]
        content = {"labels": dict(labels), "meta_data": rows}
        texts[_file(summary, fold, split)] = json.dumps(content, indent=1)
        summary.rows.append(_row(fold, split, clips, labels))
        missing = set(labels) - {clip.label for clip in clips}
        if split == "train" and missing:
            absent = ", ".join(name for name in labels if name in missing)
            summary.notes.append(f"{fold}: no training clip of class {absent}")
    write_texts(texts)
    for fold in folds:
        for split in SPLITS:  # of an earlier preparation
            if split not in folds[fold]:
                _file(summary, fold, split).unlink(missing_ok=True)


def _file(summary: CorpusSummary, fold: str, split: str) -> Path:
    return summary.out / fold.replace("fold", "Session") / f"{split}_meta_data.json"


def _entry(clip: Clip, root: Path) -> dict[str, str]:
    inside = clip.path.is_relative_to(root)
    path = clip.path.relative_to(root).as_posix() if inside else str(clip.path)
    return {"path": path, "label": clip.label, "speaker": clip.speaker}


def _row(fold: str, split: str, clips: Sequence[Clip], labels: Mapping[str, int]) -> SplitRow:
    counted = Counter(clip.label for clip in clips)
    hours = sum(clip.info.seconds for clip in clips if clip.info) / 3600
    speakers = len({clip.speaker for clip in clips})
    return SplitRow(fold, split, len(clips), speakers, hours, {k: counted[k] for k in labels})
