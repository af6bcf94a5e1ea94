"""Speech in LibriSpeech's layout: ROOT/<split>/<speaker>/<chapter>/{<name>.flac, <speaker>-<chapter>.trans.txt}.

Writes the length tables that s3prl's speech recognition dataset wants, OUT/<split>.csv with the columns file_path (relative to
ROOT, its `libri_root`), length and label (unused).

length is in frames of 10 ms. s3prl halves a batch that holds an utterance longer than HALF_BATCHSIZE_TIME = 2000, which then
means 20 s. Its own script wrote samples, so that every batch was halved: SUPERB's batch_size 32 was 16 in fact.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from s3prl_varan.audio import AUDIO_SUFFIXES, AudioInfo, examine_audio_files
from s3prl_varan.corpora.dictionary import (
    build_dictionary,
    describe_unknown,
    dictionary_text,
    load_alphabet,
    unknown_symbols,
)
from s3prl_varan.corpora.metadata import output_folder, require_folder, write_texts
from s3prl_varan.errors import UserError, did_you_mean, problems_error

SAMPLES_PER_FRAME = 160  # 10 ms


@dataclass(frozen=True)
class Utterance:
    """One recording with its text."""

    name: str
    path: Path
    text: str
    info: AudioInfo | None = None  # known once the file has been checked


@dataclass(frozen=True)
class SpeechRow:
    """One line of the summary."""

    split: str
    utterances: int
    speakers: int
    hours: float
    words: int


@dataclass
class SpeechSummary:
    """What a preparation did; `str()` of it is what the command prints."""

    root: Path  # libri_root of the config
    out: Path  # bucket_file of the config
    rows: list[SpeechRow] = field(default_factory=list)
    dictionary: Path | None = None  # dict_path of the config, when the corpus got its own
    converted: int = 0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A table of the splits, what was left out, and the config keys to point at the result."""
        lines = [f"{'split':<18}utterances  speakers  hours   words"]
        lines += [
            f"{r.split:<18}{r.utterances:>10}  {r.speakers:>8}  {r.hours:>5.2f}  {r.words:>6}"
            for r in self.rows
        ]
        if self.converted:
            lines.append(f"converted {self.converted} recordings to 16 kHz mono")
        if self.skipped:
            lines += [
                f"left out ({len(self.skipped)}):",
                *(f"  - {reason}" for reason in self.skipped),
            ]
        lines += [f"note: {note}" for note in self.notes]
        keys = {"libri_root": self.root, "bucket_file": self.out, "dict_path": self.dictionary}
        shown = (f"{key}={path}" for key, path in keys.items() if path)
        return "\n".join([*lines, "in the config, downstream_expert.datarc: " + ", ".join(shown)])


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

    out: default root/meta_data. build_dict: also write OUT/char.dict with the corpus's own characters; otherwise characters
    outside A-Z and ' are a problem. decode=False checks headers only. skip_bad: leave out what has a problem.
    Raises UserError listing everything wrong with the layout, the audio and the texts.
    """
    base = require_folder(root, "LibriSpeech")
    chosen = _choose(find_splits(base), splits, base)
    folder = output_folder(base, out)
    alphabet = None if build_dict else load_alphabet()
    utterances: dict[str, list[Utterance]] = {}
    problems: list[str] = []
    for split in chosen:
        utterances[split], wrong = read_split(base / split)
        problems += wrong
    problems += _twice(utterances)
    utterances, wrong = _check(utterances, alphabet, decode)
    problems += wrong
    if problems and not skip_bad:
        remedy = "Mend these or leave them out with --skip_bad."
        if not build_dict:
            remedy += " For a language with other characters, give it a dictionary of its own with --build_dict."
        raise problems_error(
            f"{len(problems)} problems in the corpus; nothing was written:", problems, remedy
        )
    summary = SpeechSummary(base, folder, skipped=problems)
    texts = tables(summary, utterances)
    if build_dict:
        summary.dictionary = folder / "char.dict"
        texts[summary.dictionary] = dictionary_text(
            build_dictionary(u.text for rows in utterances.values() for u in rows)
        )
    write_texts(texts)
    return summary


def find_splits(root: Path) -> list[str]:
    """Names of the folders under root that hold speaker/chapter folders. Raises UserError with a hint when there are none."""
    found = [path.name for path in sorted(root.iterdir()) if path.is_dir() and _is_split(path)]
    if found:
        return found
    if _is_split(root):
        raise UserError(
            f"{root} is itself a split; give the folder above it, {root.parent}, and --splits {root.name}."
        )
    inner = [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and any(_is_split(p) for p in path.iterdir() if p.is_dir())
    ]
    hint = f" Give {inner[0]}." if inner else " Other layouts go through `manifest FILE.tsv`."
    raise UserError(
        f"{root}: no folder in LibriSpeech's layout, split/speaker/chapter/speaker-chapter.trans.txt.{hint}"
    )


def read_split(folder: Path) -> tuple[list[Utterance], list[str]]:
    """Utterances with audio and text, and a line per thing amiss: no transcript file, audio without text and the reverse."""
    utterances, problems = [], []
    for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        audio = {
            p.stem: p
            for p in sorted(chapter.iterdir())
            if p.suffix.lower() in AUDIO_SUFFIXES and p.name[0] != "."
        }
        transcript = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        if not transcript.is_file():
            if audio:
                problems.append(f"{chapter}: {len(audio)} recordings but no {transcript.name}")
            continue
        texts, wrong = _read_transcript(transcript)
        problems += wrong
        problems += [
            f"{path}: no text in {transcript.name}"
            for name, path in audio.items()
            if name not in texts
        ]
        problems += [
            f"{transcript}: {name} has no recording" for name in texts if name not in audio
        ]
        for name in audio.keys() & texts.keys():
            if "." in name:
                problems.append(f"{audio[name]}: a dot in the name, which s3prl takes for its end")
            elif not texts[name].strip():
                problems.append(f"{transcript}: {name} has an empty text")
            else:
                utterances.append(Utterance(name, audio[name], texts[name]))
    return sorted(utterances, key=lambda u: u.path), problems


def tables(summary: SpeechSummary, utterances: dict[str, list[Utterance]]) -> dict[Path, str]:
    """The CSV files to write under summary.out; fills summary.rows. Raises UserError for a split without utterances."""
    empty = [f"{split}: no usable utterance" for split, rows in utterances.items() if not rows]
    if empty:
        raise problems_error("nothing to train or test on:", empty + summary.skipped)
    texts = {}
    for split, rows in utterances.items():
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["file_path", "length", "label"])
        for row in sorted(rows, key=lambda u: (-_samples(u), u.name)):
            frames = round(_samples(row) / SAMPLES_PER_FRAME)
            writer.writerow([row.path.relative_to(summary.root).as_posix(), frames, ""])
        texts[summary.out / f"{split}.csv"] = buffer.getvalue()
        hours = sum(row.info.seconds for row in rows if row.info) / 3600
        speakers = len({row.path.parent.parent for row in rows})
        summary.rows.append(
            SpeechRow(split, len(rows), speakers, hours, sum(len(row.text.split()) for row in rows))
        )
    return texts


def _samples(utterance: Utterance) -> int:
    assert utterance.info is not None, "tables are written for checked files"
    return utterance.info.num_samples


def _choose(found: list[str], wanted: Sequence[str] | None, root: Path) -> list[str]:
    unknown = [
        f"'{name}'.{did_you_mean(name, found)}" for name in wanted or () if name not in found
    ]
    if unknown:
        raise problems_error(f"{root} has the splits {', '.join(found)}; there is no", unknown)
    return list(dict.fromkeys(wanted)) if wanted else found


def _is_split(folder: Path) -> bool:
    return any(
        p.suffix.lower() in AUDIO_SUFFIXES or p.name.endswith(".trans.txt")
        for p in folder.glob("*/*/*")
    )


def _read_transcript(path: Path) -> tuple[dict[str, str], list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        return {}, [f"{path}: not UTF-8 text ({error.reason} at byte {error.start})"]
    texts: dict[str, str] = {}
    problems = []
    for line in filter(str.strip, lines):
        name, *rest = line.split(maxsplit=1)
        if name in texts:
            problems.append(f"{path}: {name} appears twice")
        texts[name] = rest[0].strip() if rest else ""
    return texts, problems


def _twice(utterances: dict[str, list[Utterance]]) -> list[str]:
    """s3prl finds texts by file name alone, so names must be unique across the corpus."""
    counts = Counter(u.name for rows in utterances.values() for u in rows)
    problems = []
    for split, rows in utterances.items():
        problems += [
            f"{u.path}: the name {u.name} is used {counts[u.name]} times"
            for u in rows
            if counts[u.name] > 1
        ]
        utterances[split] = [u for u in rows if counts[u.name] == 1]
    return problems


def _check(
    utterances: dict[str, list[Utterance]], alphabet: set[str] | None, decode: bool
) -> tuple[dict[str, list[Utterance]], list[str]]:
    """Keep utterances whose audio is 16 kHz mono and long enough and whose text stays inside the alphabet."""
    good: dict[str, list[Utterance]] = {}
    problems: list[str] = []
    unknown: dict[str, dict[str, int]] = defaultdict(dict)
    for split, rows in utterances.items():
        good[split] = []
        for row, file in zip(
            rows, examine_audio_files([u.path for u in rows], decode=decode), strict=True
        ):
            symbols = unknown_symbols(row.text.upper(), alphabet)
            for symbol, count in symbols.items():
                unknown[symbol][row.name] = count
            problem = file.problem
            if problem is None and file.info and not file.info.is_16k_mono:
                form = f"{file.info.rate} Hz, {file.info.channels} channel(s)"
                problem = (
                    f"{row.path}: {form}; 16 kHz mono is needed (the `manifest` command converts)"
                )
            if problem:
                problems.append(problem)
            elif not symbols:
                good[split].append(replace(row, info=file.info))
    return good, problems + [f"outside the alphabet: {line}" for line in describe_unknown(unknown)]


def read_transcripts(chapter: Path) -> dict[str, str]:
    """{name: upper-case text} of a chapter's .trans.txt. UserError where it cannot be read."""
    path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    rows = (line.split() for line in lines if line.strip())
    return {name: " ".join(words).upper() for name, *words in rows}
