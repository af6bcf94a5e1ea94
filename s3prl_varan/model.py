"""The path from waveforms to loss and prediction, as one module: this is the file to read first.

    wavs -> upstream (+ LoRA) -> stack of hidden states -> featurizer (layers, posterior)
         -> layer-wise heads -> loss of every layer [B, L] -> ELBO, and one prediction out of L

One graph, also for DDP. Symbols everywhere: B batch, L layers handed on, N hidden states read,
T frames, D hidden size, C classes, V symbols.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_varan.errors import UserError
from s3prl_varan.features.stack import LayerFeatures, LayerStack, stack_layers
from s3prl_varan.featurizers.base import Featurizer
from s3prl_varan.layerwise.objective import Elbo, Objective, elbo
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.tasks.shapes.base import Task
from s3prl_varan.tasks.shapes.expert import ExpertCall
from s3prl_varan.upstream.wrapper import Upstream

Encoder = Callable[[list[Tensor]], LayerStack]


@dataclass(frozen=True)
class Step:
    """What a batch came to."""

    terms: Elbo
    prediction: Prediction | None  # None where a training batch is not scored
    layer_weights: Tensor  # [B, N] share of each hidden state read, detached


class LayerwiseDownstream(nn.Module):
    """A task's heads on every layer, with the objective that joins them.

    pooled: each layer's mean over time is enough for these heads.
    """

    def __init__(self, task: Task, heads: nn.Module, objective: Objective):
        super().__init__()
        self.task, self.heads, self.objective = task, heads, objective
        self.pooled: bool = getattr(heads, "pooled", False)

    def outputs(self, feats: LayerFeatures) -> LayerOutputs:
        """The heads' outputs of every layer."""
        return LayerOutputs(*self.heads(feats.hidden, feats.lengths))

    def forward(self, feats: LayerFeatures, targets: Any) -> tuple[Elbo, Prediction | None]:
        """Loss terms of a batch, and its prediction where it is wanted."""
        objective = self.objective
        out = self.outputs(feats)
        nll = self.task.layer_loss(out, targets)  # [B, L], or [B, L, K] hypotheses
        terms = elbo(
            nll,
            feats.posterior_logits,
            feats.prior,
            objective.beta,
            nll=objective.nll,
            kl=objective.kl,
            inner_kl=feats.inner_kl,
        )
        if self.training and not self.task.scores_training:
            return terms, None
        return terms, self.predict(out, feats)

    @torch.no_grad()  # no loss is taken of the prediction
    def predict(self, out: LayerOutputs, feats: LayerFeatures) -> Prediction:
        """One prediction out of L."""
        return self.task.combine(out, feats.posterior_logits, self.objective.rule)


class ExpertDownstream(LayerwiseDownstream):
    """An expert of s3prl in the place of heads: one stream of features, its own loss."""

    def outputs(self, feats: LayerFeatures) -> LayerOutputs:
        raise UserError(
            f"-d {self.task.name} says nothing of single files: an expert of s3prl evaluates its "
            "own splits, with -m evaluate -t SPLIT."
        )

    def forward(self, feats: LayerFeatures, targets: ExpertCall) -> tuple[Elbo, Prediction]:
        """Its loss, to which the KL of weights spent in the featurizer is added.

        In the place of a prediction, which the expert keeps to itself: the loss, for each clip.
        """
        hidden = feats.hidden[:, 0].float()
        clips = [each[:length] for each, length in zip(hidden, feats.lengths.tolist(), strict=True)]
        with torch.autocast(hidden.device.type, enabled=False):
            loss = self.heads(
                targets.split,
                clips,
                *targets.others,
                records=targets.records,
                batch_id=targets.batch_id,
            )
        if loss is None and self.task.trains:
            raise UserError(
                f"-d {self.task.name} has no loss of '{targets.split}': choose another split."
            )
        nll = torch.as_tensor(
            0.0 if loss is None else loss, dtype=torch.float32, device=hidden.device
        )
        kl = nll.new_zeros(()) if feats.inner_kl is None else feats.inner_kl.mean()
        shown = nll.detach().expand(len(clips), 1)
        terms = Elbo(nll + self.objective.beta * kl, nll, kl)
        return terms, Prediction(shown, torch.ones_like(feats.lengths))


class SpeechModel(nn.Module):
    """Upstream, featurizer and downstream.

    trains_upstream: LoRA or full fine-tuning; otherwise the upstream stays in eval mode and out of
    the graph. normalize: layer-normalise the hidden states. specaug: SpecAugment on the features.
    """

    def __init__(
        self,
        upstream: Upstream,
        featurizer: Featurizer,
        downstream: LayerwiseDownstream,
        *,
        trains_upstream: bool = False,
        normalize: bool = False,
        specaug: Callable[[LayerFeatures], LayerFeatures] | None = None,
    ):
        super().__init__()
        self.upstream, self.featurizer, self.downstream = upstream, featurizer, downstream
        self.trains_upstream, self.normalize, self.specaug = trains_upstream, normalize, specaug
        self.pool = downstream.pooled and featurizer.takes_means and specaug is None
        # A cache takes the frozen upstream's place here, see features/cache.py.
        self.cached_encoder: Encoder | None = None
        if not trains_upstream:
            self.upstream.requires_grad_(False)
        self.train()  # a new module says it trains, whatever its parts do: make it true of all

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What the model is made of, by name."""
        names = ("upstream", "featurizer", "downstream")
        return {name: getattr(self, name) for name in names}

    def train(self, mode: bool = True) -> "SpeechModel":
        super().train(mode)
        self.upstream.train(mode and self.trains_upstream)
        return self

    def encode(self, wavs: list[Tensor]) -> LayerStack:
        """16 kHz waveforms B x [num_samples] -> the hidden states that the featurizer reads."""
        if self.cached_encoder is not None:
            return self.cached_encoder(wavs)
        with torch.set_grad_enabled(self.trains_upstream and torch.is_grad_enabled()):
            hidden = self.upstream(wavs)
            layers = [hidden.layers[index] for index in self.featurizer.layers]
            return stack_layers(layers, hidden.lengths, pool=self.pool, normalize=self.normalize)

    def features(self, stack: LayerStack) -> LayerFeatures:
        """What the heads see."""
        feats = self.featurizer(stack)
        return self.specaug(feats) if self.specaug is not None and self.training else feats

    def forward(self, wavs: list[Tensor], targets: Any) -> Step:
        """Loss and prediction of a batch: waveforms B x [num_samples], targets as collated."""
        return self.step(self.encode(wavs), targets)

    def step(self, stack: LayerStack, targets: Any) -> Step:
        """The same, from the hidden states on."""
        feats = self.features(stack)
        terms, prediction = self.downstream(feats, targets)
        return Step(terms, prediction, feats.layer_weights)

    @torch.no_grad()
    def weighted_otherwise(
        self, stack: LayerStack, logits: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Prediction]]:
        """Predictions with each of `logits`, log q [B, N], in the place of the featurizer's own."""
        hidden, out = None, None
        for name, each in logits.items():
            feats = self.featurizer.weigh(stack, each.to(stack.hidden.device))
            if out is None or feats.hidden is not hidden:  # heads that do not see q run once
                hidden, out = feats.hidden, self.downstream.outputs(feats)
            yield name, self.downstream.predict(out, feats)

    @torch.no_grad()
    def predict(self, wavs: list[Tensor]) -> tuple[Prediction, LayerFeatures]:
        """Prediction without targets, with the features it was made from."""
        feats = self.features(self.encode(wavs))
        return self.downstream.predict(self.downstream.outputs(feats), feats), feats
