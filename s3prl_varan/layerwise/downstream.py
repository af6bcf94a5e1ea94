"""Adapts an unmodified s3prl downstream expert: its projector -> model -> objective become layer-wise.

An expert pads a list of features and runs them through those three sub-modules. We hand it placeholders of the right
lengths instead (so nothing is copied), and replace the three by modules that read the batch's real LayerFeatures from a
`BatchState` they share. Data, labels, records and files stay the expert's own.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.config.options import (
    HeadOptions,
    ObjectiveSettings,
    VaranOptions,
    objective_settings,
)
from s3prl_varan.errors import UserError
from s3prl_varan.features.stack import LayerFeatures
from s3prl_varan.layerwise.ctc import ctc_frames_needed, layerwise_ctc, select_sequence
from s3prl_varan.layerwise.heads import ExpertHeads, LinearHeads
from s3prl_varan.layerwise.objective import Elbo, aggregate_log_probs, elbo

logger = logging.getLogger(__name__)


@dataclass
class BatchState:
    """What the layer-wise sub-modules of one expert share during one forward pass; between two there are no tensors."""

    features: LayerFeatures = field(init=False)
    layer_logits: Tensor = field(init=False)  # [B, L, C] or [B, L, T, V]
    layer_log_probs: Tensor = field(init=False)  # their log_softmax over the last axis
    prediction: Tensor = field(
        init=False
    )  # aggregated [B, C] or [B, T, V], as handed to the expert
    lengths: Tensor = field(init=False)  # [B] of the prediction's T
    terms: list[Elbo] = field(default_factory=list)  # one for each call of the objective
    unaligned: Tensor | None = (
        None  # [B] bool, CTC only: targets that need more frames than there are
    )

    def clear(self) -> None:
        """Let the graph go."""
        for name in ("features", "layer_logits", "layer_log_probs", "prediction", "lengths"):
            self.__dict__.pop(name, None)


@dataclass(frozen=True)
class Prediction:
    """Log-probabilities up to a constant over the last axis."""

    log_probs: Tensor  # [B, C] or [B, T, V]
    lengths: Tensor  # [B]


class _Projector(nn.Module):
    """Takes the projector's place; the heads project, layer by layer."""

    def forward(self, placeholder: Tensor) -> Tensor:
        return placeholder


class _Model(nn.Module):
    """Takes the model's place: runs the heads on every layer and returns the aggregated prediction."""

    def __init__(
        self, heads: nn.Module, settings: ObjectiveSettings, state: BatchState, blank: int
    ):
        super().__init__()
        self.heads, self.settings, self.state, self.blank = heads, settings, state, blank

    def forward(self, placeholder: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.state
        logits, state.lengths = self.heads(state.features.hidden, state.features.lengths)
        state.layer_logits = logits.float()
        state.layer_log_probs = state.layer_logits.log_softmax(dim=-1)
        with torch.no_grad():  # no loss is taken of the prediction
            state.prediction = self._predict(
                state.layer_log_probs, state.features.posterior_logits, state.lengths
            )
        return state.prediction, state.lengths

    def _predict(self, log_probs: Tensor, posterior_logits: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, ..., C] -> [B, ..., C]. A whole sequence is chosen only where it is read: not while training."""
        how = self.settings.prediction
        if how != "sequence":
            return aggregate_log_probs(log_probs, posterior_logits, how)
        if self.training or log_probs.size(1) == 1:
            return aggregate_log_probs(log_probs, posterior_logits)
        return select_sequence(log_probs, posterior_logits, lengths, self.blank)


class _Objective(nn.Module):
    """Takes the objective's place: the per-layer losses, weighted by the posterior."""

    def __init__(self, settings: ObjectiveSettings, state: BatchState):
        super().__init__()
        self.settings, self.state = settings, state

    def combine(self, layer_nll: Tensor) -> Tensor:
        """layer_nll [B, L] -> scalar loss. An expert with several outputs calls once for each; the KL counts once."""
        features = self.state.features
        beta = 0.0 if self.state.terms else self.settings.beta
        settings = self.settings
        term = elbo(
            layer_nll,
            features.posterior_logits,
            features.prior,
            beta,
            nll=settings.nll,
            kl=settings.kl,
        )
        self.state.terms.append(term)
        return term.loss


class LayerwiseCrossEntropy(_Objective):
    """Cross entropy of every layer's head, for `objective(predicted [B, C], labels [B])`."""

    def forward(self, predicted: Tensor, labels: Tensor) -> Tensor:
        logits = self.state.layer_logits  # [B, L, C]
        # Experts with several slots hand over a slice of the classes: the same slice is taken of every layer.
        start = predicted.storage_offset() - self.state.prediction.storage_offset()
        logits = logits[..., start : start + predicted.size(-1)]
        batch, layers, classes = logits.shape
        targets = labels.repeat_interleave(layers)
        nll = F.cross_entropy(logits.reshape(batch * layers, classes), targets, reduction="none")
        return self.combine(nll.view(batch, layers))


class LayerwiseCTC(_Objective):
    """CTC of every layer's head in one call over B x L sequences, for `objective(log_probs [T, B, V], ...)`."""

    def __init__(
        self, settings: ObjectiveSettings, state: BatchState, blank: int, zero_infinity: bool
    ):
        super().__init__(settings, state)
        self.blank, self.zero_infinity = blank, zero_infinity

    def forward(
        self, _predicted: Tensor, labels: Tensor, input_lengths: Tensor, target_lengths: Tensor
    ) -> Tensor:
        input_lengths = input_lengths.to(labels.device)
        self.state.unaligned = ctc_frames_needed(labels, target_lengths) > input_lengths
        if not self.zero_infinity and bool(self.state.unaligned.any()):
            raise UserError(
                f"{int(self.state.unaligned.sum())} utterances of a batch have more symbols than frames, so their CTC loss is "
                "infinite. Set config.downstream_expert.datarc.zero_infinity=True, or leave them out of the corpus."
            )
        nll = layerwise_ctc(
            self.state.layer_log_probs,
            labels,
            input_lengths,
            target_lengths,
            blank=self.blank,
            zero_infinity=self.zero_infinity,
        )
        norm = input_lengths if self.settings.ctc_normalize == "frames" else target_lengths
        return self.combine(nll / norm.to(nll).clamp_min(1)[:, None])


class LayerwiseDownstream(nn.Module):
    """An s3prl expert made layer-wise. `pooled`: its heads need only each layer's mean over time."""

    expert: (
        Any  # an s3prl expert: an nn.Module with get_dataloader, log_records and its own forward
    )

    def __init__(self, expert: Any, heads: nn.Module, settings: ObjectiveSettings):
        super().__init__()
        self.state = BatchState()
        self.pooled = isinstance(heads, LinearHeads) and not heads.per_frame
        objective = expert.objective
        expert.projector = _Projector()
        expert.model = _Model(heads, settings, self.state, getattr(objective, "blank", 0))
        if isinstance(objective, nn.CTCLoss):
            expert.objective = LayerwiseCTC(
                settings, self.state, objective.blank, objective.zero_infinity
            )
        else:
            expert.objective = LayerwiseCrossEntropy(settings, self.state)
        self.expert = expert

    def forward(self, split: str, features: LayerFeatures, others: tuple, records: dict) -> Elbo:
        """Run the expert's own forward on a batch; it appends to `records`. Returns loss, nll and kl (scalars)."""
        self.state.features, self.state.terms = features, []
        placeholders = [
            features.lengths.new_zeros(length, 1) for length in features.lengths.tolist()
        ]
        loss = self.expert(split, placeholders, *others, records=records)
        terms = self.state.terms
        if self.state.unaligned is not None:
            records.setdefault("unaligned", []).extend(self.state.unaligned.tolist())
        self.state.clear()
        return Elbo(loss, torch.stack([term.nll for term in terms]).sum(), terms[0].kl)

    def predict(self, features: LayerFeatures) -> Prediction:
        """The aggregated prediction, without labels."""
        self.state.features = features
        log_probs, lengths = self.expert.model(features.hidden)
        self.state.clear()
        return Prediction(log_probs, lengths)


def adapt_expert(
    name: str, expert: Any, dim: int, num_layers: int, options: HeadOptions
) -> LayerwiseDownstream:
    """Make `expert` layer-wise over `num_layers` feature streams of size `dim`. UserError where its shape does not fit."""
    objective = getattr(expert, "objective", None)
    fits = isinstance(getattr(expert, "projector", None), nn.Linear) and isinstance(
        getattr(expert, "model", None), nn.Module
    )
    if not fits or not isinstance(objective, (nn.CTCLoss, nn.CrossEntropyLoss)):
        raise UserError(
            f"Downstream '{name}' cannot be adapted: its expert has no projector -> model -> objective chain ending in "
            "CrossEntropyLoss or CTCLoss. Run it with s3prl itself (weighted sum only)."
        )
    ctc = isinstance(objective, nn.CTCLoss)
    if isinstance(options, VaranOptions) and options.prediction == "sequence" and not ctc:
        raise UserError(
            "varan.prediction: sequence is for CTC (-d asr); here choose geometric or mixture."
        )
    shared = isinstance(options, VaranOptions) and options.share_heads
    plain = _is_linear_on_mean(expert.model)
    if options.head == "linear" or plain:
        width = options.head_dim if options.head == "linear" else expert.projector.out_features
        heads: nn.Module = LinearHeads(
            num_layers,
            dim,
            width,
            _num_classes(expert.model),
            per_frame=ctc,
            shared=shared,
            dropout=options.head_dropout,
        )
    elif options.head_dropout > 0:
        raise UserError(
            "head_dropout applies to linear heads; this downstream's own head has its dropout in "
            "config.downstream_expert.modelrc: set it there, or choose `head: linear`."
        )
    else:
        heads = ExpertHeads(expert.projector, expert.model, num_layers, shared)
    return LayerwiseDownstream(expert, heads, objective_settings(options, ctc=ctc))


def _is_linear_on_mean(model: nn.Module) -> bool:
    """Is it s3prl's mean pooling and one Linear? With the projector before it, that is exactly LinearHeads on the mean."""
    from s3prl.downstream.model import FrameLevel, MeanPooling, UtteranceLevel

    return (
        isinstance(model, UtteranceLevel)
        and model.pre_net is None
        and isinstance(model.pooling, MeanPooling)
        and isinstance(model.post_net, FrameLevel)
        and len(model.post_net.hiddens) == 0
    )


def _num_classes(model: nn.Module) -> int:
    """Outputs of a head: what its last linear or convolutional layer puts out."""
    last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d))][-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


class HeadsOnly(nn.Module):
    """Stands in for an expert where only predictions are wanted: a checkpoint's heads need no corpus to be built."""

    def __init__(self, class_names: list[str] | None):
        super().__init__()
        self.projector, self.model, self.objective = (
            nn.Identity(),
            nn.Identity(),
            nn.CrossEntropyLoss(),
        )
        self.class_names = class_names


def heads_spec(downstream: LayerwiseDownstream) -> dict | None:
    """What a checkpoint needs to know to build utterance heads without their expert; None where it takes the expert."""
    if not downstream.pooled:
        return None
    return {
        "linear": downstream.expert.model.heads.spec,
        "class_names": class_names(downstream.expert),
    }


def heads_only(spec: dict, options: HeadOptions) -> LayerwiseDownstream:
    """The heads of `heads_spec` around a HeadsOnly expert, for prediction."""
    heads = LinearHeads(**spec["linear"])
    return LayerwiseDownstream(
        HeadsOnly(spec["class_names"]), heads, objective_settings(options, ctc=False)
    )


def class_names(expert: nn.Module) -> list[str] | None:
    """Class names in the order of their ids, where the expert knows them."""
    if isinstance(expert, HeadsOnly):
        return expert.class_names
    names = getattr(getattr(expert, "test_dataset", None), "idx2emotion", None)
    return None if names is None else [names[index] for index in sorted(names)]


def softmax_probs(prediction: Prediction) -> Tensor:
    """Class probabilities [B, C] (or symbol probabilities [B, T, V]) of a prediction."""
    return torch.softmax(prediction.log_probs.float(), dim=-1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends what s3prl's experts print to the log: standard output is for results."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        yield
    for line in filter(None, said.getvalue().splitlines()):
        logger.info(line)
