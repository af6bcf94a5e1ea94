"""s3prl's WavLM with the pre-training head on top: which unit is under the mask?"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic


@dataclass(frozen=True)
class Prediction:
    """What a batch came to, scalars."""

    total: Tensor  # to train on
    loss: Tensor  # cross-entropy of the last layer on the masked frames, nats
    accuracy: Tensor  # in [0, 1]: of the masked frames
    visible_accuracy: Tensor  # in [0, 1]: of the frames that are not masked


def build_wavlm(config: dict[str, Any]) -> Any:
    """s3prl's WavLM from the keys of its WavLMConfig, drawn from the global generator."""
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # s3prl uses the older weight_norm
        return WavLM(WavLMConfig(config))


class UnitPredictor(nn.Module):
    """HuBERT's: cosine similarity of a projection with an embedding per unit, over a temperature.

    loss = (1 - visible_weight) * cross-entropy on masked frames + visible_weight * on the others,
    both in nats. Source: Hsu et al. 2021 (HuBERT), section II-C, where alpha = 1 - visible_weight.

    `below` are layers (1 = the first) that predict the same units with a head of their own; the
    loss trained on is then the mean over them and the last layer. Source: Wang et al. 2022
    (ILS-SSL), intermediate layer supervision.
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
        dim = wavlm.cfg.encoder_embed_dim
        self.project = nn.ModuleList(nn.Linear(dim, head_dim) for _ in range(heads))
        # Small: it turns faster.
        self.embeddings = nn.Parameter(0.1 * torch.randn(heads, units, head_dim))
        self.temperature, self.visible_weight = temperature, visible_weight

    def encode(self, wavs: Tensor, mask: Tensor) -> list[Tensor]:
        """wavs [B, samples], mask [B, T] (True = hidden) -> [B, T, D] of `below` and the last."""
        features = self.wavlm.feature_extractor(wavs).transpose(1, 2)
        features = self.wavlm.layer_norm(features)
        if self.wavlm.post_extract_proj is not None:
            features = self.wavlm.post_extract_proj(features)
        features = torch.where(mask[..., None], self.wavlm.mask_emb, features.float())
        encoder = self.wavlm.encoder
        # With a target layer it keeps them all.
        last, layers = encoder.extract_features(features, tgt_layer=len(encoder.layers) - 1)
        if encoder.layer_norm_first:
            last = encoder.layer_norm(last)
        return [*(layers[number][0].transpose(0, 1) for number in self.below), last]

    def forward(self, wavs: Tensor, mask: Tensor, units: Tensor) -> Prediction:
        """wavs [B, samples], mask [B, T] bool with both values in it, units [B, T] int64."""
        totals = []
        heads = zip(self.encode(wavs, mask), self.project, self.embeddings, strict=True)
        for states, project, embeddings in heads:
            projected = F.normalize(project(states).float(), dim=-1)
            logits = F.linear(projected, F.normalize(embeddings, dim=-1)) / self.temperature
            losses = F.cross_entropy(logits.transpose(1, 2), units, reduction="none")
            masked, visible = losses[mask].mean(), losses[~mask].mean()
            totals.append((1 - self.visible_weight) * masked + self.visible_weight * visible)
        right = (logits.argmax(-1) == units).float()
        return Prediction(
            torch.stack(totals).mean(), masked.detach(), right[mask].mean(), right[~mask].mean()
        )


def encoder_state(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of s3prl's WavLM in a checkpoint: no head, no optimiser."""
    if not checkpoint.is_file():
        raise UserError(
            f"there is no checkpoint {checkpoint}: a stage writes its own when it ends. Train that "
            "stage, without --resume if it was trained before."
        )
    state = torch.load(checkpoint, weights_only=True)["model"]
    return {k.removeprefix("wavlm."): v for k, v in state.items() if k.startswith("wavlm.")}


def export_weights(checkpoint: Path, path: Path) -> str:
    """The encoder of `checkpoint` as `-u micro_wavlm -k path` reads it: safetensors, float16.

    Returns its SHA-256. Raises UserError for values beyond float16.
    """
    from safetensors.torch import save

    half = {k: v.half().contiguous() for k, v in encoder_state(checkpoint).items()}
    wrong = [k for k, v in half.items() if not v.isfinite().all()]
    if wrong:
        raise UserError(f"{checkpoint}: values beyond float16 in {', '.join(wrong)}")
    content = save(half)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()
