"""Upstreams of a known size: `-u run/benchmark/upstreams.py:noise -k base`, `tiny`, or `12x768`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s3prl_varan.upstream.micro_wavlm import build_wavlm

# WavLM Base (arXiv 2110.13900): 12 layers of 768, 94 million parameters.
WAVLM_BASE = {
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "extractor_mode": "default",
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "num_buckets": 320,
    "max_distance": 800,
}
TINY = {
    **WAVLM_BASE,
    "encoder_layers": 4,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
    "extractor_mode": "layer_norm",
    "conv_pos": 16,
    "conv_pos_groups": 4,
}
GEOMETRIES = {"base": WAVLM_BASE, "tiny": TINY}
HOP = 320


def noise(ckpt: str) -> nn.Module:
    """WavLM of a geometry with random weights; `LxD`: States of L layers of size D."""
    if ckpt in GEOMETRIES:
        return build_wavlm(GEOMETRIES[ckpt])
    return States(*map(int, ckpt.split("x")))


class States(nn.Module):
    """Hidden states that are there already, for what comes after an upstream by itself.

    While it trains they are leaves whose gradient is wanted, as LoRA and full fine-tuning need it.
    """

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.num_hidden, self.dim = num_layers + 1, dim
        self.given: list[Tensor] = []  # (L + 1) x [B, T, D], what the last call gave

    def get_downsample_rates(self, key: str) -> int:
        """Samples per frame."""
        return HOP

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """The same noise for every batch of a size."""
        shape = (len(wavs), max(map(len, wavs)) // HOP, self.dim)
        if not self.given or self.given[0].shape != shape:
            device = wavs[0].device
            self.given = [torch.randn(shape, device=device) for _ in range(self.num_hidden)]
        self.given = [each.detach().requires_grad_(self.training) for each in self.given]
        return {"hidden_states": self.given}
