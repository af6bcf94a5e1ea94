"""Emotion metadata as s3prl's emotion expert reads it, shared by all emotion corpora.

OUT/<fold>/{train,dev,test}_meta_data.json, each {"labels": {name: id}, "meta_data": [{"path", "label", "speaker"}]}. The
expert maps `-v fold1` to the folder Session1 and takes any other name literally. Paths are relative to the corpus root where
they lie inside it. A dev file is our addition: without one the expert takes a random fifth of the training clips.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from s3prl_varan.audio import AudioInfo, convert_to_16k_mono, examine_audio_files
from s3prl_varan.errors import UserError, problems_error

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Clip:
    """One labelled recording."""

    path: Path
    label: str
    speaker: str
    info: AudioInfo | None = None  # known once the file has been checked


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
class CorpusSummary:
    """What a preparation did; `str()` of it is what the command prints."""

    name: str
    root: Path
    out: Path
    rows: list[SplitRow] = field(default_factory=list)
    clips: int = 0
    converted: int = 0  # clips rewritten as 16 kHz mono
    skipped: list[str] = field(default_factory=list)  # left out by --skip_bad, with the reason
    notes: list[str] = field(default_factory=list)  # worth knowing, not wrong enough to stop

    def __str__(self) -> str:
        """A table of folds and splits, then what was converted, skipped and odd."""
        lines = [*_table(self.rows), f"{self.name}: {self.clips} clips, metadata in {self.out}"]
        if self.converted:
            lines.append(
                f"converted {self.converted} clips to 16 kHz mono in {self.out / 'converted'}"
            )
        if self.skipped:
            lines += [
                f"left out {len(self.skipped)}:",
                *(f"  - {reason}" for reason in self.skipped),
            ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def require_folder(root: str | Path, what: str) -> Path:
    """`root` as an absolute path. Raises UserError when it is not a folder."""
    path = Path(os.path.abspath(Path(root).expanduser()))
    if not path.is_dir():
        raise UserError(f"{what}: no folder at {path}. Give the folder that holds the corpus.")
    return path


def output_folder(root: Path, out: str | Path | None) -> Path:
    """Where results go: `out`, else root/meta_data. Made now, so that a read-only place is known before the slow work."""
    path = Path(os.path.abspath(Path(out).expanduser())) if out is not None else root / "meta_data"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to {path} ({error.strerror}). Choose another folder with --out."
        ) from error
    return path


def check_clips(
    clips: Sequence[Clip], problems: Sequence[str], *, skip_bad: bool, remedy: str
) -> tuple[list[Clip], list[str]]:
    """Decode every clip; return the good ones (with their length) and, under skip_bad, why the others were left out.

    problems: what finding the clips already brought up. Raises UserError with all of them and every bad file, unless skip_bad.
    """
    checked = examine_audio_files([clip.path for clip in clips])
    bad = [*problems, *(file.problem for file in checked if file.problem)]
    if bad and not skip_bad:
        raise problems_error(
            f"{len(bad)} problems in the corpus; nothing was written:", bad, remedy
        )
    good = [
        replace(clip, info=file.info)
        for clip, file in zip(clips, checked, strict=True)
        if not file.problem
    ]
    if not good:
        raise problems_error("no usable clip is left:", bad, remedy)
    return good, bad


def convert_clips(clips: Sequence[Clip], root: Path, out: Path) -> tuple[list[Clip], int]:
    """Rewrite clips that are not 16 kHz mono under out/converted; return all clips and the number converted.

    The expert resamples by the rate of its first file alone and cannot take stereo.
    """
    result, count = [], 0
    for clip in clips:
        if clip.info is not None and clip.info.is_16k_mono:
            result.append(clip)
            continue
        target = (out / "converted" / os.path.relpath(clip.path, root)).with_suffix(".wav")
        result.append(replace(clip, path=target, info=convert_to_16k_mono(clip.path, target)))
        count += 1
    return result, count


def write_emotion_metadata(
    summary: CorpusSummary,
    labels: Mapping[str, int],
    folds: Mapping[str, Mapping[str, Sequence[Clip]]],
) -> None:
    """Write all folds ({name for -v: {split: clips}}) under summary.out and fill summary.rows. Nothing is written on error.

    Raises UserError when a split of a fold is empty.
    """
    empty = [
        f"{fold}: no {split} clips"
        for fold, splits in folds.items()
        for split, clips in splits.items()
        if not clips
    ]
    if empty:
        raise problems_error(
            "the corpus is too small for its folds:", empty, "More speakers are needed."
        )
    texts: dict[Path, str] = {}
    stale: list[Path] = []
    for fold, splits in folds.items():
        folder = summary.out / fold.replace("fold", "Session")
        for split, clips in splits.items():
            rows = [_entry(clip, summary.root) for clip in clips]
            texts[folder / f"{split}_meta_data.json"] = json.dumps(
                {"labels": dict(labels), "meta_data": rows}, indent=1
            )
            summary.rows.append(_row(fold, split, clips, labels))
        stale += [folder / f"{split}_meta_data.json" for split in SPLITS if split not in splits]
        missing = [
            name for name in labels if not any(clip.label == name for clip in splits["train"])
        ]
        if missing:
            summary.notes.append(f"{fold}: no training clip of class {', '.join(missing)}")
    write_texts(texts)
    for path in stale:
        path.unlink(missing_ok=True)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write files so that each is whole: all of them under temporary names first, then renamed into place."""
    ready: list[tuple[str, Path]] = []
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
            ready.append((temporary, path))
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
        for temporary, path in ready:
            os.replace(temporary, path)
    finally:
        for temporary, _ in ready:
            Path(temporary).unlink(missing_ok=True)


def _entry(clip: Clip, root: Path) -> dict[str, str]:
    inside = clip.path.is_relative_to(root)
    path = clip.path.relative_to(root).as_posix() if inside else str(clip.path)
    return {"path": path, "label": clip.label, "speaker": clip.speaker}


def _row(fold: str, split: str, clips: Sequence[Clip], labels: Mapping[str, int]) -> SplitRow:
    counted = Counter(clip.label for clip in clips)
    hours = sum(clip.info.seconds for clip in clips if clip.info) / 3600
    return SplitRow(
        fold,
        split,
        len(clips),
        len({c.speaker for c in clips}),
        hours,
        {k: counted[k] for k in labels},
    )


def _table(rows: Sequence[SplitRow]) -> list[str]:
    if not rows:
        return []
    head = ["fold", "split", "clips", "speakers", "hours", *rows[0].counts]
    cells = [
        [
            r.fold,
            r.split,
            str(r.clips),
            str(r.speakers),
            f"{r.hours:.2f}",
            *(str(n) for n in r.counts.values()),
        ]
        for r in rows
    ]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    return [
        "  ".join(_pad(cell, widths[i], i) for i, cell in enumerate(row)) for row in [head, *cells]
    ]


def _pad(cell: str, width: int, column: int) -> str:
    return (
        cell.ljust(width) if column < 2 else cell.rjust(width)
    )  # names to the left, figures to the right
