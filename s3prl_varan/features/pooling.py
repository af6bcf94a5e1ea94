"""Which frames are no padding, and the mean over time that padding cannot reach."""

import torch
from torch import Tensor


def frames_inside(lengths: Tensor, frames: int, device: torch.device) -> Tensor:
    """lengths [B] of valid frames -> [B, frames] bool on `device`: is it one of them?"""
    return torch.arange(frames, device=device) < lengths.to(device)[:, None]


def masked_mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the valid frames: hidden [B, L, T, D], lengths [B] in 1..T -> [B, L, D].

    A frame past its utterance's length may hold anything, NaN included. Computed in float32 at
    least.
    """
    if hidden.dtype in (torch.float16, torch.bfloat16):
        hidden = hidden.float()
    if hidden.size(2) == 1:
        return hidden[:, :, 0]
    lengths = lengths.to(hidden.device)
    inside = frames_inside(lengths, hidden.size(2), hidden.device)
    if hidden.device.type == "cpu":  # there the copy that masked_fill makes is what costs
        mean = _weighted_frames(hidden, inside.to(hidden.dtype) / lengths[:, None])
        if mean.isfinite().all():  # 0 * NaN is NaN
            return mean
    total = hidden.masked_fill(~inside[:, None, :, None], 0.0).sum(dim=2)
    return total / lengths.to(total)[:, None, None]


def _weighted_frames(hidden: Tensor, weights: Tensor) -> Tensor:
    """sum_t weights[b, t] hidden[b, l, t, :] -> [B, L, D] as products of matrices.

    One pass over memory and no copy, also of hidden states laid out [L, B, T, D].
    """
    batch, layers = hidden.shape[:2]
    with torch.autocast(hidden.device.type, enabled=False):
        by_layer = hidden.transpose(0, 1)
        if layers > 1 and by_layer.is_contiguous():
            summed = torch.bmm(weights.repeat(layers, 1)[:, None], by_layer.flatten(0, 1))
            return summed.view(layers, batch, -1).transpose(0, 1)
        summed = torch.bmm(weights.repeat_interleave(layers, dim=0)[:, None], hidden.flatten(0, 1))
    return summed.view(batch, layers, -1)
