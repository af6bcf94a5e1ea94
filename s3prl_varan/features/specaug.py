"""SpecAugment on features (Park et al. 2019, arXiv 1904.08779), section `specaug:` of a config.

Keys and meaning are s3prl's. Every layer of an utterance gets the same warp and the same masks, so
that no layer shows what another one hides. Random numbers come from torch's CPU generator, whose
state a checkpoint keeps.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_varan.errors import problems_error
from s3prl_varan.features.stack import LayerFeatures
from s3prl_varan.options import Count, Natural, NonNegative

CUBIC = -0.75  # the parameter of torch's bicubic interpolation


@dataclass
class SpecAugOptions:
    """Section `specaug:`. Widths, in frames or dimensions, are drawn from low .. high - 1."""

    apply_time_warp: bool = True
    time_warp_window: Count = 5  # a random frame moves by at most this many
    apply_freq_mask: bool = True
    freq_mask_width_range: list[Natural] = field(default_factory=lambda: [0, 50])
    num_freq_mask: Natural = 4
    apply_time_mask: bool = True
    time_mask_width_range: list[Natural] = field(default_factory=lambda: [0, 40])
    num_time_mask: Natural = 2
    adaptive: bool = False  # number and width of time masks grow with the utterance:
    adaptive_number_ratio: NonNegative = 0.04  # masks per frame
    adaptive_size_ratio: NonNegative = 0.04  # widest mask as a share of the frames
    max_n_time_masks: Natural = 20

    def __post_init__(self) -> None:
        problems = []
        for key in ("freq_mask_width_range", "time_mask_width_range"):
            value = getattr(self, key)
            if len(value) != 2 or not 0 <= value[0] < value[1]:
                problems.append(f"{key}: expected [low, high] with 0 <= low < high, found {value}")
        if not (self.apply_time_warp or self.apply_freq_mask or self.apply_time_mask):
            problems.append(
                "none of apply_time_warp, apply_freq_mask, apply_time_mask is on: leave the "
                "section out instead"
            )
        if problems:
            raise problems_error("SpecAugment cannot work like this:", problems)


class SpecAugment(nn.Module):
    """LayerFeatures -> LayerFeatures, while training only. Options: those of SpecAugOptions."""

    def __init__(self, **options: Any):
        super().__init__()
        self.options = SpecAugOptions(**options)

    def forward(self, features: LayerFeatures) -> LayerFeatures:
        """hidden [B, L, T, D] warped and masked within each utterance's valid frames.

        Padding is left as it was.
        """
        options, hidden, lengths = self.options, features.hidden, features.lengths.cpu()
        if options.apply_time_warp:
            hidden = warp_time(hidden, *draw_warps(lengths, options.time_warp_window))
        masks = []
        if options.apply_time_mask:
            masks.append(draw_time_masks(lengths, hidden.size(2), options)[:, None, :, None])
        if options.apply_freq_mask:
            low, high = options.freq_mask_width_range
            dims = torch.full_like(lengths, hidden.size(3))
            count = torch.full_like(lengths, options.num_freq_mask)
            mask = draw_masks(dims, hidden.size(3), count, low, torch.full_like(lengths, high))
            masks.append(mask[:, None, None, :])
        for mask in masks:
            hidden = hidden.masked_fill(mask.to(hidden.device), 0.0)
        return replace(features, hidden=hidden)


def draw_masks(sizes: Tensor, width: int, counts: Tensor, low: int, high: Tensor) -> Tensor:
    """Stretches to mask, [B, width] bool.

    sizes [B]: valid positions; counts [B]: stretches, each low .. high[b] - 1 long. s3prl draws
    positions over the padded width, so that what a short utterance loses depends on its batch;
    here it is over its own positions.
    """
    most = int(counts.max())
    if most == 0:
        return torch.zeros(len(sizes), width, dtype=torch.bool)
    span = (high - low).clamp_min(1)[:, None]
    lengths = low + (torch.rand(len(sizes), most) * span).long()
    starts = (torch.rand(len(sizes), most) * (sizes[:, None] - lengths).clamp_min(1)).long()
    lengths = lengths.masked_fill(torch.arange(most) >= counts[:, None], 0)
    at = torch.arange(width)
    inside = (at >= starts[..., None]) & (at < (starts + lengths)[..., None])  # [B, count, width]
    return inside.any(dim=1) & (at < sizes[:, None])


def draw_time_masks(lengths: Tensor, frames: int, options: SpecAugOptions) -> Tensor:
    """[B, T] bool."""
    low, high = options.time_mask_width_range
    counts, widest = torch.full_like(lengths, options.num_time_mask), torch.full_like(lengths, high)
    if options.adaptive and options.adaptive_number_ratio > 0:
        counts = (
            (options.adaptive_number_ratio * lengths).long().clamp_max(options.max_n_time_masks)
        )
    if options.adaptive and options.adaptive_size_ratio > 0:
        widest = torch.minimum(widest, (options.adaptive_size_ratio * lengths).long())
    return draw_masks(lengths, frames, counts, low, widest)


def draw_warps(lengths: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """(lengths, centers, targets) [B]: frame `center` comes to lie at `target`.

    Utterances that are too short keep center = target.
    """
    room = lengths - 2 * window
    centers = window + (torch.rand(len(lengths)) * room.clamp_min(1)).long()
    targets = centers - window + 1 + (torch.rand(len(lengths)) * 2 * window).long()
    still = room <= 0
    return lengths, centers.masked_fill(still, 0), targets.masked_fill(still, 0)


def warp_time(hidden: Tensor, lengths: Tensor, centers: Tensor, targets: Tensor) -> Tensor:
    """Stretch frames [0, center) to [0, target) and [center, length) to [target, length).

    hidden [B, L, T, D], the others [B]. Bicubic, each side by itself, with the conventions of
    torch.nn.functional.interpolate (align_corners=False).
    """
    frames, device = hidden.size(2), hidden.device
    at = torch.arange(frames)
    lengths, centers, targets = lengths[:, None], centers[:, None], targets[:, None]
    left = at < targets
    # Of the side that an output frame is on: it starts at `start` and has `size` frames, made of
    # the source frames first .. last.
    first = torch.where(left, 0, centers)
    last = torch.where(left, centers, lengths) - 1
    start = torch.where(left, 0, targets)
    size = torch.where(left, targets, lengths - targets).clamp_min(1)
    source = (at - start + 0.5) * ((last - first + 1) / size) - 0.5
    below = source.floor()
    offset = source - below
    inside = (at < lengths).to(device)[:, None, :, None]
    result = torch.zeros_like(hidden)
    for tap in range(-1, 3):
        index = (first + below.long() + tap).clamp(first, last).clamp(0, frames - 1).to(device)
        weight = _cubic((offset - tap).abs()).to(device, hidden.dtype)
        rows = index[:, None, :, None].expand(-1, hidden.size(1), -1, hidden.size(3))
        result = result + weight[:, None, :, None] * hidden.gather(2, rows)
    return torch.where(inside, result, hidden)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel at distances >= 0."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return torch.where(
        distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance))
    )
