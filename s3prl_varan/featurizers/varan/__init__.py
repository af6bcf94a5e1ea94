"""-f varan: every layer by itself, weighted per input by a posterior q(l | x) (arXiv 2508.12061).

posterior.py predicts q, priors.py has p(l); layerwise/ has the heads and the objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from s3prl_varan.features.pooling import masked_mean
from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.base import (
    Featurizer,
    checked_layers,
    refuse_layer_flag,
    refuse_single_state,
)  # fmt: skip
from s3prl_varan.featurizers.varan.posterior import LayerPosterior
from s3prl_varan.featurizers.varan.priors import PriorName, layer_prior
from s3prl_varan.layerwise.objective import KlDirection, NllReduction, Objective
from s3prl_varan.options import Count, NonNegative, OpenShare, Range


class Varan(Featurizer):
    """All chosen layers go on, each to its own head; a posterior is predicted from their means."""

    name = "varan"

    @dataclass(frozen=True)
    class Options(Featurizer.Options):
        """Section `varan:`."""

        # transformer: all but hidden state 0; all; or a list of hidden states
        layers: Literal["transformer", "all"] | list[int] = "transformer"
        posterior_heads: Count = 16  # lowered to the next divisor of the hidden size
        prior: PriorName = "chi2_reversed"
        chi2_df: Annotated[float, Range(above=0, high=10_000)] = 6
        chi2_nc: Annotated[float, Range(low=0, high=10_000)] = 10
        geometric_p: OpenShare = 0.45
        kl_beta: NonNegative = 1.0  # the evidence lower bound's own; the paper takes 0.05
        # elbo: per example, KL(q || p); released: as the authors' code computes it
        recipe: Literal["elbo", "released"] = "elbo"
        nll: NllReduction | None = None  # null: as the recipe says
        kl: KlDirection | None = None  # null: as the recipe says
        prediction: str = "geometric"  # one of the task's rules

        def objective(self, released_nll: NllReduction) -> Objective:
            released = self.recipe == "released"
            nll = self.nll or (released_nll if released else "per_example")
            kl = self.kl or ("prior_posterior" if released else "posterior_prior")
            return Objective(self.kl_beta, nll, kl, self.prediction)

        def idle(self) -> list[str]:
            family = self.prior.partition("_")[0]
            of_priors = {"chi2": ("chi2_df", "chi2_nc"), "geometric": ("geometric_p",)}
            return [key for name, keys in of_priors.items() if name != family for key in keys]

    def __init__(
        self, layers: Sequence[int], dim: int, prior: Tensor, posterior_heads: int = 16
    ) -> None:
        super().__init__(layers, num_outputs=len(layers), prior=prior)
        self.posterior = LayerPosterior(dim, posterior_heads)

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        refuse_layer_flag(layer, cls.name, "weighs several (set `varan.layers`)")
        refuse_single_state(num_hidden, "VARAN has nothing to choose from")
        layers = options.layers
        if isinstance(layers, str):
            layers = list(range(1 if layers == "transformer" else 0, num_hidden))
        layers = checked_layers(layers, num_hidden, "varan.layers")
        prior = layer_prior(
            options.prior,
            len(layers),
            chi2_df=options.chi2_df,
            chi2_nc=options.chi2_nc,
            geometric_p=options.geometric_p,
        )
        return cls(layers, dim, prior, options.posterior_heads)

    def forward(self, stack: LayerStack) -> LayerFeatures:
        pooled = masked_mean(stack.hidden, stack.lengths)  # [B, L, D]
        logits = self.posterior(pooled).float()
        posterior = logits.detach().softmax(dim=-1)
        return LayerFeatures(stack.hidden, stack.lengths, logits, self.prior, posterior)
