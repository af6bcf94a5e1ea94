"""Tasks whose target is a sequence of units, by CTC: SUPERB's head or the paper's linear one."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic
from s3prl_varan.layerwise.ctc import (
    ctc_frames_needed,
    greedy_labels,
    layerwise_ctc,
    select_sequence,
)  # fmt: skip
from s3prl_varan.layerwise.heads import (
    HeadOptions,
    LinearHeads,
    copied_heads,
    refuse_dropout,
)  # fmt: skip
from s3prl_varan.layerwise.objective import aggregate_log_probs
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.options import Count, Range, Share, Width, plain, read_options
from s3prl_varan.tasks.shapes.base import Item, Record, Task

logger = logging.getLogger(__name__)

# Samples of a frame after the head's subsampling; -1: as the upstream has it.
FrameRate = Literal[-1] | Annotated[int, Range(low=1, high=16000)]


@dataclass(frozen=True)
class CTCTargets:
    """Targets of a batch."""

    labels: Tensor  # [B, S] units, padded
    lengths: Tensor  # [B] units of each

    def to(self, device: torch.device) -> "CTCTargets":
        """On another device."""
        return CTCTargets(self.labels.to(device), self.lengths.to(device))


@dataclass(frozen=True)
class RNNsOptions:
    """s3prl's RNNs: a list entry for each recurrent layer."""

    total_rate: FrameRate = 320
    module: Literal["LSTM", "GRU", "RNN"] = "LSTM"
    bidirection: bool = True
    dim: list[Width] = field(default_factory=lambda: [1024, 1024])
    dropout: list[Share] = field(default_factory=lambda: [0.2, 0.2])
    layer_norm: list[bool] = field(default_factory=lambda: [False, False])
    proj: list[bool] = field(default_factory=lambda: [False, False])
    sample_rate: list[Count] = field(default_factory=lambda: [1, 1])
    sample_style: Literal["concat", "drop"] = "concat"

    def __post_init__(self) -> None:
        lists = ("dim", "dropout", "layer_norm", "proj", "sample_rate")
        sizes = {key: len(getattr(self, key)) for key in lists}
        if len(set(sizes.values())) > 1 or not sizes["dim"]:
            shown = ", ".join(f"{key} {size}" for key, size in sizes.items())
            raise UserError(f"one entry for each recurrent layer is expected, found {shown}.")


@dataclass(frozen=True)
class Wav2LetterOptions:
    """s3prl's Wav2Letter."""

    total_rate: FrameRate = 320


class CTCTask(Task):
    """A sequence of units a clip. `outputs` are the units, blank first; targets are unit ids."""

    rules = ("geometric", "mixture", "sequence")
    released_nll = "per_example"  # the released CTC code weighs each utterance by its own q
    scores_training = False  # decoding every training batch costs more than it tells
    head_keys = ("project_dim", "select", "RNNs", "Wav2Letter")
    longest_piece = 30.0
    blank = 0
    gap: ClassVar[str] = " "  # between the texts of two pieces

    @dataclass(frozen=True)
    class Data(Task.Data):
        """Section `datarc`. Any further list whose key starts with train, dev or test is a split.

        What it lists (tables, folders) together is the split.
        """

        batch_size: Count = 32  # of training
        train_batch_size: Count = 16  # s3prl's speech recognition has it and does not read it
        eval_batch_size: Count = 8
        zero_infinity: bool = True  # leave out of the loss what CTC cannot align
        split_tables: dict[str, list[str]] = field(default_factory=dict)

        @classmethod
        def from_plain(cls, values: Mapping[str, Any], section: str, problems: list[str]) -> Any:
            """The splits are keys of the user's naming."""
            known = {each.name for each in fields(cls)}
            splits = {
                key: value
                for key, value in values.items()
                if key not in known
                and isinstance(value, list)
                and str(key).startswith(("train", "dev", "test"))
            }
            rest = {key: value for key, value in values.items() if key not in splits}
            values = {**rest, "split_tables": splits}
            return read_options(cls, values, section, problems, plain_only=True)

        def to_plain(self) -> dict[str, Any]:
            """As the config has it."""
            values = plain(self, plain_only=True)
            tables = values.pop("split_tables")
            return {**values, **tables}

    @dataclass(frozen=True)
    class Model:
        """Section `modelrc`, s3prl's keys."""

        project_dim: Width = 1024
        select: Literal["RNNs", "Wav2Letter", "FrameLevel"] = "RNNs"
        RNNs: RNNsOptions = field(default_factory=RNNsOptions)
        Wav2Letter: Wav2LetterOptions = field(default_factory=Wav2LetterOptions)
        # An utterance's loss is divided by its frames (VARAN) or by its target's units (SUPERB).
        ctc_normalize: Literal["frames", "target"] = "frames"

    def splits(self) -> list[str]:
        return [name for name, tables in self.data.split_tables.items() if tables]

    def batch_size(self, training: bool) -> int:
        return self.data.batch_size if training else self.data.eval_batch_size

    def collate(self, targets: Sequence[Sequence[int]]) -> CTCTargets:
        labels = [torch.tensor(target) for target in targets]
        lengths = torch.tensor([len(target) for target in targets])
        return CTCTargets(pad_sequence(labels, batch_first=True), lengths)

    def build_heads(
        self, dim: int, num_layers: int, downsample_rate: int, options: HeadOptions
    ) -> nn.Module:
        units, width = len(self.outputs), self.model.project_dim
        if options.kind == "linear" or self.model.select == "FrameLevel":
            if options.kind == "expert":
                refuse_dropout(options)
            return LinearHeads(
                num_layers,
                dim,
                options.dim if options.kind == "linear" else width,
                units,
                per_frame=True,
                shared=options.shared,
                dropout=options.dropout,
            )
        return copied_heads(
            options, num_layers, dim, width, lambda: self.build_model(width, units, downsample_rate)
        )

    def build_model(self, input_dim: int, units: int, downsample_rate: int) -> nn.Module:
        """s3prl's model class that modelrc selects, for one layer."""
        from s3prl.downstream.asr.model import RNNs, Wav2Letter

        select: str = self.model.select
        cls = {"RNNs": RNNs, "Wav2Letter": Wav2Letter}[select]
        settings: Any = getattr(self.model, select)
        if settings.total_rate != -1 and round(settings.total_rate / downsample_rate) < 1:
            raise UserError(
                f"config.downstream_expert.modelrc.{select}.total_rate: found "
                f"{settings.total_rate}, but the upstream has a frame every {downsample_rate} "
                "samples: give as many or a multiple of them, or -1 for the upstream's own."
            )
        return cls(input_dim, units, downsample_rate, **plain(settings))

    def layer_loss(self, out: LayerOutputs, targets: CTCTargets) -> Tensor:
        frames = out.lengths.to(targets.labels.device)
        unaligned = ctc_frames_needed(targets.labels, targets.lengths) > frames
        if not self.data.zero_infinity and bool(unaligned.any()):
            raise UserError(
                f"{int(unaligned.sum())} utterances of a batch have more symbols than frames, so "
                "their CTC loss is infinite. Set config.downstream_expert.datarc.zero_infinity="
                "True, or leave them out of the corpus."
            )
        nll = layerwise_ctc(
            out.log_probs,
            targets.labels,
            frames,
            targets.lengths,
            blank=self.blank,
            zero_infinity=self.data.zero_infinity,
        )
        norm = frames if self.model.ctc_normalize == "frames" else targets.lengths
        return nll / norm.to(nll).clamp_min(1)[:, None]

    def combine(self, out: LayerOutputs, posterior_logits: Tensor, rule: str) -> Prediction:
        log_probs = out.log_probs
        if rule == "sequence" and log_probs.size(1) > 1:
            values = select_sequence(log_probs, posterior_logits, out.lengths, self.blank)
        else:
            how = "geometric" if rule == "sequence" else rule
            values = aggregate_log_probs(log_probs, posterior_logits, how)
        return Prediction(values, out.lengths)

    def greedy(self, prediction: Prediction) -> list[list[int]]:
        """Unit ids of each utterance: the best of each frame, repeats merged, blanks dropped."""
        units, counts = greedy_labels(
            prediction.values, prediction.lengths.to(prediction.values.device), self.blank
        )
        return [row[:count] for row, count in zip(units.tolist(), counts.tolist(), strict=True)]

    def unaligned(self, prediction: Prediction, items: Sequence[Item]) -> list[bool]:
        """Does an utterance's target need more frames than there are?"""
        targets = self.collate([item.target for item in items])
        needed = ctc_frames_needed(targets.labels, targets.lengths)
        return (needed > prediction.lengths.cpu()).tolist()

    # ---- results

    @abstractmethod
    def texts(self, prediction: Prediction) -> list[str]:
        """What each utterance says."""

    def answers(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Text, and score: mean over frames of the best unit's log-probability."""
        log_probs = prediction.values.float().log_softmax(dim=-1).cpu()
        lengths = prediction.lengths.cpu()
        texts = self.texts(Prediction(log_probs, lengths))
        best: Tensor = log_probs.amax(dim=-1)
        return [
            {"prediction": text, "score": float(best[row, :length].mean()), "frames": length}
            for row, (text, length) in enumerate(zip(texts, lengths.tolist(), strict=True))
        ]

    def join(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        frames = sum(answer["frames"] for answer in answers)
        score = sum(answer["score"] * answer["frames"] for answer in answers) / frames
        texts = [answer["prediction"] for answer in answers if answer["prediction"]]
        return {"prediction": self.gap.join(texts), "score": score, "frames": frames}

    def write_texts(self, records: Sequence[Record], split: str, stem: Path) -> None:
        """STEM-hyp.ark and STEM-ref.ark, lines `name text`; what CTC cannot align is told once."""
        for kind, key in (("hyp", "predict"), ("ref", "truth")):
            texts = [(record["name"], record[key]) for record in records]
            lines = [f"{n} {t if isinstance(t, str) else ' '.join(t)}\n" for n, t in texts]
            write_atomic(stem.with_name(f"{stem.name}-{kind}.ark"), "".join(lines))
        names = sorted(record["name"] for record in records if record["unaligned"])
        warned = self.__dict__.setdefault("_warned", set())
        if set(names) - warned:
            warned.update(names)
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            logger.warning(
                "%s: %d utterances have more characters than frames, so CTC cannot align them; "
                "their loss counts as 0, they are scored all the same (%s)",
                split,
                len(names),
                shown,
            )
