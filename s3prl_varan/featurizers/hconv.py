"""-f hconv: convolutions over the layers, until few are left (Shih, Harwath; arXiv 2406.12209)."""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import nn

from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.base import (
    Featurizer,
    put_back,
    refuse_layer_flag,
    refuse_single_state,
    valid_frames,
)  # fmt: skip

KERNEL, STRIDE = 5, 3  # in layers


class HierarchicalConvolution(Featurizer):
    """Each frame by itself: floor(log_3 N) convolutions along the N hidden states, ReLU after each.

    Stride 3 leaves L' of them; the last convolution has D / L' channels (rounded down), so that all
    that is left, side by side, is as wide as a hidden state. Gives what the authors' module
    (SSL_Interface) gives with the same weights. Ours: zeros fill up to D where L' does not divide
    it (the module gives fewer than D), and two hidden states get one convolution (it has none).
    No layer has a weight here, so none are shown.
    """

    name = "hconv"
    takes_means = False
    weighs_layers = False

    def __init__(self, num_hidden: int, dim: int):
        super().__init__(range(num_hidden))
        left = [num_hidden]  # hidden states before and after each convolution
        while len(left) == 1 or STRIDE ** len(left) <= num_hidden:
            left.append((left[-1] - 1) // STRIDE + 1)
        widths = [dim] * (len(left) - 1) + [dim // left[-1]]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, KERNEL, STRIDE, padding=KERNEL // 2)
            for before, after in pairwise(widths)
        )

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        refuse_layer_flag(layer, cls.name, "reads all")
        refuse_single_state(num_hidden, "a convolution over layers has nothing to join")
        return cls(num_hidden, dim)

    def forward(self, stack: LayerStack) -> LayerFeatures:
        frames, inside = valid_frames(stack)
        states = frames.transpose(1, 2)  # [M, D, N]
        for convolution in self.convolutions:
            states = convolution(states).relu()
        joined = states.flatten(1)  # channel by channel
        joined = F.pad(joined, (0, stack.hidden.size(-1) - joined.size(-1)))
        return self.one_stream(
            put_back(joined, inside), stack, joined.new_ones(()) / len(self.layers)
        )
