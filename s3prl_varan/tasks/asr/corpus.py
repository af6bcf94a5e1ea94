"""A corpus in LibriSpeech's layout: tables of recordings and .trans.txt files beside them.

The same files and labels as s3prl's dataset, but nothing is dropped: s3prl leaves out a last batch
of one, any utterance without a transcript and any split without a table.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_varan.corpora.dictionary import describe_unknown, unknown_symbols
from s3prl_varan.corpora.librispeech import read_transcripts
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.tasks.asr.units import SPECIAL

MAX_SHOWN = 20  # problems in one message
SPELLING = (
    "spell digits and symbols as spoken; other letters need their own dictionary "
    "(prepare_data.py --build_dict, then dict_path)"
)


@dataclass(frozen=True)
class Utterance:
    """A recording and its text."""

    name: str
    path: Path
    text: str  # upper case, single spaces; may be empty
    speaker: str
    length: float  # in the table's unit, for sorting only


class Corpus:
    """Recordings below `root`; `splits` names the tables (NAME.csv in `tables`) of each split."""

    def __init__(self, root: Path, tables: Path, splits: Mapping[str, Sequence[str]]):
        self.root, self.tables, self.splits = root, tables, splits
        self._texts: dict[Path, dict[str, str]] = {}  # of each chapter read so far

    def utterances(self, split: str) -> list[Utterance]:
        """The split's utterances, longest first. UserError for what is amiss."""
        problems: list[str] = []
        found = self._read(split, problems)
        if problems:
            raise problems_error("The speech corpus cannot be used:", problems[:MAX_SHOWN])
        return found

    def problems(self, splits: Sequence[str], units: Sequence[str]) -> list[str]:
        """Everything that keeps `splits` from being used, but for the recordings themselves."""
        problems: list[str] = []
        alphabet = set(units) - set(SPECIAL)
        unknown: dict[str, dict[str, int]] = defaultdict(dict)
        for split in dict.fromkeys(splits):
            for utterance in self._read(split, problems):
                for symbol, count in unknown_symbols(utterance.text, alphabet).items():
                    unknown[symbol][utterance.name] = count
        for line in describe_unknown(unknown, shown=3):
            problems.append(f"outside the dictionary: {line} ({SPELLING})")
        return problems

    def _read(self, split: str, problems: list[str]) -> list[Utterance]:
        found = []
        for table in self.splits[split]:
            for row in self._rows(split, table, problems):
                path = self.root / row["file_path"]
                text = self._text(path, problems)
                if text is not None:
                    speaker = path.parent.parent.name
                    found.append(Utterance(path.stem, path, text, speaker, float(row["length"])))
        return sorted(found, key=lambda utterance: (-utterance.length, utterance.name))

    def _rows(self, split: str, table: str, problems: list[str]) -> list[dict[str, str]]:
        path = self.tables / f"{table}.csv"
        if not path.is_file():
            there = sorted(file.stem for file in path.parent.glob("*.csv"))
            hint = did_you_mean(table, there) or f" There: {', '.join(there) or 'none'}."
            where = f"config.downstream_expert.datarc.{split}"
            problems.append(f"{where}: no table {path}.{hint}")
            return []
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"file_path", "length"} <= rows[0].keys():
            problems.append(
                f"{path}: expected a table with the columns file_path and length and at least "
                "one row"
            )
            return []
        return rows

    def _text(self, path: Path, problems: list[str]) -> str | None:
        chapter = path.parent
        if chapter not in self._texts:
            try:
                self._texts[chapter] = read_transcripts(chapter)
            except UserError as error:
                problems.append(str(error))
                self._texts[chapter] = {}
                return None
        text = self._texts[chapter].get(path.stem)
        if text is None and self._texts[chapter]:
            problems.append(f"{path}: no transcript for it in the .trans.txt beside it")
        return text
