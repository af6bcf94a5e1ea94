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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from s3prl_varan.audio import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    convert_to_16k_mono,
    examine_audio_files,
)
from s3prl_varan.corpora.folds import (
    Assignment,
    LabelledClip,
    assign,
    check_columns,
    labels_of,
)
from s3prl_varan.corpora.metadata import SPLITS, CorpusSummary, SplitRow
from s3prl_varan.corpora.preparation import (
    absolute,
    check_column_names,
    first_problems,
    output_folder,
    read_table_text,
)
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.files import csv_text, write_atomic

TABLE = "prepared_labels.tsv"
COLUMNS = ("path", "label", "speaker", "fold", "split", "start", "end")
NEEDED = COLUMNS[:2]
KEPT = ("name", "path", "label", "speaker", "start", "end")  # of the prepared table
CONTENT = f"a first line that names its columns: {', '.join(COLUMNS)}; path and label are needed"
MAX_CLASSES = 12  # with a column each in the summary
SLACK = 0.1  # seconds that an end may lie behind the file's own


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
    good, summary.skipped = usable_clips(clips, problems, summary.name, skip_bad=skip_bad)
    columns = assign(good, folds, seed, summary.notes)
    check_columns(good, columns)
    good = _convert(good, base, summary)
    write_atomic(summary.out / TABLE, table_text(good, columns, summary.out))
    summary.clips, summary.rows = len(good), list(_rows(good, columns))
    return summary


# ---- reading the user's table


def read_labels(path: Path, base: Path) -> tuple[list[LabelledClip], list[str]]:
    """The clips of a table, and a line for each row that cannot be used.

    Raises UserError where the table cannot be read, or its first line does not name its columns.
    """
    text = read_table_text(path, f"a CSV or TSV file with {CONTENT}")
    rows = [(line, [cell.strip() for cell in cells]) for line, cells in numbered_rows(path, text)]
    columns = [cell.lower() for cell in rows[0][1]] if rows else []
    check_column_names(path, columns, COLUMNS, NEEDED)
    if {"fold", "split"} <= set(columns):
        raise UserError(f"{path}, line 1: columns fold and split: give one of them.")
    clips: dict[tuple[Path, float, float | None], LabelledClip] = {}
    problems = []
    for number, cells in rows[1:]:
        where = f"{path.name}, line {number}"
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
        raise problems_error(f"{path}: no row that can be used", first_problems(problems))
    return list(clips.values()), problems


def numbered_rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """The cells of each row of a CSV or TSV file with this text, and the line it ends in.

    The first line tells what stands between cells. UserError where it is neither.
    """
    first = (text.splitlines() or [""])[0]
    delimiter = next((mark for mark in "\t,;" if mark in first), "\t")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:  # a quotation mark that is never closed, say
        raise UserError(f"{path}, line {reader.line_num}: not CSV or TSV ({error})") from error


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
        " ".join(row["label"].split()),
        row.get("speaker", ""),
        fold if fold.startswith("fold") or not fold else f"fold{fold}",
        split,
        start,
        None if end == math.inf else end,
    )


def usable_clips(
    clips: Sequence[LabelledClip], problems: Sequence[str], corpus: object, *, skip_bad: bool
) -> tuple[list[LabelledClip], list[str]]:
    """The clips that can be used, and why others cannot: the first ten, and how many more.

    problems: what finding the clips brought up. UserError for any, but for skip_bad with a clip
    left; corpus: what it calls them by.
    """
    good, bad = check_clips(clips)
    bad = [*problems, *bad]
    if bad and (not skip_bad or not good):
        headline = f"{len(bad)} problems in {corpus}; nothing was written:"
        remedy = "Mend these, or leave them out with --skip_bad."
        raise problems_error(headline, first_problems(bad), remedy)
    return good, first_problems(bad)


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


def table_text(clips: Sequence[LabelledClip], columns: Assignment, out: Path) -> str:
    """A prepared table, to be written into the folder `out`."""
    rows: list[list[object]] = [[*KEPT, *columns]]
    for clip, *splits in zip(clips, *columns.values(), strict=True):
        inside = clip.path.is_relative_to(out)
        path = clip.path.relative_to(out).as_posix() if inside else str(clip.path)
        end = "" if clip.end is None else clip.end
        rows.append([clip.name, path, clip.label, clip.speaker, clip.start, end, *splits])
    return csv_text(rows, delimiter="\t")


def _rows(clips: Sequence[LabelledClip], columns: Assignment) -> Iterator[SplitRow]:
    """A line of the summary for each split of each fold."""
    labels = sorted(labels_of(clips))
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


def read_prepared(
    folder: Path, table: str = TABLE, command: str = "labels"
) -> list[dict[str, str]]:
    """The rows of folder/`table`. UserError where it is none that the command wrote."""
    path = folder / table
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
        raise UserError(f"{path}: not a table that `prepare_data.py {command}` wrote ({found})")
    return rows


def stretch_of(row: Mapping[str, str]) -> tuple[float, float | None]:
    """Start and end of a prepared row, in seconds; end None: the file's. ValueError for others."""
    return float(row["start"] or 0), float(row["end"]) if row["end"] else None


def assignments(folder: Path) -> list[str]:
    """Names of the columns that say the splits: ["split"] or the folds; [] without a table."""
    try:
        with open(folder / TABLE, encoding="utf-8", newline="") as file:
            names = next(csv.reader(file, delimiter="\t"), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [name for name in names if name not in KEPT]
