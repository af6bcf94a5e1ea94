"""-f weighted_sum: SUPERB's learned weights over all hidden states, the same for every input."""

from typing import Any

import torch
from torch import nn

from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.base import Featurizer, refuse_layer_flag, refuse_single_state


class WeightedSum(Featurizer):
    """SUPERB's featurizer (arXiv 2105.01051): a softmax over the hidden states, learned.

    Equal to s3prl's Featurizer on the same hidden states and weights; both start from equal ones.
    """

    name = "weighted_sum"

    def __init__(self, num_hidden: int):
        super().__init__(range(num_hidden))
        self.weights = nn.Parameter(torch.zeros(num_hidden))

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        refuse_layer_flag(layer, cls.name, "reads all")
        refuse_single_state(num_hidden, "a weighted sum has nothing to weigh")
        return cls(num_hidden)

    def forward(self, stack: LayerStack) -> LayerFeatures:
        weights = torch.softmax(self.weights, dim=-1)
        summed = torch.einsum("n,bntd->btd", weights.to(stack.hidden.dtype), stack.hidden)
        return self.one_stream(summed, stack, weights)
