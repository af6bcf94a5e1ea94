"""Labelled recordings of your own: a table of them, checked, with folds.

What is prepared is OUT/prepared_labels.tsv with the columns name, path (relative to its folder, or
absolute), label, speaker, start, end (seconds; empty: the whole file), and either `split` or one
column for each fold, `fold1`, `fold2`, ...; a cell there is train, dev or test.
"""

import csv
import io
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from s3prl_varan.audio import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    AudioInfo,
    convert_to_16k_mono,
    examine_audio_files,
)
from s3prl_varan.corpora.metadata import SPLITS, CorpusSummary, SplitRow
from s3prl_varan.corpora.preparation import absolute, output_folder
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.files import write_atomic

TABLE = "prepared_labels.tsv"
COLUMNS = ("path", "label", "speaker", "fold", "split", "start", "end")
NEEDED = COLUMNS[:2]
KEPT = ("name", "path", "label", "speaker", "start", "end")  # of the prepared table
MAX_PROBLEMS = 10  # in one message
MAX_CLASSES = 12  # with a column each in the summary
DEV_SHARE = 5  # dev is one part in so many of what is left for training
SLACK = 0.1  # seconds that an end may lie behind the file's own
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
        stretch = "" if self.end is None and not self.start else f":{self.start:g}-{self.end or ''}"
        return "_".join(self.shown.split()) + stretch

    @property
    def seconds(self) -> float:
        """Length of the stretch."""
        assert self.info is not None, "only checked files are asked"
        return min(self.info.seconds, self.end or math.inf) - self.start


def prepare_labels(
    table: str | Path,
    out: str | Path | None = None,
    *,
    audio_root: str | Path | None = None,
    folds: int = 5,
    seed: int = 0,
    skip_bad: bool = False,
) -> CorpusSummary:
    """Write OUT/prepared_labels.tsv for the recordings in a table with named columns, CSV or TSV.

    Columns: path and label; speaker; fold or split; start and end. Paths are relative to
    audio_root, by default the table's folder. out: default meta_data beside the table. Where it has
    neither fold nor split, `folds` folds are made, see `assign`. skip_bad: leave out what has a
    problem. Raises UserError with all problems (the first ten in words); then nothing was written.
    """
    source = absolute(table)
    base = source.parent if audio_root is None else absolute(audio_root)
    clips, problems = read_labels(source, base)
    target = output_folder(source.parent, out)
    if target / TABLE == source:
        raise UserError(f"{source} would be overwritten: choose another folder with --out.")
    summary = CorpusSummary(target, target, name=source.name)
    return prepare_table(summary, base, clips, problems, folds=folds, seed=seed, skip_bad=skip_bad)


def prepare_table(
    summary: CorpusSummary,
    base: Path,
    clips: Sequence[LabelledClip],
    problems: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    skip_bad: bool,
) -> CorpusSummary:
    """Check the clips, convert what is not 16 kHz mono, write the table into summary.out.

    problems: what finding the clips brought up. base: what copies in OUT/converted are named by.
    """
    good, bad = check_clips(clips)
    bad = [*problems, *bad]
    if bad and (not skip_bad or not good):
        headline = f"{len(bad)} problems in {summary.name}; nothing was written:"
        remedy = "Mend these, or leave them out with --skip_bad."
        raise problems_error(headline, _first(bad), remedy)
    summary.skipped = _first(bad)
    columns = assign(good, folds, seed, summary.notes)
    check_columns(good, columns)
    good = _convert(good, base, summary)
    write_atomic(summary.out / TABLE, _content(good, columns, summary.out))
    summary.clips, summary.rows = len(good), list(_rows(good, columns))
    return summary


def _first(problems: Sequence[str]) -> list[str]:
    rest = len(problems) - MAX_PROBLEMS
    return [*problems[:MAX_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])]


# ---- reading the user's table


def read_labels(path: Path, base: Path) -> tuple[list[LabelledClip], list[str]]:
    """The clips of a table, and a line for each row that cannot be used.

    Raises UserError where the table cannot be read, or its first line does not name its columns.
    """
    text = _read_text(path)
    lines = text.splitlines() or [""]
    delimiter = next((mark for mark in "\t,;" if mark in lines[0]), "\t")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = _named_columns(path, next(reader, []))
    clips: dict[tuple[Path, float, float | None], LabelledClip] = {}
    problems = []
    for cells in reader:
        where = f"{path.name}, line {reader.line_num}"
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) != len(columns):
            problems.append(f"{where}: {len(cells)} cells, the first line has {len(columns)}")
            continue
        found = _read_row(dict(zip(columns, cells, strict=True)), base)
        if isinstance(found, str):
            problems.append(f"{where}: {found}")
        elif (found.path, found.start, found.end) in clips:
            problems.append(f"{where}: {found.name} is listed twice")
        else:
            clips[found.path, found.start, found.end] = found
    if not clips:
        raise problems_error(f"{path}: no row that can be used", _first(problems))
    return list(clips.values()), problems


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file. Give a CSV or TSV file whose first line names its columns: "
            f"{', '.join(COLUMNS)}; path and label are needed."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _named_columns(path: Path, cells: Sequence[str]) -> list[str]:
    """The first line's names. UserError where it has none, or others than are known."""
    names = [cell.strip().lower() for cell in cells]
    lacking = [name for name in NEEDED if name not in names]
    problems = [f"no column {name}" for name in lacking]
    for name in dict.fromkeys(names):
        if name not in COLUMNS:
            problems.append(f"unknown column '{name}'.{did_you_mean(name, COLUMNS)}")
        elif names.count(name) > 1:
            problems.append(f"two columns are named {name}")
    if {"fold", "split"} <= set(names):
        problems.append("columns fold and split: give one of them")
    if problems:
        remedy = f"Known: {', '.join(COLUMNS)}. Take other columns out of the table."
        headline = f"{path}, line 1: expected the names of the columns, at least path and label:"
        raise problems_error(headline, _first(problems), remedy)
    return names


def _read_row(row: dict[str, str], base: Path) -> LabelledClip | str:
    """A clip, or what is wrong with its row."""
    empty = [name for name, value in row.items() if not value and name not in ("start", "end")]
    if empty:
        return f"no {' and no '.join(empty)}"
    split, fold = row.get("split", ""), row.get("fold", "")
    if split and split not in SPLITS:
        return f"split {split}: expected train, dev or test.{did_you_mean(split, SPLITS)}"
    if fold and not re.fullmatch(r"[\w-]+", fold):
        return f"fold {fold}: expected letters and digits"
    try:
        start, end = float(row.get("start") or 0), float(row.get("end") or math.inf)
    except ValueError:
        return f"start {row.get('start')} and end {row.get('end')}: expected seconds"
    if not 0 <= start < end:  # not of a NaN either
        return f"start {start:g} and end {end:g}: expected seconds, the end after the start"
    return LabelledClip(
        row["path"],
        Path(os.path.normpath(base / row["path"])),
        row["label"],
        row.get("speaker", ""),
        fold if fold.startswith("fold") or not fold else f"fold{fold}",
        split,
        start,
        None if end == math.inf else end,
    )


def check_clips(clips: Sequence[LabelledClip]) -> tuple[list[LabelledClip], list[str]]:
    """Those that can be used, with `info`, and a line per bad file and stretch.

    Every file is decoded once.
    """
    paths = list(dict.fromkeys(clip.path for clip in clips))
    checked = {file.path: file for file in examine_audio_files(paths)}
    problems = [file.problem for file in checked.values() if file.problem]
    good = []
    for clip in clips:
        file = checked[clip.path]
        if file.problem or file.info is None:
            continue
        clip = replace(clip, info=file.info)
        if clip.start >= file.info.seconds or (clip.end or 0) > file.info.seconds + SLACK:
            problems.append(f"{clip.name}: outside the file, which has {file.info.seconds:.2f} s")
        elif clip.seconds < MIN_SAMPLES / SAMPLE_RATE:
            shortest = 1000 * MIN_SAMPLES / SAMPLE_RATE
            problems.append(f"{clip.name}: shorter than {shortest:g} ms, the least that is used")
        else:
            good.append(clip)
    return good, problems


# ---- folds


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
    dev = min(parts, key=lambda part: len(_labels(train) - _labels(train, without=part)))
    chosen = {places[at] for at in dev}
    return ["dev" if at in chosen else split for at, split in enumerate(splits)]


def _labels(clips: Sequence[LabelledClip], without: Sequence[int] = ()) -> set[str]:
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
    if not clips[0].speaker:
        note = "no column speaker: a speaker may be in several splits of those that were made"
    elif distinct == 1:
        note = f"no other speaker than {groups[0]} to part: two splits share this one"
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
    problems = []
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
        raise problems_error(headline, _first(problems), remedy)


# ---- writing


def _convert(
    clips: Sequence[LabelledClip], base: Path, summary: CorpusSummary
) -> list[LabelledClip]:
    """The clips, with 16 kHz mono copies in OUT/converted of the files that are not."""
    copies: dict[Path, Path] = {}
    for clip in clips:
        assert clip.info is not None, "only checked files are converted"
        if clip.path in copies or clip.info.is_16k_mono:
            continue
        inside = clip.path.is_relative_to(base)
        below = clip.path.relative_to(base if inside else clip.path.anchor)
        copies[clip.path] = summary.out / "converted" / f"{below}.wav"
        convert_to_16k_mono(clip.path, copies[clip.path])
    summary.converted = len(copies)
    return [replace(clip, path=copies.get(clip.path, clip.path)) for clip in clips]


def _content(clips: Sequence[LabelledClip], columns: Assignment, out: Path) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow([*KEPT, *columns])
    for clip, *splits in zip(clips, *columns.values(), strict=True):
        inside = clip.path.is_relative_to(out)
        path = clip.path.relative_to(out).as_posix() if inside else str(clip.path)
        end = "" if clip.end is None else clip.end
        writer.writerow([clip.name, path, clip.label, clip.speaker, clip.start, end, *splits])
    return text.getvalue()


def _rows(clips: Sequence[LabelledClip], columns: Assignment) -> Iterator[SplitRow]:
    """A line of the summary for each split of each fold."""
    labels = sorted(_labels(clips))
    for column, splits in columns.items():
        for split in SPLITS:
            mine = [clip for clip, name in zip(clips, splits, strict=True) if name == split]
            if not mine:
                continue
            counted = Counter(clip.label for clip in mine)
            counts = {label: counted[label] for label in labels}
            if len(labels) > MAX_CLASSES:
                counts = {"labels": len(counted)}
            speakers = len({clip.speaker for clip in mine} - {""})
            hours = sum(clip.seconds for clip in mine) / 3600
            yield SplitRow(column, split, len(mine), speakers, hours, counts)


# ---- reading what was prepared


def read_prepared(folder: Path) -> list[dict[str, str]]:
    """The rows of folder/prepared_labels.tsv. UserError where it is not such a table."""
    path = folder / TABLE
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", strict=True)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    lacking = [name for name in KEPT if name not in columns]
    torn = any(None in row or None in row.values() for row in rows)
    if lacking or torn or not rows:
        found = f"no column {', '.join(lacking)}" if lacking else "rows are missing or torn"
        raise UserError(f"{path}: not a table that `prepare_data.py labels` wrote ({found})")
    return rows


def assignments(folder: Path) -> list[str]:
    """Names of the columns that say the splits: ["split"] or the folds; [] without a table."""
    try:
        with open(folder / TABLE, encoding="utf-8", newline="") as file:
            names = next(csv.reader(file, delimiter="\t"), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [name for name in names if name not in KEPT]
