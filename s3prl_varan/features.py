"""From hidden states to the features the featurizers read: normalise, pool over time, select layers, stack.

Symbols everywhere in the package: B batch, L layers, T frames, D hidden size, C classes, V symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_varan.posterior import masked_mean


@dataclass(frozen=True)
class LayerStack:
    """Several hidden states of a batch, zero past each length. Features pooled over time have T = 1 and lengths of 1."""

    hidden: Tensor  # [B, N, T, D]
    lengths: Tensor  # [B] valid frames, 1..T


@dataclass(frozen=True)
class LayerFeatures:
    """What every featurizer returns; last layer and weighted sum have L' = 1, so nobody asks "is this VARAN?"."""

    hidden: Tensor  # [B, L', T, D]
    lengths: Tensor  # [B]
    posterior_logits: Tensor  # [B, L'] log q(l | x) up to a constant
    prior: Tensor  # [L'] p(l)
    layer_weights: Tensor  # [B, N] share of each hidden state read, for people to look at; detached


def stack_layers(layers: Sequence[Tensor], lengths: Tensor, *, pool: bool = False, normalize: bool = False) -> LayerStack:
    """Stack hidden states, N x [B, T, D] with lengths [B], into one LayerStack (the only copy that is made).

    `normalize` layer-normalises every frame (no affine part), as s3prl's --upstream_feature_normalize does; `pool`
    takes the mean over each utterance's valid frames, layer by layer, so that [B, N, T, D] never exists. Otherwise frames
    past an utterance's length are zero.
    """
    if normalize:
        layers = [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]
    if pool:
        pooled = [masked_mean(layer[:, None], lengths) for layer in layers]  # N x [B, 1, D]
        return LayerStack(torch.cat(pooled, dim=1)[:, :, None], torch.ones_like(lengths))
    stacked = torch.stack(tuple(layers))  # [N, B, T, D]
    return LayerStack(_zero_padding(stacked, lengths).transpose(0, 1), lengths)


def _zero_padding(stacked: Tensor, lengths: Tensor) -> Tensor:
    """Zeros past each utterance's length, in place: what s3prl's experts pad with, whatever the upstream makes of padding."""
    frames = stacked.size(2)
    if stacked.requires_grad:  # one node in the graph
        return stacked.masked_fill_((torch.arange(frames, device=stacked.device) >= lengths[:, None])[None, :, :, None], 0.0)
    for index, length in enumerate(lengths.tolist()):
        stacked[:, index, length:] = 0.0
    return stacked
