"""Posterior predictor q(l | x): one self-attention block over the layer axis (VARAN, arXiv 2508.12061)."""

import logging

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def masked_mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the valid frames: hidden [B, L, T, D], lengths [B] in 1..T -> [B, L, D]; padding never leaks in.

    A frame past its utterance's length may hold anything, NaN included. Computed in float32 at least.
    """
    padding = torch.arange(hidden.size(2), device=hidden.device) >= lengths.to(hidden.device)[:, None]  # [B, T]
    if hidden.dtype in (torch.float16, torch.bfloat16):
        hidden = hidden.float()
    total = hidden.masked_fill(padding[:, None, :, None], 0.0).sum(dim=2)
    return total / lengths.to(total)[:, None, None]


def num_attention_heads(dim: int, wanted: int) -> int:
    """The largest divisor of `dim` that is at most `wanted`: attention heads must divide the hidden size."""
    return next(heads for heads in range(min(wanted, dim), 0, -1) if dim % heads == 0)


class LayerPosterior(nn.Module):
    """Scores every layer of an utterance in the light of the others.

    qkv (Linear D -> 3D, no bias) -> multi-head attention over the L layers (with its own in/out projections) ->
    Linear D -> 1. `num_heads` is lowered to the largest divisor of `dim`, with a line in the log.
    """

    def __init__(self, dim: int, num_heads: int = 16):
        super().__init__()
        heads = num_attention_heads(dim, num_heads)
        if heads != num_heads:
            logger.warning("posterior: %d attention heads do not divide %d dimensions, using %d", num_heads, dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.logit = nn.Linear(dim, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [B, L, D] -> logits [B, L]; q(l | x) is their softmax over L."""
        query, key, value = self.qkv(pooled).chunk(3, dim=-1)
        attended, _ = self.attention(query, key, value, need_weights=False)
        return self.logit(attended).squeeze(-1)
