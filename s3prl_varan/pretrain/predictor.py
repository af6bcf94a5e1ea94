"""s3prl's WavLM with the pre-training head on top: which unit is under the mask?"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Prediction:
    loss: Tensor  # scalar: cross-entropy over the masked frames, nats
    accuracy: Tensor  # scalar in [0, 1], over the masked frames


def build_wavlm(config: dict[str, Any]) -> nn.Module:
    """s3prl's WavLM from the keys of its WavLMConfig."""
    import warnings

    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # s3prl uses the older weight_norm
        return WavLM(WavLMConfig(config))


class UnitPredictor(nn.Module):
    """Masked prediction as in HuBERT: cosine similarity of a projection with one embedding per unit, over a temperature.

    Source: Hsu et al. 2021 (HuBERT), eq. 3; the loss is taken over masked frames only (its alpha = 1).
    """

    def __init__(self, wavlm: nn.Module, width: int, units: int, head_dim: int, temperature: float) -> None:
        super().__init__()
        self.wavlm = wavlm
        self.project = nn.Linear(width, head_dim)
        self.embeddings = nn.Parameter(torch.randn(units, head_dim))
        self.temperature = temperature

    def encode(self, wavs: Tensor, mask: Tensor) -> Tensor:
        """wavs [B, samples], mask [B, T] bool (True = hidden) -> [B, T, D] of the last layer."""
        features = self.wavlm.feature_extractor(wavs).transpose(1, 2)
        features = self.wavlm.layer_norm(features)
        if self.wavlm.post_extract_proj is not None:
            features = self.wavlm.post_extract_proj(features)
        features = torch.where(mask[..., None], self.wavlm.mask_emb, features.float())
        return self.wavlm.encoder(features)[0]

    def forward(self, wavs: Tensor, mask: Tensor, units: Tensor) -> Prediction:
        hidden = self.encode(wavs, mask)[mask]
        logits = F.linear(
            F.normalize(self.project(hidden).float(), dim=-1), F.normalize(self.embeddings, dim=-1)
        )
        wanted = units[mask]
        loss = F.cross_entropy(logits / self.temperature, wanted)
        return Prediction(loss, (logits.argmax(-1) == wanted).float().mean())
