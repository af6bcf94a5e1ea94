"""-f dynamic_sum: hidden states weighted by q(l | x) and summed, one head, the KL in the loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.varan.weighing import LayerWeighing
from s3prl_varan.layerwise.objective import (
    NllReduction,
    Objective,
    divergence,
    layer_log_posterior,
)  # fmt: skip


class DynamicSum(LayerWeighing):
    """VARAN's posterior in the place of SUPERB's weights: a weighted sum that differs by input.

    posterior: static is the weighted sum with a KL to the prior; prior is a sum that is given.
    """

    name = "dynamic_sum"

    @dataclass(frozen=True)
    class Options(LayerWeighing.Options):
        """Section `dynamic_sum:`."""

        def objective(self, released_nll: NllReduction) -> Objective:
            return Objective(self.kl_beta if self.learns() else 0.0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_outputs = 1

    def weigh(self, stack: LayerStack, logits: Tensor) -> LayerFeatures:
        log_q = layer_log_posterior(logits)  # [B, N]
        weights = log_q.exp()
        summed = torch.einsum("bn,bntd->btd", weights.to(stack.hidden.dtype), stack.hidden)
        return self.one_stream(summed, stack, weights, divergence(log_q, self.prior))
