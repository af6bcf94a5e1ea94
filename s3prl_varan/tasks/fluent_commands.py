"""Intent classification (IC), `-d fluent_commands`: action, object and location of a command.

Fluent Speech Commands as it is unpacked: FILE_PATH/data/{train,valid,test}_data.csv name the clips
in FILE_PATH/wavs and their three slots. A head's outputs are the values of the three side by side.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic
from s3prl_varan.layerwise.objective import aggregate_log_probs
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.tasks.shapes.base import Item, Record, Task
from s3prl_varan.tasks.shapes.metrics import accuracy
from s3prl_varan.tasks.shapes.utterance import UtteranceTask, layer_cross_entropy, most_probable

SLOTS = ("action", "object", "location")
TABLES = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}
SECTION = "config.downstream_expert.datarc"


class FluentCommands(UtteranceTask):
    """What a command is to do: a value for each of three slots, right where all three are."""

    name = "fluent_commands"
    title = "intent classification (IC)"
    remedy = (
        "Unpack fluent_speech_commands_dataset (it holds data/ and wavs/) and point to it with "
        "--data, or set file_path in config.downstream_expert.datarc."
    )

    @dataclass(frozen=True, kw_only=True)
    class Data(Task.Data):
        """Section `downstream_expert.datarc`."""

        file_path: str

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        return {"file_path": str(root)}

    def read_outputs(self) -> dict[str, list[str]]:
        """{slot: its values}, in the order in which train has them."""
        rows = self._rows("train")
        return {slot: list(dict.fromkeys(row[slot] for row in rows)) for slot in SLOTS}

    @property
    def num_outputs(self) -> int:
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [len(self.outputs[slot]) for slot in SLOTS]

    def items(self, split: str) -> list[Item]:
        rows = self._rows(split)
        unseen = Counter(
            f"{slot} '{row[slot]}'"
            for row in rows
            for slot in SLOTS
            if row[slot] not in self.outputs[slot]
        )
        if unseen:
            table = self._table(split)
            raise UserError(
                "\n".join(
                    f"{table}: {value}, of {count} clips, is not in {TABLES['train']}"
                    for value, count in unseen.items()
                )
            )
        return [self._item(row) for row in rows]

    def _item(self, row: dict[str, str]) -> Item:
        path = Path(self.data.file_path) / row["path"]
        target = tuple(self.outputs[slot].index(row[slot]) for slot in SLOTS)
        return Item(path.stem, path, target, row.get("speakerId"))

    def _table(self, split: str) -> Path:
        return Path(self.data.file_path) / "data" / TABLES[split]

    def _rows(self, split: str) -> list[dict[str, str]]:
        """The table of a split, with a value in each column that is needed."""
        path = self._table(split)
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                columns, rows = reader.fieldnames or (), list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
        lacking = [each for each in ("path", *SLOTS) if each not in columns]
        if lacking:
            raise UserError(f"{path}: no column {', '.join(lacking)}")
        if not rows:
            raise UserError(f"{path}: no clips in it")
        short = [
            f"{path}, row {number}: no {column}"
            for number, row in enumerate(rows, start=1)
            for column in ("path", *SLOTS)
            if not row[column]
        ]
        if short:
            raise UserError("\n".join(short))
        return rows

    def _slots(self, values: Tensor) -> tuple[Tensor, ...]:
        """[..., C] -> a slice for each slot."""
        return values.split(self._sizes, dim=-1)

    def layer_loss(self, out: LayerOutputs, targets: Tensor) -> Tensor:
        """Sum of the slots' cross entropies; targets [B, 3] -> [B, L] nats."""
        slots = zip(self._slots(out.values), targets.unbind(dim=1), strict=True)
        losses = [layer_cross_entropy(logits, labels) for logits, labels in slots]
        return torch.stack(losses).sum(dim=0)

    def combine(self, out: LayerOutputs, posterior_logits: Tensor, rule: str) -> Prediction:
        """Each slot by the rule, side by side again: [B, C]."""
        slots = [
            aggregate_log_probs(values.float().log_softmax(dim=-1), posterior_logits, rule)
            for values in self._slots(out.values)
        ]
        return Prediction(torch.cat(slots, dim=-1), out.lengths)

    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        best = torch.stack([each.argmax(dim=-1) for each in self._slots(prediction.values)], dim=1)
        return [
            {
                "name": item.name,
                "truth": self._values(item.target),
                "predict": self._values(ids),
            }
            for item, ids in zip(items, best.tolist(), strict=True)
        ]

    def _values(self, ids: Sequence[int]) -> list[str]:
        return [self.outputs[slot][index] for slot, index in zip(SLOTS, ids, strict=True)]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        return accuracy([r["truth"] for r in records], [r["predict"] for r in records])

    def write(self, records: Sequence[Record], split: str, folder: Path) -> None:
        """SPLIT_predict.csv and SPLIT_truth.csv: lines `name,action,object,location`."""
        for key in ("predict", "truth"):
            lines = [",".join([record["name"], *record[key]]) + "\n" for record in records]
            write_atomic(folder / f"{split}_{key}.csv", "".join(lines))

    def submission(self) -> dict[str, str]:
        return {"ic_public/predict.csv": "test_predict.csv"}

    def answers(self, prediction: Prediction) -> list[dict[str, Any]]:
        """The likeliest value of each slot, and the probabilities of its values."""
        answers = []
        for row in zip(*self._slots(prediction.values), strict=True):
            slots = {
                slot: most_probable(values.float().softmax(dim=-1), self.outputs[slot])
                for slot, values in zip(SLOTS, row, strict=True)
            }
            best = [answer["prediction"] for answer in slots.values()]
            probabilities = {slot: answer["probabilities"] for slot, answer in slots.items()}
            answers.append({"prediction": best, "probabilities": probabilities})
        return answers

    def text(self, answer: dict[str, Any]) -> str:
        return ", ".join(answer["prediction"])
