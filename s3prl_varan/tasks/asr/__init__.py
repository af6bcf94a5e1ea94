"""Speech recognition (ASR), `-d asr`: characters by CTC, on any corpus in LibriSpeech's layout.

corpus.py reads it, units.py has the dictionary, beam.py is beam search, worst.py shows errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from s3prl_varan.edit_distance import edit_distance
from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic
from s3prl_varan.layerwise.outputs import Prediction
from s3prl_varan.tasks.asr.beam import BeamDecoder, DecoderOptions
from s3prl_varan.tasks.asr.corpus import Corpus
from s3prl_varan.tasks.asr.units import CHAR_DICT, read_units, spell, words_of
from s3prl_varan.tasks.asr.worst import worst_utterances
from s3prl_varan.tasks.shapes.base import Item, Record
from s3prl_varan.tasks.shapes.ctc import CTCTask
from s3prl_varan.tasks.shapes.metrics import error_rate

SUPERB_TRAIN = "train-clean-100"
LIBRISPEECH = ("dev-clean", "dev-other", "test-clean", "test-other")


class ASR(CTCTask):
    """A transcript a clip; word error rate chooses."""

    name = "asr"
    title = "speech recognition (ASR)"
    metric = "wer"
    higher_is_better = False
    remedy = (
        "Prepare the corpus with `python run/prepare_data.py librispeech ROOT` (or `manifest "
        "FILE.tsv`), then point to it with --data ROOT, or set libri_root, bucket_file and the "
        "splits in config.downstream_expert.datarc."
    )
    preparations = ("librispeech", "manifest")

    @dataclass(frozen=True, kw_only=True)
    class Data(CTCTask.Data):
        """Section `datarc`, with the splits as lists of tables."""

        libri_root: str
        bucket_file: str  # folder of the tables that prepare_data.py wrote
        dict_path: str | None = None  # null: the characters of English, A to Z and '
        decoder_args: DecoderOptions = field(default_factory=DecoderOptions)

    # ---- the corpus

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        """The splits are the tables found: train-clean-100, else all train*; each dev* and test*.

        Those of LibriSpeech that a config names by default are taken out where there are none.
        """
        folders = [folder for folder in (root / "meta_data", root) if any(folder.glob("*.csv"))]
        if not folders:
            raise UserError(f"--data {root}: no tables (*.csv) in it or in meta_data. {cls.remedy}")
        tables = sorted(path.stem for path in folders[0].glob("*.csv"))
        train = [name for name in tables if name.startswith("train")]
        train = [SUPERB_TRAIN] if SUPERB_TRAIN in train else train
        tested = {name: [name] for name in tables if name.startswith(("dev", "test"))}
        dictionary = folders[0] / "char.dict"
        return {
            "libri_root": str(root),
            "bucket_file": str(folders[0]),
            "dict_path": str(dictionary) if dictionary.is_file() else None,
            **dict.fromkeys(LIBRISPEECH),
            "train": train or None,
            **tested,
        }

    @property
    def corpus_reader(self) -> Corpus:
        """The tables and transcripts."""
        data = self.data
        return Corpus(Path(data.libri_root), Path(data.bucket_file), data.split_tables)

    def problems(self, splits: Sequence[str]) -> list[str]:
        problems = self.data.decoder_args.problems()
        for key in ("libri_root", "bucket_file"):
            folder = getattr(self.data, key)
            if not Path(folder).is_dir():
                problems.append(f"config.downstream_expert.datarc.{key}: no folder {folder}")
        return problems or self.corpus_reader.problems(splits, self.outputs)

    def items(self, split: str) -> list[Item]:
        return [
            Item(row.name, row.path, spell(row.text, self.outputs), row.path.parent.parent.name)
            for row in self.corpus_reader.utterances(split)
        ]

    def read_outputs(self) -> list[str]:
        return read_units(Path(self.data.dict_path or CHAR_DICT))

    # ---- results

    @cached_property
    def beam(self) -> BeamDecoder | None:
        """The decoder of datarc.decoder_args; None for greedy."""
        return self.data.decoder_args.build(self.outputs)

    def words(self, prediction: Prediction) -> tuple[list[list[str]], list[list[int]]]:
        """Words of each utterance, by the decoder, and the greedy units."""
        units = self.greedy(prediction)
        if self.beam is None:
            return [words_of(row, self.outputs) for row in units], units
        beam = self.beam
        values, lengths = prediction.values.float().cpu(), prediction.lengths.tolist()
        return [beam.words(row[:n]) for row, n in zip(values, lengths, strict=True)], units

    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        words, units = self.words(prediction)
        unaligned = self.unaligned(prediction, items)
        ending = self.outputs.index("</s>")
        return [
            {
                "name": item.name,
                "truth": words_of(item.target, self.outputs),
                "predict": guess,
                "units": [unit for unit in item.target if unit != ending],
                "greedy_units": [unit for unit in greedy if unit != ending],
                "unaligned": flag,
            }
            for item, guess, greedy, flag in zip(items, words, units, unaligned, strict=True)
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """wer, cer (spaces count) and uer in percent of the reference.

        uer is s3prl's: over the greedy units, each word followed by a '|', also where a beam
        search gives the words.
        """
        truth, guesses = [r["truth"] for r in records], [r["predict"] for r in records]
        characters = [[" ".join(words) for words in texts] for texts in (truth, guesses)]
        units = [r["units"] for r in records], [r["greedy_units"] for r in records]
        return {
            "wer": error_rate(truth, guesses),
            "cer": error_rate(*characters),
            "uer": error_rate(*units),
        }

    def parts(self, record: Record) -> tuple[float, float] | None:
        truth = record["truth"]
        return edit_distance(truth, record["predict"]), len(truth)

    def write(self, records: Sequence[Record], split: str, folder: Path) -> None:
        """SPLIT-LM-hyp.ark and -ref.ark (or -noLM-), and worst_SPLIT.txt."""
        decoder = "noLM" if self.beam is None else "LM"
        self.write_texts(records, split, folder / f"{split}-{decoder}")
        write_atomic(folder / f"worst_{split}.txt", worst_utterances(records))

    def submission(self) -> dict[str, str]:
        return {
            "asr_public/predict.ark": "test-clean-noLM-hyp.ark",
            "asr_lm_public/predict.ark": "test-clean-LM-hyp.ark",
        }

    def texts(self, prediction: Prediction) -> list[str]:
        return [" ".join(words) for words in self.words(prediction)[0]]
