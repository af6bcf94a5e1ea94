"""One nn.Module from waveforms to loss: upstream -> features -> featurizer -> adapted expert. One graph, also for DDP."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from s3prl_varan.features.stack import LayerFeatures, LayerStack, stack_layers
from s3prl_varan.featurizers.registry import Featurizer
from s3prl_varan.layerwise.downstream import LayerwiseDownstream, Prediction
from s3prl_varan.upstream.wrapper import Upstream

Encoder = Callable[[list[Tensor]], LayerStack]


class SpeechModel(nn.Module):
    """`trains_upstream`: LoRA or full fine-tuning; otherwise the upstream stays in eval mode and out of the graph."""

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
        self.pool = downstream.pooled and specaug is None
        self.cached_encoder: Encoder | None = (
            None  # takes the frozen upstream's place (see cache.py)
        )
        if not trains_upstream:
            self.upstream.requires_grad_(False)

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

    def features(self, wavs: list[Tensor]) -> LayerFeatures:
        """What the heads see."""
        features = self.featurizer(self.encode(wavs))
        return self.specaug(features) if self.specaug is not None and self.training else features

    def forward(
        self, split: str, wavs: list[Tensor], others: tuple, records: dict
    ) -> dict[str, Tensor]:
        """Loss of a batch as the expert's data loader gives it; `records` is appended to. Scalars: loss, nll, kl."""
        features = self.features(wavs)
        terms = self.downstream(split, features, others, records)
        if not self.training:
            records.setdefault("layer_weights", []).extend(
                features.layer_weights.float().cpu().tolist()
            )
        return {"loss": terms.loss, "nll": terms.nll, "kl": terms.kl}

    @torch.no_grad()
    def predict(self, wavs: list[Tensor]) -> tuple[Prediction, LayerFeatures]:
        """Prediction without labels, with the features it was made from (their layer weights are the posterior)."""
        features = self.features(wavs)
        return self.downstream.predict(features), features
