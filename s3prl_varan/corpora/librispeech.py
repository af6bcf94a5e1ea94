"""Speech in LibriSpeech's layout: ROOT/<split>/<speaker>/<chapter>/<name>.flac and .trans.txt.

`prepare_librispeech` checks such a corpus and writes its length tables; `read_prepared` reads a
table with the texts that belong to it. The texts of a chapter are in one file,
<speaker>-<chapter>.trans.txt, with a line `<name> <text>` each.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from s3prl_varan.audio import AUDIO_SUFFIXES, CheckedFile, audio_files, examine_audio_files
from s3prl_varan.corpora.dictionary import (
    build_dictionary,
    describe_unknown,
    dictionary_text,
    load_alphabet,
    unknown_symbols,
)
from s3prl_varan.corpora.preparation import output_folder, require_folder
from s3prl_varan.corpora.tables import SpeechSummary, Utterance, build_tables, read_table
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.files import write_texts

Splits = dict[str, list[Utterance]]


def prepare_librispeech(
    root: str | Path,
    out: str | Path | None = None,
    splits: Sequence[str] | None = None,
    *,
    skip_bad: bool = False,
    build_dict: bool = False,
    decode: bool = True,
) -> SpeechSummary:
    """Check the corpus and write OUT/<split>.csv for every split (or those named).

    out: default root/meta_data. build_dict: also write OUT/char.dict with the corpus's own
    characters; otherwise characters outside A-Z and ' are a problem. decode=False checks headers
    only. skip_bad: leave out what has a problem. Raises UserError listing everything wrong with the
    layout, the audio and the texts.
    """
    base = require_folder(root, "LibriSpeech")
    chosen = _choose(find_splits(base), splits, base)
    folder = output_folder(base, out)
    alphabet = None if build_dict else load_alphabet()
    utterances: Splits = {}
    problems: list[str] = []
    for split in chosen:
        utterances[split], wrong = read_split(base / split)
        problems += wrong
    problems += _drop_repeated_names(utterances)
    utterances, wrong = _check(utterances, alphabet, decode)
    problems += wrong
    if problems and not skip_bad:
        remedy = "Mend these or leave them out with --skip_bad."
        if not build_dict:
            remedy += (
                " For a language with other characters, give it a dictionary of its own with "
                "--build_dict."
            )
        headline = f"{len(problems)} problems in the corpus; nothing was written:"
        raise problems_error(headline, problems, remedy)
    summary = SpeechSummary(base, folder, skipped=problems)
    summary.note_others(u.path for rows in utterances.values() for u in rows)
    texts = build_tables(summary, utterances)
    if build_dict:
        summary.dictionary = folder / "char.dict"
        counts = build_dictionary(u.text for rows in utterances.values() for u in rows)
        texts[summary.dictionary] = dictionary_text(counts)
    write_texts(texts)
    return summary


def find_splits(root: Path) -> list[str]:
    """Names of the folders under root that hold speaker/chapter folders.

    Raises UserError with a hint when there are none.
    """
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    found = [path.name for path in folders if _is_split(path)]
    if found:
        return found
    if _is_split(root):
        raise UserError(
            f"{root} is itself a split; give the folder above it, {root.parent}, and "
            f"--splits {root.name}."
        )
    hint = " Other layouts go through `manifest FILE.tsv`."
    for path in folders:
        if any(_is_split(inner) for inner in path.iterdir() if inner.is_dir()):
            hint = f" Give {path}."
            break
    raise UserError(
        f"{root}: no folder in LibriSpeech's layout, "
        f"split/speaker/chapter/speaker-chapter.trans.txt.{hint}"
    )


def read_split(folder: Path) -> tuple[list[Utterance], list[str]]:
    """Utterances with audio and text, and a line per thing amiss.

    No transcript file, audio without text and the reverse, say.
    """
    utterances: list[Utterance] = []
    problems: list[str] = []
    for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        audio = {path.stem: path for path in audio_files(chapter)}
        transcript = transcript_file(chapter)
        if not transcript.is_file():
            if audio:
                problems.append(f"{chapter}: {len(audio)} recordings but no {transcript.name}")
            continue
        texts = read_transcripts(chapter, problems)
        for name in sorted(audio.keys() | texts.keys()):
            if name not in texts:
                problems.append(f"{audio[name]}: no text in {transcript.name}")
            elif name not in audio:
                problems.append(f"{transcript}: {name} has no recording")
            elif "." in name:
                problems.append(f"{audio[name]}: a dot in the name, which s3prl takes for its end")
            elif not texts[name]:
                problems.append(f"{transcript}: {name} has an empty text")
            else:
                utterances.append(Utterance(name, audio[name], texts[name]))
    return sorted(utterances, key=lambda utterance: utterance.path), problems


def transcript_file(chapter: Path) -> Path:
    """Where the texts of a chapter's recordings are."""
    return chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"


def read_transcripts(chapter: Path, problems: list[str]) -> dict[str, str]:
    """{name: text} of a chapter, in upper case with single spaces; a text may be empty.

    What is amiss goes into `problems`.
    """
    path = transcript_file(chapter)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as UTF-8 text ({error})")
        return {}
    texts: dict[str, str] = {}
    for line in filter(str.strip, lines):
        name, *words = line.split()
        if name in texts:
            problems.append(f"{path}: {name} appears twice")
        texts[name] = " ".join(words).upper()
    return texts


def read_prepared(root: Path, table: Path, problems: list[str]) -> list[Utterance]:
    """The utterances of a length table, with their texts, in the table's order.

    root: what its paths are relative to. What is amiss goes into `problems`; that the recordings
    are there is not looked at.
    """
    utterances: list[Utterance] = []
    texts: dict[Path, dict[str, str]] = {}
    for shown, length in read_table(table, problems):
        path = root / shown
        if path.parent not in texts:
            texts[path.parent] = read_transcripts(path.parent, problems)
        text = texts[path.parent].get(path.stem)
        if text is None:
            problems.append(f"{path}: no transcript for it in {transcript_file(path.parent)}")
        else:
            utterances.append(Utterance(path.stem, path, text, length=length))
    return utterances


def _choose(found: list[str], wanted: Sequence[str] | None, root: Path) -> list[str]:
    names = list(dict.fromkeys(wanted or found))
    unknown = [f"'{name}'.{did_you_mean(name, found)}" for name in names if name not in found]
    if unknown:
        raise problems_error(f"{root} has the splits {', '.join(found)}; there is no", unknown)
    return names


def _is_split(folder: Path) -> bool:
    return any(
        path.suffix.lower() in AUDIO_SUFFIXES or path.name.endswith(".trans.txt")
        for path in folder.glob("*/*/*")
    )


def _drop_repeated_names(utterances: Splits) -> list[str]:
    """s3prl finds texts by file name alone, so names must be unique across the corpus."""
    counts = Counter(u.name for rows in utterances.values() for u in rows)
    problems = []
    for split, rows in utterances.items():
        for u in rows:
            if counts[u.name] > 1:
                problems.append(f"{u.path}: the name {u.name} is used {counts[u.name]} times")
        utterances[split] = [u for u in rows if counts[u.name] == 1]
    return problems


def _check(utterances: Splits, alphabet: set[str] | None, decode: bool) -> tuple[Splits, list[str]]:
    """Those with 16 kHz mono audio that is long enough and a text inside the alphabet."""
    good: Splits = {}
    problems: list[str] = []
    unknown: dict[str, dict[str, int]] = defaultdict(dict)
    for split, rows in utterances.items():
        good[split] = []
        checked = examine_audio_files([row.path for row in rows], decode=decode)
        for row, file in zip(rows, checked, strict=True):
            symbols = unknown_symbols(row.text, alphabet)
            for symbol, count in symbols.items():
                unknown[symbol][row.name] = count
            problem = _problem(file)
            if problem:
                problems.append(problem)
            elif not symbols:
                good[split].append(replace(row, info=file.info))
    return good, problems + [f"outside the alphabet: {line}" for line in describe_unknown(unknown)]


def _problem(file: CheckedFile) -> str | None:
    if file.problem is None and file.info and not file.info.is_16k_mono:
        form = f"{file.info.rate} Hz, {file.info.channels} channel(s)"
        return f"{file.path}: {form}; 16 kHz mono is needed (the `manifest` command converts)"
    return file.problem
