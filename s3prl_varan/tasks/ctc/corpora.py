"""The corpora of `-d ctc` in their own layouts: clips with their texts, and where they lie."""

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_varan.corpora.librispeech import find_splits, read_split
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.ctc.units import read_lines

SNIPS_TEXTS = "all.iob.snips.txt"
# What the letters of a language are called in Unicode, for sentences in another script.
SCRIPTS = {"es": "LATIN", "zh-CN": "CJK UNIFIED", "ar": "ARABIC"}


@dataclass(frozen=True)
class Clip:
    """A recording and what is said."""

    path: Path
    words: list[str]
    speaker: str | None = None
    slots: tuple[str, ...] = ()  # of each word, where the corpus has them


def locate(root: Path) -> dict[str, Any]:
    """The keys of datarc for the corpus in `root`, which its files tell. UserError for none."""
    if (root / SNIPS_TEXTS).is_file():
        splits = {"train": ["train"], "dev": ["valid"], "test": ["test"]}
        return {"name": "snips", "path": str(root), "slots_file": str(root / "slots.txt"), **splits}
    for name, folder in (("common_voice", "clips"), ("sbcsae", "wav")):
        if (root / folder).is_dir() and (root / "train.tsv").is_file():
            tables = {split: [str(root / f"{split}.tsv")] for split in ("train", "dev", "test")}
            return {"name": name, "path": str(root / folder), **tables}
    found = find_splits(root)
    chosen = {}
    for split, usual in (
        ("train", "train-clean-100"),
        ("dev", "dev-clean"),
        ("test", "test-clean"),
    ):
        mine = [name for name in found if name.startswith(split)]
        chosen[split] = [usual] if usual in mine else mine
    return {"name": "libriphone", "path": str(root), **chosen}


def librispeech(root: Path, folders: Sequence[str]) -> list[Clip]:
    """Folders of LibriSpeech. UserError with a problem in each line."""
    clips, problems = list[Clip](), list[str]()
    for folder in folders:
        if not (root / folder).is_dir():
            problems.append(f"{root / folder}: no such folder of LibriSpeech")
            continue
        utterances, wrong = read_split(root / folder)
        problems += wrong
        clips += [Clip(u.path, u.text.split(), u.path.parent.parent.name) for u in utterances]
    return _checked(clips, problems)


def snips(root: Path, folders: Sequence[str], speakers: Sequence[str]) -> list[Clip]:
    """Folders of wavs of SNIPS, of these speakers (none named: of all), and their texts.

    A line of all.iob.snips.txt is `NAME BOS WORDS EOS<tab>O SLOTS INTENT`, NAME starting with the
    speaker's.
    """
    path = root / SNIPS_TEXTS
    texts: dict[str, tuple[list[str], list[str]]] = {}
    clips, problems = list[Clip](), list[str]()
    for number, line in enumerate(read_lines(path), start=1):
        name, _, rest = line.strip().partition(" ")
        words, slots = (part.strip().split(" ")[1:-1] for part in f"{rest}\t".split("\t")[:2])
        if not words or len(words) != len(slots):
            problems.append(
                f"{path}, line {number}: expected NAME BOS WORDS EOS, a tab, O SLOTS INTENT with a "
                f"slot for each word; found {len(words)} words, {len(slots)} slots"
            )
        texts[name] = (words, slots)
    for folder in folders:
        found = sorted((root / folder).rglob("*.wav"))
        mine = [wav for wav in found if not speakers or wav.stem.split("-")[0] in speakers]
        if not mine:
            who = f" of {', '.join(speakers)}" if speakers else ""
            problems.append(f"{root / folder}: no NAME.wav{who} in it")
        for wav in mine:
            if wav.stem in texts:
                words, slots = texts[wav.stem]
                clips.append(Clip(wav, words, wav.stem.split("-")[0], tuple(slots)))
            else:
                problems.append(f"{wav}: no text in {path}")
    return _checked(clips, problems)


def from_tables(
    root: Path, tables: Sequence[str], language: str | None, accent: str | None
) -> list[Clip]:
    """Recordings in `root` that tables name in the columns path and sentence.

    Tab-separated: Common Voice's own, those that s3prl's scripts make of them, and SBCSAE's.
    accent: only clips whose column accent (or accents) is that, where there is such a column. What
    is left of a sentence by `normalise` is its text; without any, the clip is left out.
    """
    clips, problems = list[Clip](), list[str]()
    for table in tables:
        # Without quoting: Common Voice's sentences have quotation marks of their own.
        rows = csv.DictReader(read_lines(table), delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"path", "sentence"} <= set(rows.fieldnames or ()):
            columns = ", ".join(rows.fieldnames or ()) or "none"
            problems.append(f"{table}: expected the columns path and sentence, found {columns}")
            continue
        for row in rows:
            spoken = row.get("accent") or row.get("accents")
            if accent and ("accent" in row or "accents" in row) and spoken != accent:
                continue
            text = normalise(row["sentence"] or "", language)
            if text:
                clips.append(Clip(root / (row["path"] or ""), text.split(), row.get("client_id")))
    return _checked(clips, problems)


def normalise(sentence: str, language: str | None) -> str:
    """A sentence as SUPERB's OOD-ASR has it: upper case, without punctuation; "" to leave it out.

    NFKC first; all punctuation and symbols but ' are spaces, and Chinese has none. A sentence with
    letters of another script than its language's is left out (s3prl names the characters).
    """
    text = unicodedata.normalize("NFKC", sentence).upper().replace("’", "'").replace("ㄧ", "一")
    script = SCRIPTS.get(language or "")
    kept = (" " if unicodedata.category(char)[0] in "PS" and char != "'" else char for char in text)
    text = " ".join("".join(kept).split())
    if script and any(_foreign(char, script) for char in text):
        return ""
    return text.replace(" ", "") if language == "zh-CN" else text


def _foreign(char: str, script: str) -> bool:
    if char == "'":
        return script != "LATIN"
    return char.isalpha() and not unicodedata.name(char, "").startswith(script)


def characters(clips: Sequence[Clip]) -> list[str]:
    """The characters of all texts, sorted, the space among them where words are apart."""
    return sorted({char for clip in clips for char in " ".join(clip.words)})


def _checked(clips: list[Clip], problems: list[str]) -> list[Clip]:
    if problems:
        raise UserError("\n".join(problems))
    return clips
