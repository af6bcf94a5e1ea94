"""s3prl's WavLM with the pre-training head on top: which unit is under the mask?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Prediction:
    total: Tensor  # scalar to train on
    loss: Tensor  # scalar: cross-entropy of the last layer on the masked frames, nats
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

    `below` are layers (1 = the first) that predict the same units with a head of their own; the loss trained on is then the
    mean over them and the last layer. Source: Wang et al. 2022 (ILS-SSL), intermediate layer supervision.
    """

    def __init__(
        self,
        wavlm: Any,
        units: int,
        head_dim: int,
        temperature: float,
        visible_weight: float = 0.0,
        below: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.wavlm: Any = wavlm
        self.below = list(below)
        heads = len(self.below) + 1  # the last layer's head is the last
        self.project = nn.ModuleList(
            nn.Linear(wavlm.cfg.encoder_embed_dim, head_dim) for _ in range(heads)
        )
        self.embeddings = nn.Parameter(
            0.1 * torch.randn(heads, units, head_dim)
        )  # small: it turns faster
        self.temperature, self.visible_weight = temperature, visible_weight

    def encode(self, wavs: Tensor, mask: Tensor) -> list[Tensor]:
        """wavs [B, samples], mask [B, T] bool (True = hidden) -> [B, T, D] of each layer in `below` and of the encoder."""
        features = self.wavlm.feature_extractor(wavs).transpose(1, 2)
        features = self.wavlm.layer_norm(features)
        if self.wavlm.post_extract_proj is not None:
            features = self.wavlm.post_extract_proj(features)
        features = torch.where(mask[..., None], self.wavlm.mask_emb, features.float())
        encoder = self.wavlm.encoder
        last, layers = encoder.extract_features(
            features, tgt_layer=len(encoder.layers) - 1
        )  # with a target it keeps them all
        if encoder.layer_norm_first:
            last = encoder.layer_norm(last)
        return [*(layers[number][0].transpose(0, 1) for number in self.below), last]

    def forward(self, wavs: Tensor, mask: Tensor, units: Tensor) -> Prediction:
        """wavs [B, samples], mask [B, T] bool with both values in it, units [B, T] int64."""
        totals = []
        for states, project, embeddings in zip(
            self.encode(wavs, mask), self.project, self.embeddings, strict=True
        ):
            projected = project(states).float()
            logits = (
                F.linear(F.normalize(projected, dim=-1), F.normalize(embeddings, dim=-1))
                / self.temperature
            )
            losses = F.cross_entropy(logits.transpose(1, 2), units, reduction="none")
            masked, visible = losses[mask].mean(), losses[~mask].mean()
            totals.append((1 - self.visible_weight) * masked + self.visible_weight * visible)
        right = (logits.argmax(-1) == units).float()
        return Prediction(
            torch.stack(totals).mean(), masked.detach(), right[mask].mean(), right[~mask].mean()
        )
