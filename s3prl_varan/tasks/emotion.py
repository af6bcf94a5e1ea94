"""Emotion recognition (ER), `-d emotion`: IEMOCAP as in SUPERB, RAVDESS, or any corpus so prepared.

Reads what run/prepare_data.py writes: META_DATA/SessionN/{train,dev,test}_meta_data.json, s3prl's
format. Without a dev file a share of train, drawn at random, is dev, as in SUPERB.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from s3prl_varan.errors import UserError
from s3prl_varan.options import Count, Natural, Range, Share, Width, plain
from s3prl_varan.tasks.shapes.base import Item
from s3prl_varan.tasks.shapes.utterance import UtteranceTask

DRAW_SEED = 0  # of dev out of train, s3prl's


@dataclass(frozen=True)
class DeepModelOptions:
    """s3prl's DeepModel: a convolutional network with attentive pooling."""

    model_type: Literal["CNNSelfAttention", "FCN", "DeepNet"] = "CNNSelfAttention"
    hidden_dim: Width = 80
    kernel_size: Width = 5
    padding: Natural = 2
    pooling: Count = 5
    dropout: Share = 0.4


class Emotion(UtteranceTask):
    """One emotion a clip, speakers left out by fold."""

    name = "emotion"
    title = "emotion recognition (ER)"
    default_fold = "fold1"
    head_keys = (*UtteranceTask.head_keys, "DeepModel")
    remedy = (
        "Prepare the corpus with `python run/prepare_data.py iemocap|ravdess ROOT`, then point to "
        "it with --data ROOT."
    )
    preparations = ("iemocap", "ravdess", "synthetic")

    @dataclass(frozen=True, kw_only=True)
    class Data(UtteranceTask.Data):
        """Section `datarc`."""

        root: str
        meta_data: str
        test_fold: str | None = None  # null: -v, or fold1
        valid_ratio: Annotated[float, Range(above=0, below=1)] = 0.2  # where there is no dev file
        pre_load: bool = True
        num_workers: Natural = 0  # with pre_load the clips are in memory

    @dataclass(frozen=True)
    class Model(UtteranceTask.Model):
        """Section `modelrc`."""

        select: Literal["UtteranceLevel", "DeepModel"] = "UtteranceLevel"  # type: ignore[assignment]
        DeepModel: DeepModelOptions = field(default_factory=DeepModelOptions)

    def __init__(self, data: Any, model: Any, *, fold: str | None = None, outputs: Any = None):
        super().__init__(data, model, fold=data.test_fold or fold, outputs=outputs)

    def build_model(self, input_dim: int, output_dim: int) -> nn.Module:
        from s3prl.downstream.emotion.model import DeepModel

        if self.model.select == "DeepModel":
            return DeepModel(input_dim, output_dim, **plain(self.model.DeepModel))
        return super().build_model(input_dim, output_dim)

    # ---- the corpus

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        return {"root": str(root), "meta_data": str(root / "meta_data")}

    @property
    def folder(self) -> Path:
        """Where the fold's lists are."""
        return Path(self.data.meta_data) / str(self.fold).replace("fold", "Session")

    def folds(self) -> list[str]:
        lists = Path(self.data.meta_data).glob("Session*/train_meta_data.json")
        names = [path.parent.name.replace("Session", "fold") for path in lists]
        return sorted(names, key=lambda name: (len(name), name))

    def problems(self, splits: Sequence[str]) -> list[str]:
        problems = []
        if not Path(self.data.root).is_dir():
            problems.append(f"config.downstream_expert.datarc.root: no folder {self.data.root}")
        needed = ("train_meta_data.json", "test_meta_data.json")
        missing = [name for name in needed if not (self.folder / name).is_file()]
        if missing:
            there = f" (-v can be: {', '.join(self.folds())})" if self.folds() else ""
            problems.append(f"no {' and no '.join(missing)} in {self.folder}{there}")
        return problems or super().problems(splits)

    def read_outputs(self) -> list[str]:
        labels = self._read("train")["labels"]
        return sorted(labels, key=labels.__getitem__)

    def items(self, split: str) -> list[Item]:
        if split == "test" or (self.folder / "dev_meta_data.json").is_file():
            return self._items(split)
        train, dev = self._drawn
        return train if split == "train" else dev

    @cached_property
    def _drawn(self) -> tuple[list[Item], list[Item]]:
        """Train and dev out of train, the same draw as s3prl's random_split."""
        items = self._items("train")
        count = int((1 - self.data.valid_ratio) * len(items))
        generator = torch.Generator().manual_seed(DRAW_SEED)
        order = torch.randperm(len(items), generator=generator).tolist()
        return [items[at] for at in order[:count]], [items[at] for at in order[count:]]

    def _items(self, split: str) -> list[Item]:
        content = self._read(split)
        ids = content["labels"]
        if sorted(ids, key=ids.__getitem__) != self.outputs:
            raise UserError(
                f"{self._list(split)}: class ids {ids} differ from those of training, which are "
                f"{self.outputs} in this order. Prepare all splits together."
            )
        root = Path(self.data.root)
        return [
            Item(Path(row["path"]).stem, root / row["path"], ids[row["label"]], row.get("speaker"))
            for row in content["meta_data"]
        ]

    def _list(self, split: str) -> Path:
        return self.folder / f"{split}_meta_data.json"

    def _read(self, split: str) -> dict[str, Any]:
        """A list's content, checked. UserError that names the file and what is wrong in it."""
        path = self._list(split)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            labels = dict(content["labels"])
            unknown = {row["label"] for row in content["meta_data"] if row["path"]} - set(labels)
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: not emotion metadata ({said}). {self.remedy}") from error
        if unknown or sorted(labels.values()) != list(range(len(labels))):
            listed = ", ".join(sorted(map(str, unknown))) or "ids that are not 0, 1, 2, ..."
            raise UserError(f"{path}: labels {labels} do not fit its clips: {listed}.")
        return {**content, "labels": labels}

    # ---- results

    def file_stem(self, split: str) -> str:
        return f"{split}_{self.fold}"

    def submission(self) -> dict[str, str]:
        return {f"er_{self.fold}_public/predict.txt": f"test_{self.fold}_predict.txt"}
