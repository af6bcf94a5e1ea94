"""s3prl's WavLM with the pre-training head on top: which unit is under the mask?"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Prediction:
    total: Tensor  # scalar to train on
    loss: Tensor  # scalar: cross-entropy on the masked frames, nats
    accuracy: Tensor  # scalar in [0, 1]: of the masked frames
    visible_accuracy: Tensor  # scalar in [0, 1]: of the frames that are not masked


def build_wavlm(config: dict[str, Any]) -> Any:
    """s3prl's WavLM from the keys of its WavLMConfig."""
    import warnings

    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # s3prl uses the older weight_norm
        return WavLM(WavLMConfig(config))


class UnitPredictor(nn.Module):
    """Prediction of units as in HuBERT: cosine similarity of a projection with one embedding per unit, over a temperature.

    loss = (1 - visible_weight) * cross-entropy on masked frames + visible_weight * on the others; both in nats.
    Source: Hsu et al. 2021 (HuBERT), section II-C, where alpha = 1 - visible_weight.
    """

    def __init__(self, wavlm: Any, units: int, head_dim: int, temperature: float, visible_weight: float = 0.0) -> None:
        super().__init__()
        self.wavlm: Any = wavlm
        self.project = nn.Linear(wavlm.cfg.encoder_embed_dim, head_dim)
        self.embeddings = nn.Parameter(0.1 * torch.randn(units, head_dim))  # small: it turns faster
        self.temperature, self.visible_weight = temperature, visible_weight

    def encode(self, wavs: Tensor, mask: Tensor) -> Tensor:
        """wavs [B, samples], mask [B, T] bool (True = hidden) -> [B, T, D] of the last layer."""
        features = self.wavlm.feature_extractor(wavs).transpose(1, 2)
        features = self.wavlm.layer_norm(features)
        if self.wavlm.post_extract_proj is not None:
            features = self.wavlm.post_extract_proj(features)
        features = torch.where(mask[..., None], self.wavlm.mask_emb, features.float())
        return self.wavlm.encoder(features)[0]

    def forward(self, wavs: Tensor, mask: Tensor, units: Tensor) -> Prediction:
        """wavs [B, samples], mask [B, T] bool with both values in it, units [B, T] int64."""
        projected = self.project(self.encode(wavs, mask)).float()
        logits = F.linear(F.normalize(projected, dim=-1), F.normalize(self.embeddings, dim=-1)) / self.temperature
        losses = F.cross_entropy(logits.transpose(1, 2), units, reduction="none")
        right = (logits.argmax(-1) == units).float()
        masked, visible = losses[mask].mean(), losses[~mask].mean()
        total = (1 - self.visible_weight) * masked + self.visible_weight * visible
        return Prediction(total, masked.detach(), right[mask].mean(), right[~mask].mean())
