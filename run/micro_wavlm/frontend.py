"""A start for the first convolution: windowed cosines and sines on the mel scale.

From random filters a short run spends most of its steps on finding the spectrum; from these, which
training then changes freely, it can begin with speech.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from s3prl_varan.audio import SAMPLE_RATE

LOW, HIGH = 60.0, 7600.0  # Hz, of the outermost filters' centres


def mel_filters(channels: int, kernel: int) -> Tensor:
    """[channels // 4 * 4, kernel]: per band cos, sin, -cos, -sin under a Hann window.

    So a rectifier keeps the energy.
    """
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (LOW, HIGH))
    mel = np.linspace(low, high, channels // 4)
    centres = torch.from_numpy(700.0 * (10.0 ** (mel / 2595.0) - 1.0)).float()
    time = torch.arange(kernel) - (kernel - 1) / 2
    phase = 2.0 * math.pi * centres[:, None] * time / SAMPLE_RATE
    waves = torch.stack([phase.cos(), phase.sin(), -phase.cos(), -phase.sin()], dim=1)
    return (waves * torch.hann_window(kernel, periodic=False)).flatten(0, 1)


@torch.no_grad()
def start_from_mel(conv: nn.Conv1d, wavs: Tensor) -> None:
    """Set the first convolution to mel_filters, each of unit power on the sample wavs [B, samples].

    Channels beyond a multiple of four keep their random filters.
    """
    filters = mel_filters(conv.out_channels, conv.kernel_size[0])
    conv.weight[: len(filters), 0] = filters
    power = conv(wavs[:, None]).square().mean(dim=(0, 2))
    conv.weight /= power.sqrt().clamp_min(1e-6)[:, None, None]
