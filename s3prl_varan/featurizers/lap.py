"""-f lap: layer-attentive pooling, the largest of gated layers (Kim et al., arXiv 2512.22148)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.base import (
    Featurizer,
    put_back,
    refuse_layer_flag,
    refuse_single_state,
    valid_frames,
)  # fmt: skip
from s3prl_varan.featurizers.varan.posterior import num_attention_heads
from s3prl_varan.options import Count, Share


class LayerAttentivePooling(Featurizer):
    """Every frame: gates for its N layers, a head of the channels at a time; then the maximum.

    The hidden states, normalised and projected, are split into heads. Mean and maximum over a
    head's channels, [N] each, go through one small network N -> N/2 -> N; the sigmoid of the sum
    scales the layers, and each channel takes the largest one. A projection and a normalisation
    follow. Gives what the authors' module gives with the same weights, for frames that are no
    padding. Ours: padding stays out of the statistics that it normalises with (they train on crops
    of one length), its output is as wide as a hidden state, and a channel count that `heads` does
    not divide lowers it. Its weights, for people: the share of an utterance's maxima that a layer
    supplies.
    """

    name = "lap"
    takes_means = False

    @dataclass(frozen=True)
    class Options(Featurizer.Options):
        """Section `lap:`; the defaults are the authors'."""

        heads: Count = 16  # lowered to the next divisor of the hidden size
        dropout: Share = 0.1  # of gates

    def __init__(self, num_hidden: int, dim: int, heads: int = 16, dropout: float = 0.1):
        super().__init__(range(num_hidden))
        self.heads = num_attention_heads(dim, heads)
        self.in_norm = nn.BatchNorm1d(dim)
        self.project = nn.Linear(dim, dim) if self.heads > 1 else nn.Identity()
        narrow = num_hidden // 2
        self.squeeze = nn.Parameter(torch.empty(self.heads, num_hidden, narrow))
        self.squeeze_bias = nn.Parameter(torch.zeros(self.heads, 1, narrow))
        self.expand = nn.Parameter(torch.empty(self.heads, narrow, num_hidden))
        self.expand_bias = nn.Parameter(torch.zeros(self.heads, 1, num_hidden))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, dim)
        self.out_norm = nn.BatchNorm1d(dim)
        for name, parameter in self.named_parameters():  # as the authors draw them
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        refuse_layer_flag(layer, cls.name, "reads all")
        refuse_single_state(num_hidden, "layer-attentive pooling has nothing to choose from")
        return cls(num_hidden, dim, options.heads, options.dropout)

    def forward(self, stack: LayerStack) -> LayerFeatures:
        frames, inside = valid_frames(stack)
        count = frames.size(1)
        frames = self.project(self.in_norm(frames.flatten(0, 1))).unflatten(0, (-1, count))
        by_head = frames.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)  # [M, heads, d, N]
        mean, largest = by_head.mean(dim=2, keepdim=True), by_head.max(dim=2, keepdim=True).values
        gates = self.dropout(torch.sigmoid(self._score(mean) + self._score(largest)))
        maxima, layers = (by_head * gates).max(dim=-1)  # [M, heads, d]
        pooled = self.out_norm(self.out(maxima.flatten(1)))
        won = torch.stack(
            [(layers == layer).flatten(1).float().mean(dim=1) for layer in range(count)], dim=1
        )  # [M, N]
        shares = put_back(won, inside).sum(dim=1) / inside.sum(dim=1, keepdim=True)
        return self.one_stream(put_back(pooled, inside), stack, shares)

    def _score(self, statistic: Tensor) -> Tensor:
        """[M, heads, 1, N] -> the same."""
        narrow = torch.relu(statistic @ self.squeeze + self.squeeze_bias)
        return narrow @ self.expand + self.expand_bias
