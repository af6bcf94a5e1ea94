"""Any transcribed recordings, listed in a table, into LibriSpeech's layout and tables.

The table is tab-separated with the columns path, text, speaker and split, named in its first line;
or it has lines `path TAB text` and no names.

Texts are normalised to the dictionary's characters. What a dictionary cannot spell (digits,
symbols) is reported and refused, unless the user says what to do with it: a digit's sound is not in
the text, and dropping it silently would teach nonsense.
"""

import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from s3prl_varan.audio import AUDIO_SUFFIXES, AudioInfo, convert_to_16k_mono, examine_audio_files
from s3prl_varan.corpora.dictionary import (
    build_dictionary,
    describe_unknown,
    dictionary_text,
    drop_symbols,
    load_alphabet,
    normalise_text,
    unknown_symbols,
)
from s3prl_varan.corpora.librispeech import transcript_file
from s3prl_varan.corpora.preparation import (
    absolute,
    check_column_names,
    output_folder,
    read_table_text,
)
from s3prl_varan.corpora.tables import SpeechSummary, Utterance, build_tables
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.files import atomic_path, write_atomic, write_texts

UNKNOWN = ("refuse", "drop_symbol", "drop_utterance")
SPLITS = ("train", "dev", "test")
MARKER = "prepared.json"  # in a folder that this module wrote and may replace
_CHAPTER = "0"
COLUMNS = ("path", "text", "speaker", "split")
_HEADINGS = ("text", "transcript", "sentence")  # of the text


@dataclass(frozen=True)
class Line:
    """One line of the manifest."""

    shown: str  # the path as written
    path: Path
    text: str  # normalised once it has been read
    speaker: str = ""
    split: str = ""  # where the manifest says
    info: AudioInfo | None = None


def prepare_manifest(
    manifest: str | Path,
    out: str | Path | None = None,
    *,
    audio_root: str | Path | None = None,
    dev_ratio: float = 0.1,
    test_ratio: float = 0.1,
    seed: int = 0,
    unknown: str = "refuse",
    build_dict: bool = False,
    skip_bad: bool = False,
) -> SpeechSummary:
    """Write OUT/{train,dev,test}/<speaker>/0/ with the recordings, and OUT/<split>.csv.

    They are links, 16 kHz copies where needed. Paths are relative to audio_root, by default the
    manifest's folder; without a column speaker the folder just above a recording counts as one.
    out: default meta_data beside the manifest. What a column split does not give is drawn by text,
    seeded: a sentence said twice never lies in two splits. It does not keep speakers apart. A ratio
    of 0 leaves a split out.
    unknown: what to do about characters outside the alphabet, one of UNKNOWN. build_dict: the
    alphabet is the corpus's own letters, written to OUT/char.dict; digits and symbols stay unknown.
    skip_bad: leave out lines with other problems.
    Raises UserError with all problems and all unknown symbols; then nothing has been written.
    """
    _check_options(dev_ratio, test_ratio, unknown)
    source = absolute(manifest)
    folder = source.parent if audio_root is None else absolute(audio_root)
    lines, problems = read_manifest(source, folder)
    alphabet = None if build_dict else load_alphabet()
    lines, report, emptied = _spell(lines, alphabet, unknown)
    checked = examine_audio_files([line.path for line in lines])
    problems += [file.problem for file in checked if file.problem]
    refused = report if unknown == "refuse" else []
    if refused or (problems and not skip_bad):
        raise _refusal(problems, refused, skip_bad)
    both = zip(lines, checked, strict=True)
    lines = [replace(line, info=file.info) for line, file in both if not file.problem]
    parts = _official(lines, dev_ratio, seed) or split_by_text(lines, dev_ratio, test_ratio, seed)
    target = output_folder(source.parent, out)
    _claim(target)
    summary = SpeechSummary(target, target, skipped=problems + emptied)
    summary.notes += [f"outside the alphabet, {unknown}: {line}" for line in report]
    _write(summary, parts, build_dict, {"manifest": str(source), "seed": seed, "unknown": unknown})
    return summary


def read_manifest(path: Path, audio_root: Path) -> tuple[list[Line], list[str]]:
    """Lines with normalised text, and a message per line that is malformed or repeats a path.

    Raises UserError where no line can be used, or the first names columns that are not known.
    """
    wanted = "a text file with lines of the form path TAB text, or with named columns: "
    rows = read_table_text(path, wanted + ", ".join(COLUMNS)).splitlines()
    named = _named_columns(path, rows[0] if rows else "", audio_root)
    columns = named or list(COLUMNS[:2])
    lines: dict[str, Line] = {}
    problems = []
    for number, row in enumerate(rows, start=1):
        if not row.strip() or (number == 1 and named):
            continue
        cells = [cell.strip() for cell in row.split("\t")]
        values = dict(zip(columns, cells, strict=False))
        shown, split = values.get("path", ""), values.get("split", "train")
        problem = None
        if len(cells) != len(columns) or not shown:
            problem = f"expected {' TAB '.join(columns)}, found '{row[:60]}'"
        elif shown in lines:
            problem = f"{shown} is listed twice"
        elif not normalise_text(values["text"]):
            problem = f"{shown} has no words ('{values['text']}')"
        elif not values.get("speaker", "?"):
            problem = f"{shown} has no speaker"
        elif split not in SPLITS:
            problem = f"split '{split}': expected train, dev or test.{did_you_mean(split, SPLITS)}"
        if problem:
            problems.append(f"{path}, line {number}: {problem}")
        else:
            text, speaker = normalise_text(values["text"]), values.get("speaker", "")
            given = values.get("split", "")
            lines[shown] = Line(shown, audio_root / shown, text, speaker, given)
    if not lines:
        raise problems_error(f"{path}: no usable line of the form path TAB text", problems)
    return list(lines.values()), problems


def _named_columns(path: Path, first: str, audio_root: Path) -> list[str]:
    """The columns' names where the first line has them, else []; there may be two columns then.

    Raises UserError for unknown names, and for more columns without names.
    """
    cells = first.split("\t")
    names = ["text" if (name := cell.strip().lower()) in _HEADINGS else name for cell in cells]
    if len(names) == 2 and names[1] == "text" and not (audio_root / cells[0].strip()).exists():
        names[0] = "path"
    if "path" not in names and len(names) <= 2:
        return []
    check_column_names(path, names, COLUMNS, COLUMNS[:2])
    return names


def _official(lines: Sequence[Line], dev_ratio: float, seed: int) -> dict[str, list[Line]]:
    """The lines by the split that the manifest gives; {} where it gives none.

    Without dev, dev_ratio of train becomes dev, by text.
    """
    parts = {split: [line for line in lines if line.split == split] for split in SPLITS}
    found = {split: rows for split, rows in parts.items() if rows}
    if found and "train" not in found:
        raise UserError(f"column split: no usable line of train, only {' and '.join(found)}")
    if found and "dev" not in found:
        found |= split_by_text(found["train"], dev_ratio, 0, seed)
    return found


def split_by_text(
    lines: Sequence[Line], dev_ratio: float, test_ratio: float, seed: int
) -> dict[str, list[Line]]:
    """{"train", "dev", "test"} without the same text in two splits.

    Which text goes where depends on it and the seed alone: texts are ranked by a hash; test takes
    them until it holds test_ratio of the lines, then dev. Raises UserError for an empty split.
    """
    by_text: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_text[line.text].append(line)
    wanted = {"test": round(test_ratio * len(lines)), "dev": round(dev_ratio * len(lines))}
    parts: dict[str, list[Line]] = {split: [] for split in SPLITS}
    for text in sorted(by_text, key=lambda text: _hash(f"{seed}\t{text}")):
        split = next((s for s in ("test", "dev") if len(parts[s]) < wanted[s]), "train")
        parts[split] += by_text[text]
    ratios = {"train": 1.0, "dev": dev_ratio, "test": test_ratio}
    empty = [split for split, ratio in ratios.items() if ratio > 0 and not parts[split]]
    if empty:
        raise UserError(
            f"{len(lines)} usable lines are too few for dev_ratio {dev_ratio:g} and test_ratio "
            f"{test_ratio:g}: {', '.join(empty)} would be empty"
        )
    return {split: rows for split, rows in parts.items() if rows}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_options(dev_ratio: float, test_ratio: float, unknown: str) -> None:
    if min(dev_ratio, test_ratio) < 0 or dev_ratio + test_ratio >= 1:
        raise UserError(
            f"dev_ratio {dev_ratio:g} and test_ratio {test_ratio:g} must be 0 or more and add up "
            "to less than 1"
        )
    if unknown not in UNKNOWN:
        hint = did_you_mean(unknown, UNKNOWN)
        raise UserError(f"unknown must be one of {', '.join(UNKNOWN)}, not '{unknown}'.{hint}")


def _spell(
    lines: Sequence[Line], alphabet: set[str] | None, unknown: str
) -> tuple[list[Line], list[str], list[str]]:
    """Lines after the treatment of unknown symbols, and messages.

    One per symbol, then one per line that was left out or had nothing else in it.
    """
    where: dict[str, dict[str, int]] = defaultdict(dict)
    kept, emptied = [], []
    for line in lines:
        symbols = unknown_symbols(line.text, alphabet)
        for symbol, count in symbols.items():
            where[symbol][line.shown] = count
        text = drop_symbols(line.text, alphabet) if symbols else line.text
        if not symbols or unknown == "refuse":
            kept.append(line)
        elif unknown == "drop_symbol" and text:
            kept.append(replace(line, text=text))
        else:
            outside = f"has {' '.join(symbols)}, outside the alphabet"
            emptied.append(f"{line.shown}: '{line.text[:40]}' {outside}")
    return kept, describe_unknown(where), emptied


def _refusal(problems: list[str], refused: list[str], skip_bad: bool) -> UserError:
    remedies = []
    if problems and not skip_bad:
        remedies.append("Mend the lines and files, or leave them out with --skip_bad.")
    if refused:
        remedies.append(
            "Write digits and symbols as they are spoken (21 -> twenty one), or choose --unknown "
            "drop_symbol or drop_utterance; for a language with other letters, --build_dict."
        )
    found = problems + [f"outside the alphabet: {line}" for line in refused]
    headline = f"{len(found)} problems in the manifest; nothing was written:"
    return problems_error(headline, found, " ".join(remedies))


def _claim(folder: Path) -> None:
    taken = any((folder / split).exists() for split in SPLITS)
    if taken and not (folder / MARKER).exists():
        raise UserError(
            f"{folder} holds train, dev or test of another origin; choose a new folder with --out"
        )


def _write(
    summary: SpeechSummary,
    parts: dict[str, list[Line]],
    build_dict: bool,
    origin: dict[str, object],
) -> None:
    """Build all splits beside earlier ones, put them in their place, then write the tables."""
    out = summary.out
    corpus = Path(str(origin["manifest"])).parent.name
    names = _names([line.shown for lines in parts.values() for line in lines])
    utterances = {}
    with ExitStack() as built:
        for split, lines in parts.items():
            folder = built.enter_context(atomic_path(out / split))
            rows = [_place(line, folder, names[line.shown], corpus, summary) for line in lines]
            _write_transcripts(rows)
            in_place = [out / split / row.path.relative_to(folder) for row in rows]
            utterances[split] = [
                replace(row, path=path) for row, path in zip(rows, in_place, strict=True)
            ]
        write_atomic(out / MARKER, json.dumps(origin, indent=1))
        for split in SPLITS:
            shutil.rmtree(out / split, ignore_errors=True)
            (out / f"{split}.csv").unlink(missing_ok=True)
    texts = build_tables(summary, utterances)
    texts[out / "names.tsv"] = "".join(f"{names[shown]}\t{shown}\n" for shown in names)
    (out / "char.dict").unlink(missing_ok=True)  # of an earlier preparation: it would not fit
    if build_dict:
        summary.dictionary = out / "char.dict"
        counts = build_dictionary(u.text for rows in utterances.values() for u in rows)
        texts[summary.dictionary] = dictionary_text(counts)
    write_texts(texts)


def _place(line: Line, folder: Path, name: str, corpus: str, summary: SpeechSummary) -> Utterance:
    """Link the recording into folder/<speaker>/0/.

    It is converted when it is not 16 kHz mono in a format that s3prl reads.
    """
    assert line.info is not None, "only checked files are placed"
    speaker = line.speaker or Path(line.shown).parent.name or corpus
    chapter = folder / _slug(speaker) / _CHAPTER
    chapter.mkdir(parents=True, exist_ok=True)
    if not line.info.is_16k_mono or line.path.suffix.lower() not in AUDIO_SUFFIXES:
        target = chapter / f"{name}.flac"
        summary.converted += 1
        return Utterance(name, target, line.text, convert_to_16k_mono(line.path, target))
    target = chapter / f"{name}{line.path.suffix.lower()}"
    try:
        target.symlink_to(line.path)
    except OSError:  # a file system, or a Windows account, without links
        shutil.copyfile(line.path, target)
    return Utterance(name, target, line.text, line.info)


def _write_transcripts(utterances: Sequence[Utterance]) -> None:
    by_chapter: dict[Path, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_chapter[utterance.path.parent].append(utterance)
    for chapter, rows in by_chapter.items():
        lines = sorted(f"{row.name} {row.text}\n" for row in rows)
        transcript_file(chapter).write_text("".join(lines), encoding="utf-8")


def _names(shown: Sequence[str]) -> dict[str, str]:
    """A unique utterance name for every path, close to the file's own, no dots or spaces in it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(shown):
        name = stem = _slug(Path(path).stem)
        if name in taken:
            name = _slug(str(Path(path).with_suffix("")))
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        names[path] = name
    return names


def _slug(text: str) -> str:
    return re.sub(r"[^\w-]+", "-", text).strip("-") or "x"
