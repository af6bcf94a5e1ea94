"""-f varan: every layer by itself, weighted per input by a posterior q(l | x) (arXiv 2508.12061).

weighing.py has q and p as options; posterior.py predicts q, priors.py has p(l); layerwise/ has the
heads and the objective.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.varan.weighing import LayerWeighing
from s3prl_varan.layerwise.objective import KlDirection, NllReduction, Objective


class Varan(LayerWeighing):
    """All chosen layers go on, each to its own head; a posterior is predicted from their means."""

    name = "varan"
    several_streams = True

    @dataclass(frozen=True)
    class Options(LayerWeighing.Options):
        """Section `varan:`."""

        # elbo: per example, KL(q || p); released: as the authors' code computes it
        recipe: Literal["elbo", "released"] = "elbo"
        nll: NllReduction | None = None  # null: as the recipe says
        kl: KlDirection | None = None  # null: as the recipe says
        prediction: str = "geometric"  # one of the task's rules

        def objective(self, released_nll: NllReduction) -> Objective:
            if not self.learns():  # the KL is 0, and both ways to average come to the same
                return Objective(rule=self.prediction)
            released = self.recipe == "released"
            nll = self.nll or (released_nll if released else "per_example")
            kl = self.kl or ("prior_posterior" if released else "posterior_prior")
            return Objective(self.kl_beta, nll, kl, self.prediction)

        def idle(self) -> list[str]:
            return super().idle() + ([] if self.learns() else ["recipe", "nll", "kl"])

    def weigh(self, stack: LayerStack, logits: Tensor) -> LayerFeatures:
        return self.all_streams(stack, logits)
