"""What is timed: a training step of an upstream with a featurizer and heads, on noise of a fixed length."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.benchmark.plain import PlainVaran
from s3prl_varan.benchmark.upstreams import GEOMETRIES
from s3prl_varan.config.options import HeadOptions, VaranOptions
from s3prl_varan.featurizers.registry import build_featurizer
from s3prl_varan.layerwise.downstream import adapt_expert
from s3prl_varan.model import SpeechModel
from s3prl_varan.training.compiled import compile_model
from s3prl_varan.tuning.lora import LoraOptions, apply_lora
from s3prl_varan.tuning.modes import disable_layerdrop, set_cnn_training, set_train_modes
from s3prl_varan.upstream.wrapper import Upstream, build_upstream

WIDTH, CLASSES, SYMBOLS = 256, 4, 32
LABELS_PER_SECOND = 14  # characters, about LibriSpeech's
TUNINGS = ("frozen", "lora", "full")
TASKS = ("er", "ctc")
FEATURIZERS = ("last_layer", "weighted_sum", "varan", "plain")


@dataclass(frozen=True)
class Case:
    """One line of the table; also the arguments of a child process."""

    geometry: str
    tuning: str
    task: str
    featurizer: str
    batch: int
    seconds: float
    head_dropout: float = 0.1  # as in the shipped configs of VARAN
    precision: str = "fp32"
    compiled: bool = False
    device: str = "cpu"


@dataclass
class Step:
    """A training step that can be repeated: forward, backward, gradient clipping, optimizer."""

    case: Case
    model: nn.Module
    wavs: list[Tensor]
    others: tuple
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.trained = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        if self.case.compiled:
            assert isinstance(self.model, SpeechModel)
            compile_model(self.model)

    def __call__(self) -> float:
        """Run it; the loss."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.case.precision)
        with torch.autocast(
            self.case.device, dtype=half or torch.bfloat16, enabled=half is not None
        ):
            loss = self.model("train", self.wavs, self.others, {})["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


class StubExpert(nn.Module):
    """A downstream expert in s3prl's form without its data: linear heads on the mean over time, or CTC on every frame."""

    def __init__(self, dim: int, ctc: bool):
        super().__init__()
        self.projector = nn.Linear(dim, WIDTH)
        self.model = nn.Linear(WIDTH, SYMBOLS if ctc else CLASSES)
        self.objective = nn.CTCLoss(blank=0, zero_infinity=True) if ctc else nn.CrossEntropyLoss()
        self.ctc = ctc

    def forward(
        self,
        split: str,
        features: list[Tensor],
        labels: Tensor,
        label_lengths: Tensor | None,
        records: dict,
    ) -> Tensor:
        """The loss; the prediction is made as training does, for the records."""
        padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
        predicted, lengths = self.model(self.projector(padded))
        if not self.ctc:
            records["predict"] = predicted.argmax(dim=-1).cpu()
            return self.objective(predicted, labels)
        log_probs = F.log_softmax(predicted, dim=-1)
        records["predict"] = log_probs.argmax(dim=-1).cpu()
        return self.objective(log_probs.transpose(0, 1), labels, lengths, label_lengths)


class PlainModel(nn.Module):
    """The upstream with PlainVaran on all but the encoder input."""

    def __init__(self, upstream: Upstream, heads: PlainVaran, trains_upstream: bool):
        super().__init__()
        self.upstream, self.heads, self.trains_upstream = upstream, heads, trains_upstream

    def forward(
        self, split: str, wavs: list[Tensor], others: tuple, records: dict
    ) -> dict[str, Tensor]:
        """{"loss": scalar}."""
        with torch.set_grad_enabled(self.trains_upstream):
            hidden = self.upstream(wavs)
        return {"loss": self.heads(hidden.layers[1:], hidden.lengths, *others)}


def tuned_upstream(geometry: str, tuning: str, device: str) -> Upstream:
    """The upstream with what trains of it trainable, as the runner prepares it."""
    upstream = build_upstream(GEOMETRIES[geometry])
    upstream.requires_grad_(False)
    if tuning != "frozen":
        disable_layerdrop(upstream)
        set_train_modes(upstream, dropout=True, masking=False)
    if tuning == "lora":
        apply_lora(upstream, LoraOptions())
    elif tuning == "full":
        upstream.requires_grad_(True)
        set_cnn_training(upstream, False)
    return upstream.to(device)


def build_step(case: Case, upstream: Upstream | None = None) -> Step:
    """The step of a case; several may share an upstream of the same geometry and tuning."""
    upstream = upstream or tuned_upstream(case.geometry, case.tuning, case.device)
    torch.manual_seed(0)
    ctc, trains = case.task == "ctc", case.tuning != "frozen"
    wavs = [
        0.1 * torch.randn(round(16000 * case.seconds), device=case.device)
        for _ in range(case.batch)
    ]
    options_class = VaranOptions if case.featurizer in ("varan", "plain") else HeadOptions
    options = options_class(head="linear", head_dropout=case.head_dropout)
    name = "varan" if case.featurizer == "plain" else case.featurizer
    featurizer = build_featurizer(name, upstream.num_hidden, upstream.dim, options)
    if case.featurizer == "plain":
        outputs, prior = SYMBOLS if ctc else CLASSES, featurizer.prior
        heads = PlainVaran(
            upstream.num_hidden - 1,
            upstream.dim,
            WIDTH,
            outputs,
            prior,
            ctc=ctc,
            dropout=case.head_dropout,
        )
        model: nn.Module = PlainModel(upstream, heads, trains)
    else:
        downstream = adapt_expert(
            "benchmark",
            StubExpert(upstream.dim, ctc),
            upstream.dim,
            featurizer.num_outputs,
            options,
        )
        model = SpeechModel(upstream, featurizer, downstream, trains_upstream=trains)
    model.to(case.device).train()
    upstream.train(trains)
    return Step(case, model, wavs, labels_of(case.batch, case.seconds, ctc, case.device))


def labels_of(batch: int, seconds: float, ctc: bool, device: str) -> tuple[Any, Any]:
    """Random labels [B], None; or for CTC [B, S], [B]."""
    if not ctc:
        return torch.randint(CLASSES, (batch,), device=device), None
    count = max(1, round(LABELS_PER_SECOND * seconds))
    labels = torch.randint(1, SYMBOLS, (batch, count), device=device)
    return labels, torch.full((batch,), count, device=device)
