"""From hidden states to the features that featurizers read: normalise, pool over time, stack.

Symbols everywhere in the package: B batch, L layers, T frames, D hidden size, C classes, V symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_varan.features.pooling import masked_mean


@dataclass(frozen=True)
class LayerStack:
    """Several hidden states of a batch. Features pooled over time have T = 1 and lengths of 1."""

    hidden: Tensor  # [B, N, T, D]
    lengths: Tensor  # [B] valid frames, 1..T


@dataclass(frozen=True)
class LayerFeatures:
    """What every featurizer returns.

    Last layer and weighted sum have L' = 1, so nobody asks "is this VARAN?".
    """

    hidden: Tensor  # [B, L', T, D]
    lengths: Tensor  # [B]
    posterior_logits: Tensor  # [B, L'] log q(l | x) up to a constant
    prior: Tensor  # [L'] p(l)
    layer_weights: Tensor  # [B, N] share of each hidden state read, for people to look at; detached
    inner_kl: Tensor | None = None  # [B] nats, KL to a prior of weights spent inside the featurizer


def stack_layers(
    layers: Sequence[Tensor], lengths: Tensor, *, pool: bool = False, normalize: bool = False
) -> LayerStack:
    """Stack hidden states, N x [B, T, D] with lengths [B], into one LayerStack.

    This is the only copy that is made. normalize: layer-normalise every frame (no affine part), as
    s3prl's --upstream_feature_normalize does. pool: take the mean over each utterance's valid
    frames, layer by layer, so that [B, N, T, D] never exists.
    """
    if normalize:
        layers = [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]
    if pool:
        pooled = [masked_mean(layer[:, None], lengths) for layer in layers]  # N x [B, 1, D]
        return LayerStack(torch.cat(pooled, dim=1)[:, :, None], torch.ones_like(lengths))
    return LayerStack(torch.stack(tuple(layers)).transpose(0, 1), lengths)  # laid out [N, B, T, D]
