"""Layers weighed by q(l | x), by one q for all inputs or by p(l): varan and dynamic_sum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from s3prl_varan.features.pooling import masked_mean
from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.base import Featurizer, LayersOption, several_layers
from s3prl_varan.featurizers.varan.posterior import LayerPosterior
from s3prl_varan.featurizers.varan.priors import PriorName, layer_prior
from s3prl_varan.options import Count, NonNegative, OpenShare, Range

# input: predicted from the input; static: one distribution, learned; prior: q = p, nothing learned
PosteriorKind = Literal["input", "static", "prior"]


class LayerWeighing(Featurizer):
    """Has a prior over its layers and says q of each; what is done with q is the subclass's."""

    @dataclass(frozen=True)
    class Options(Featurizer.Options):
        """Options of q and p."""

        layers: LayersOption = "transformer"
        posterior: PosteriorKind = "input"
        posterior_heads: Count = 16  # lowered to the next divisor of the hidden size
        prior: PriorName = "chi2_reversed"
        chi2_df: Annotated[float, Range(above=0, high=10_000)] = 6
        chi2_nc: Annotated[float, Range(low=0, high=10_000)] = 10
        geometric_p: OpenShare = 0.45
        kl_beta: NonNegative = 1.0  # the evidence lower bound's own; the paper takes 0.05

        def idle(self) -> list[str]:
            family = self.prior.partition("_")[0]
            of_priors = {"chi2": ("chi2_df", "chi2_nc"), "geometric": ("geometric_p",)}
            keys = [key for name, keys in of_priors.items() if name != family for key in keys]
            keys += [] if self.posterior == "input" else ["posterior_heads"]
            return keys + ([] if self.learns() else ["kl_beta"])

        def learns(self) -> bool:
            return self.posterior != "prior"

    def __init__(
        self,
        layers: Sequence[int],
        dim: int,
        prior: Tensor,
        posterior_heads: int = 16,
        posterior: PosteriorKind = "input",
    ) -> None:
        super().__init__(layers, num_outputs=len(layers), prior=prior)
        self.posterior = LayerPosterior(dim, posterior_heads) if posterior == "input" else None
        self.weights = nn.Parameter(torch.zeros(len(layers))) if posterior == "static" else None
        self.depends_on_input = posterior == "input"

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        layers = several_layers(options.layers, num_hidden, cls.name, layer)
        prior = layer_prior(
            options.prior,
            len(layers),
            chi2_df=options.chi2_df,
            chi2_nc=options.chi2_nc,
            geometric_p=options.geometric_p,
        )
        return cls(layers, dim, prior, options.posterior_heads, options.posterior)

    def forward(self, stack: LayerStack) -> LayerFeatures:
        return self.weigh(stack, self.layer_logits(stack))

    def layer_logits(self, stack: LayerStack) -> Tensor:
        """log q(l | x) up to a constant, [B, N] in float32."""
        if self.posterior is not None:
            return self.posterior(masked_mean(stack.hidden, stack.lengths)).float()
        tiny = torch.finfo(torch.float32).tiny
        logits = self.prior.clamp_min(tiny).log() if self.weights is None else self.weights
        return logits.expand(stack.hidden.size(0), -1)
