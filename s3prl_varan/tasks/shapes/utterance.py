"""Tasks that give a clip one label: mean pooling, two linear maps, cross entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.files import write_atomic
from s3prl_varan.layerwise.heads import HeadOptions, LinearHeads, copied_heads
from s3prl_varan.layerwise.objective import aggregate_log_probs
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.options import Width, plain
from s3prl_varan.tasks.shapes.base import Item, Record, Task
from s3prl_varan.tasks.shapes.metrics import accuracy, classification
from s3prl_varan.tasks.shapes.splits import unlearned

# Names that s3prl's model classes look up in their own code: only these reach them.
Activation = Literal["ReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "ELU", "LeakyReLU"]
MOST_PROBABLE = 5  # classes that an answer lists where there are many
MANY_CLASSES = 20  # more than this make macro averages and long answers useless


@dataclass(frozen=True)
class FrameLevelOptions:
    """s3prl's FrameLevel: linear maps with an activation between."""

    select: Literal["FrameLevel"] = "FrameLevel"
    hiddens: list[Width] | None = None
    activation: Activation = "ReLU"


@dataclass(frozen=True)
class UtteranceLevelOptions:
    """s3prl's UtteranceLevel: pre_net, pooling over time, post_net."""

    pooling: Literal["MeanPooling", "AttentivePooling"] = "MeanPooling"
    activation: Activation = "ReLU"
    pre_net: FrameLevelOptions | None = None
    post_net: FrameLevelOptions = field(default_factory=FrameLevelOptions)

    @property
    def linear_on_mean(self) -> bool:
        """Is it one linear map of the mean? After the projector that is LinearHeads."""
        mean = self.pooling == "MeanPooling" and self.pre_net is None
        return mean and not self.post_net.hiddens


class UtteranceTask(Task):
    """One label a clip. `outputs` are the labels in the order of their ids; targets are ids.

    A subclass says where the clips and labels are: `splits`, `items`, `read_outputs`.
    """

    metric = "acc"
    head_keys: ClassVar[tuple[str, ...]] = ("projector_dim", "select", "UtteranceLevel")
    submission_folder: ClassVar[str] = ""  # in SUPERB's upload, e.g. "ks_public"

    @dataclass(frozen=True)
    class Model:
        """Section `modelrc`, s3prl's keys."""

        projector_dim: Width = 256
        select: Literal["UtteranceLevel"] = "UtteranceLevel"
        UtteranceLevel: UtteranceLevelOptions = field(default_factory=UtteranceLevelOptions)

    def splits(self) -> list[str]:
        return ["train", "dev", "test"]

    def warnings(self, clips: Mapping[str, Sequence[Item]]) -> list[str]:
        classes = self.outputs if isinstance(self.outputs, Sequence) else []  # IC has slots
        return [*super().warnings(clips), *unlearned(clips, classes)]

    def collate(self, targets: Sequence[int]) -> Tensor:
        """Class ids -> [B] int64."""
        return torch.tensor(targets)

    # ---- heads, loss and prediction

    @property
    def num_outputs(self) -> int:
        """Outputs of a head."""
        return len(self.outputs)

    def build_heads(
        self, dim: int, num_layers: int, downsample_rate: int, options: HeadOptions
    ) -> nn.Module:
        linear = options.kind == "linear"
        if linear or self.linear_on_mean:
            width = options.dim if linear else self.model.projector_dim
            return LinearHeads(
                num_layers,
                dim,
                width,
                self.num_outputs,
                per_frame=False,
                shared=options.shared,
                dropout=options.dropout,
            )
        width = self.model.projector_dim
        return copied_heads(
            options, num_layers, dim, width, lambda: self.build_model(width, self.num_outputs)
        )

    @property
    def linear_on_mean(self) -> bool:
        """Is the head that modelrc describes the same as LinearHeads?"""
        chosen = self.model.select == "UtteranceLevel"
        return chosen and self.model.UtteranceLevel.linear_on_mean

    def build_model(self, input_dim: int, output_dim: int) -> nn.Module:
        """s3prl's model class that modelrc selects, for one layer."""
        from s3prl.downstream.model import UtteranceLevel

        return UtteranceLevel(input_dim, output_dim, **plain(self.model.UtteranceLevel))

    def layer_loss(self, out: LayerOutputs, targets: Tensor) -> Tensor:
        return layer_cross_entropy(out.values, targets)

    def combine(self, out: LayerOutputs, posterior_logits: Tensor, rule: str) -> Prediction:
        values = aggregate_log_probs(out.log_probs, posterior_logits, rule)
        return Prediction(values, out.lengths)

    # ---- results

    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        guesses = prediction.values.argmax(dim=-1).tolist()
        return [
            {"name": item.name, "truth": self.outputs[item.target], "predict": self.outputs[guess]}
            for item, guess in zip(items, guesses, strict=True)
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        truth, predicted = [r["truth"] for r in records], [r["predict"] for r in records]
        measure = accuracy if len(self.outputs) > MANY_CLASSES else classification
        return measure(truth, predicted)

    def parts(self, record: Record) -> tuple[float, float] | None:
        right = float(record["truth"] == record["predict"])
        return (right, 1.0) if self.metric == "acc" else None

    def file_stem(self, split: str) -> str:
        """Start of the names of a split's prediction files."""
        return split

    def write(self, records: Sequence[Record], split: str, folder: Path) -> None:
        """SPLIT_predict.txt and SPLIT_truth.txt: lines `name label`."""
        for kind in ("predict", "truth"):
            lines = [f"{record['name']} {record[kind]}\n" for record in records]
            write_atomic(folder / f"{self.file_stem(split)}_{kind}.txt", "".join(lines))

    def submission(self) -> dict[str, str]:
        if not self.submission_folder:
            return {}
        return {f"{self.submission_folder}/predict.txt": f"{self.file_stem('test')}_predict.txt"}

    def answers(self, prediction: Prediction) -> list[dict[str, Any]]:
        rows = prediction.values.float().softmax(dim=-1)
        return [most_probable(row, self.outputs) for row in rows]

    def text(self, answer: dict[str, Any]) -> str:
        shown = answer["probabilities"].items()
        return f"{answer['prediction']}  " + "  ".join(f"{name} {p:.3f}" for name, p in shown)


def layer_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of every layer: logits [B, L, C], ids [B] -> [B, L] nats, float32."""
    batch, layers, classes = logits.shape
    rows = logits.float().reshape(batch * layers, classes)
    losses = F.cross_entropy(rows, targets.repeat_interleave(layers), reduction="none")
    return losses.view(batch, layers)


def most_probable(probabilities: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """{"prediction", "probabilities"}, best first: of all classes, or the top few of many."""
    count = len(names) if len(names) <= MANY_CLASSES else MOST_PROBABLE
    top = probabilities.topk(count)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    by_name = {names[index]: value for index, value in pairs}
    return {"prediction": next(iter(by_name)), "probabilities": by_name}
