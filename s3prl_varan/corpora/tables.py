"""Length tables of transcribed speech, OUT/<split>.csv, and the summary of what made them.

Columns: file_path (relative to the corpus), length and label (unused), as s3prl's dataset wants
them. length is in frames of 10 ms: s3prl halves a batch that holds an utterance longer than
HALF_BATCHSIZE_TIME = 2000, which then means 20 s. Its own script wrote samples, so that every batch
was halved: SUPERB's batch_size 32 was 16 in fact.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_varan.audio import AudioInfo
from s3prl_varan.corpora.preparation import Summary, table
from s3prl_varan.errors import did_you_mean, problems_error
from s3prl_varan.files import csv_text

SAMPLES_PER_FRAME = 160  # 10 ms


@dataclass(frozen=True)
class Utterance:
    """One recording with its text."""

    name: str
    path: Path
    text: str
    info: AudioInfo | None = None  # known once the file has been checked
    length: float = 0.0  # as a table gives it, in the table's unit


@dataclass(frozen=True)
class SpeechRow:
    """One line of the summary."""

    split: str
    utterances: int
    speakers: int
    hours: float
    words: int


@dataclass
class SpeechSummary(Summary):
    """What a preparation did; `str()` of it is what the command prints."""

    dictionary: Path | None = None  # dict_path of the config, when the corpus got its own

    def __str__(self) -> str:
        """A table of the splits, what was left out, and the config keys that point there."""
        head = ["split", "utterances", "speakers", "hours", "words"]
        rows = [(r.split, r.utterances, r.speakers, f"{r.hours:.2f}", r.words) for r in self.rows]
        keys = {"libri_root": self.root, "bucket_file": self.out, "dict_path": self.dictionary}
        shown = ", ".join(f"{key}={path}" for key, path in keys.items() if path)
        last = f"in the config, downstream_expert.datarc: {shown}"
        return "\n".join([*table(head, rows, 1), *self.remarks(), last])


def build_tables(
    summary: SpeechSummary, utterances: Mapping[str, Sequence[Utterance]]
) -> dict[Path, str]:
    """Contents of the tables to write under summary.out; fills summary.rows.

    utterances: of every split, with `info`. Raises UserError for a split without any.
    """
    empty = [f"{split}: no usable utterance" for split, rows in utterances.items() if not rows]
    if empty:
        raise problems_error("nothing to train or test on:", empty + summary.skipped)
    texts = {}
    for split, rows in utterances.items():
        lines: list[list[object]] = [["file_path", "length", "label"]]
        for row in sorted(rows, key=lambda row: (-_samples(row), row.name)):
            frames = round(_samples(row) / SAMPLES_PER_FRAME)
            lines.append([row.path.relative_to(summary.root).as_posix(), frames, ""])
        texts[summary.out / f"{split}.csv"] = csv_text(lines)
        speakers = len({row.path.parent.parent for row in rows})
        hours = sum(row.info.seconds for row in rows if row.info) / 3600
        words = sum(len(row.text.split()) for row in rows)
        summary.rows.append(SpeechRow(split, len(rows), speakers, hours, words))
    return texts


def read_table(path: Path, problems: list[str]) -> list[tuple[str, float]]:
    """(file_path, length) of every row; what is amiss goes into `problems`."""
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob("*.csv"))
        hint = did_you_mean(path.stem, there) or f" There: {', '.join(there) or 'none'}."
        problems.append(f"{path}: no such table.{hint}")
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        found = [(row["file_path"], float(row["length"])) for row in rows]
    except (KeyError, TypeError, ValueError):
        found = []
    if not found:
        problems.append(
            f"{path}: expected a table with the columns file_path and length (a number) and at "
            "least one row"
        )
    return found


def _samples(utterance: Utterance) -> int:
    assert utterance.info is not None, "tables are written for checked files"
    return utterance.info.num_samples
