"""Posterior predictor q(l | x): self-attention over the layer axis (VARAN, arXiv 2508.12061)."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def num_attention_heads(dim: int, wanted: int) -> int:
    """The largest divisor of `dim` up to `wanted`: attention heads must divide the hidden size."""
    return next(heads for heads in range(min(wanted, dim), 0, -1) if dim % heads == 0)


class LayerPosterior(nn.Module):
    """Scores every layer of an utterance in the light of the others.

    qkv (Linear D -> 3D, no bias) -> multi-head attention over the L layers (with its own in/out
    projections) -> Linear D -> 1. `num_heads` is lowered to the largest divisor of `dim`, with a
    line in the log.
    """

    def __init__(self, dim: int, num_heads: int = 16):
        super().__init__()
        heads = num_attention_heads(dim, num_heads)
        if heads != num_heads:
            logger.warning(
                "posterior: %d attention heads do not divide %d dimensions, using %d",
                num_heads,
                dim,
                heads,
            )
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.logit = nn.Linear(dim, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [B, L, D] -> logits [B, L]; q(l | x) is their softmax over L.

        The function of `plain`, at a fraction of its cost: what attention gathers ends in one
        number, so its matrices are multiplied from that end, and no [B, L, D] goes through all.
        """
        batch, layers, dim = pooled.shape
        heads = self.attention.num_heads
        in_weight, in_bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        q1, k1, v1 = self.qkv.weight.view(3, dim, dim).unbind()
        q2, k2, v2 = in_weight.view(3, dim, dim).unbind()
        q_bias, k_bias, v_bias = in_bias.view(3, dim).unbind()

        def split(states: Tensor) -> Tensor:
            return states.view(batch, layers, heads, -1).transpose(1, 2)

        query = split(F.linear(F.linear(pooled, q1), q2, q_bias))  # [B, heads, L, D / heads]
        key = split(F.linear(F.linear(pooled, k1), k2, k_bias))
        values = self._values(pooled, v1, v2, v_bias)
        # torch's fused kernel wants values of the size of keys.
        values = F.pad(values, (0, dim // heads - 1))
        gathered = F.scaled_dot_product_attention(query, key, values.to(query))[..., 0]
        constant = (self.logit.weight[0] * self.attention.out_proj.bias).sum() + self.logit.bias
        return gathered.to(constant).sum(dim=1) + constant

    def plain(self, pooled: Tensor) -> Tensor:
        """The same logits as the paper writes them; tests hold `forward` against it."""
        query, key, value = self.qkv(pooled).chunk(3, dim=-1)
        attended, _ = self.attention(query, key, value, need_weights=False)
        return self.logit(attended).squeeze(-1)

    def _values(self, pooled: Tensor, first: Tensor, second: Tensor, bias: Tensor) -> Tensor:
        """What each layer adds to a logit that attends to it: [B, heads, L, 1]."""
        dim, heads = pooled.size(-1), self.attention.num_heads
        with torch.autocast(pooled.device.type, enabled=False):
            out = (self.logit.weight @ self.attention.out_proj.weight).view(heads, 1, dim // heads)
            rows = torch.bmm(out, second.view(heads, dim // heads, dim))[:, 0] @ first  # [heads, D]
            return F.linear(
                pooled.to(rows), rows, (out[:, 0] * bias.view(heads, -1)).sum(dim=-1)
            ).transpose(1, 2)[..., None]
