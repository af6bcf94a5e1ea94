"""Utterances of a speech recognition corpus as s3prl's expert takes them: (waveforms, labels, names) a batch.

The same files and the same labels as s3prl's dataset, but an item is an utterance, not a batch: s3prl drops a last batch of one,
any utterance without a transcript and any split without a table.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from s3prl_varan.audio import read_audio
from s3prl_varan.corpora.dictionary import (
    CHAR_DICT,
    WORD_BOUNDARY,
    describe_unknown,
    load_alphabet,
    unknown_symbols,
)
from s3prl_varan.errors import UserError, did_you_mean, problems_error

MAX_SHOWN = 20  # problems in one message
PREPARE = (
    "Prepare the corpus with `python run/prepare_data.py librispeech ROOT` (or `manifest FILE.tsv`), then set libri_root, "
    "bucket_file and the splits in config.downstream_expert.datarc, e.g. "
    '-o "config.downstream_expert.datarc.libri_root=ROOT,,config.downstream_expert.datarc.train=[train-clean-100]".'
)


@dataclass(frozen=True)
class Utterance:
    """A recording and its text."""

    name: str
    path: Path
    text: str  # upper case, single spaces; may be empty
    length: float  # in the table's unit, for sorting only


def split_names(section: dict[str, Any]) -> list[str]:
    """Splits of a config: the keys of datarc that hold a list."""
    return [key for key, value in section["datarc"].items() if isinstance(value, list) and value]


def dictionary_path(datarc: dict[str, Any]) -> Path:
    """datarc.dict_path, by default the shipped English characters."""
    return Path(datarc.get("dict_path") or CHAR_DICT)


def check_corpus(section: dict[str, Any], splits: Sequence[str]) -> None:
    """Raise UserError with everything that keeps `splits` from being used: tables, files, transcripts, characters."""
    datarc = section["datarc"]
    problems: list[str] = []
    for key in ("libri_root", "bucket_file"):
        if not Path(str(datarc.get(key))).is_dir():
            problems.append(f"config.downstream_expert.datarc.{key}: no folder {datarc.get(key)}")
    if problems:
        raise problems_error("The speech corpus cannot be used:", problems, PREPARE)
    alphabet = load_alphabet(dictionary_path(datarc))
    unknown: dict[str, dict[str, int]] = defaultdict(dict)
    for split in dict.fromkeys(splits):
        for utterance in read_split(datarc, split, problems):
            if not utterance.path.is_file():
                problems.append(f"{utterance.path}: no such file, but {split} lists it")
            for symbol, count in unknown_symbols(utterance.text, alphabet).items():
                unknown[symbol][utterance.name] = count
    problems += [f"outside the dictionary: {line}" for line in describe_unknown(unknown, shown=3)]
    if problems:
        remedy = PREPARE
        if unknown:
            remedy += " Spell digits and symbols as spoken; other letters need their own dictionary (--build_dict, dict_path)."
        rest = [f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
        raise problems_error(
            "The speech corpus cannot be used:", problems[:MAX_SHOWN] + rest, remedy
        )


def read_split(datarc: dict[str, Any], split: str, problems: list[str]) -> list[Utterance]:
    """The split's utterances, longest first; what is amiss goes into `problems`."""
    root, found, texts = Path(datarc["libri_root"]), [], {}
    for table in datarc[split]:
        path = Path(datarc["bucket_file"]) / f"{table}.csv"
        if not path.is_file():
            there = sorted(file.stem for file in path.parent.glob("*.csv"))
            hint = did_you_mean(table, there) or f" There: {', '.join(there) or 'none'}."
            problems.append(f"config.downstream_expert.datarc.{split}: no table {path}.{hint}")
            continue
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"file_path", "length"} <= rows[0].keys():
            problems.append(
                f"{path}: expected a table with the columns file_path and length and at least one row"
            )
            continue
        for row in rows:
            audio = root / row["file_path"]
            if audio.parent not in texts:
                texts[audio.parent] = _transcripts(audio.parent, problems)
            text = texts[audio.parent].get(audio.stem)
            if text is None:
                problems.append(
                    f"{audio}: no transcript for it in {_transcript_file(audio.parent)}"
                )
            else:
                found.append(Utterance(audio.stem, audio, text, float(row["length"])))
    return sorted(found, key=lambda utterance: (-utterance.length, utterance.name))


def _transcript_file(chapter: Path) -> Path:
    return chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"


def _transcripts(chapter: Path, problems: list[str]) -> dict[str, str]:
    try:
        lines = _transcript_file(chapter).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{_transcript_file(chapter)}: cannot be read ({error})")
        return {}
    rows = (line.split() for line in lines if line.strip())
    return {name: " ".join(words).upper() for name, *words in rows}


def encode(text: str, dictionary: Any) -> list[int]:
    """Labels of a text as s3prl makes them: characters, '|' after every word, then </s>. UserError for an unknown character."""
    units = [*text.replace(" ", WORD_BOUNDARY), WORD_BOUNDARY]
    unknown = sorted({unit for unit in units if unit not in dictionary.indices})
    if unknown:
        raise UserError(
            f"'{text}' has characters outside the dictionary: {' '.join(unknown)}. {PREPARE}"
        )
    return [*(dictionary.indices[unit] for unit in units), dictionary.eos()]


class SpeechDataset(Dataset):
    """(waveform [num_samples], labels, name) per utterance, longest first."""

    def __init__(self, utterances: Sequence[Utterance], dictionary: Any):
        self.utterances = list(utterances)
        self.libri_root, self.X = (
            "",
            [[str(utterance.path)] for utterance in utterances],
        )  # s3prl's names, read by lengths.py
        self.labels = [encode(utterance.text, dictionary) for utterance in utterances]

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> tuple[Any, list[int], str]:
        utterance = self.utterances[index]
        return read_audio(utterance.path).numpy(), self.labels[index], utterance.name

    @staticmethod
    def collate_fn(items: Sequence[tuple]) -> tuple[list, list, list]:
        """Items -> (waveforms, labels, names), the arguments of the expert."""
        waves, labels, names = zip(*items, strict=True)
        return list(waves), list(labels), list(names)


class SimilarLengths(Sampler[int]):
    """An epoch in which neighbours are of similar length, so that a batch is little padding, yet every epoch mixes anew.

    A random permutation, sorted within pools of sqrt(batches) batches; then the batches are shuffled, the short one last.
    """

    def __init__(self, lengths: Sequence[float], batch_size: int):
        self.lengths, self.batch_size = list(lengths), batch_size
        self.generator: torch.Generator | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=self.generator).tolist()
        batches_in_pool = max(1, round(math.sqrt(len(order) / self.batch_size)))
        pool = batches_in_pool * self.batch_size
        order = [
            index
            for start in range(0, len(order), pool)
            for index in sorted(order[start : start + pool], key=lambda index: -self.lengths[index])
        ]
        batches = [
            order[start : start + self.batch_size]
            for start in range(0, len(order), self.batch_size)
        ]
        whole = sum(len(batch) == self.batch_size for batch in batches)
        shuffled = [
            batches[index] for index in torch.randperm(whole, generator=self.generator).tolist()
        ]
        return iter([index for batch in [*shuffled, *batches[whole:]] for index in batch])


class Splits:
    """Takes the place of the expert's get_dataloader: a loader for any split of the config, made when it is first asked for."""

    def __init__(self, datarc: dict[str, Any], dictionary: Any):
        self.datarc, self.dictionary = datarc, dictionary
        self.datasets: dict[str, SpeechDataset] = {}

    def __call__(self, split: str) -> DataLoader:
        if split not in self.datasets:
            problems: list[str] = []
            utterances = read_split(self.datarc, split, problems)
            if problems:
                raise problems_error(
                    "The speech corpus cannot be used:", problems[:MAX_SHOWN], PREPARE
                )
            self.datasets[split] = SpeechDataset(utterances, self.dictionary)
        dataset, training = self.datasets[split], split.startswith("train")
        size = self.datarc["batch_size" if training else "eval_batch_size"]
        lengths = [utterance.length for utterance in dataset.utterances]
        return DataLoader(
            dataset,
            batch_size=size,
            sampler=SimilarLengths(lengths, size) if training else None,
            num_workers=self.datarc["num_workers"],
            collate_fn=dataset.collate_fn,
        )
