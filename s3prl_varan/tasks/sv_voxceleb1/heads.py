"""Heads that embed an utterance, and their cosines to a direction for each training speaker.

The values of the layers are [B, L, E + S]: the embedding that is compared, E wide, then the cosines
of the one that is trained to the S speakers. (SUPERB compares an inner layer of its network.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.features.pooling import frames_inside, masked_mean
from s3prl_varan.layerwise.heads import LayerwiseLinear

CONTEXT = 14  # frames that the x-vector's convolutions look beyond the one they give
LEAST = CONTEXT + 2  # frames: the deviation of one is not defined
LEAST_VARIANCE = 1e-12


class SpeakerHeads(nn.Module):
    """An encoder of every layer and the speakers' directions.

    encoder: heads whose values [B, L, K] begin with the embedding that is compared and end with the
    one that is trained, each `dim` wide (the same one where K is dim). copies: L, or 1 for one that
    all layers share. dropout: of the trained embedding.
    """

    def __init__(
        self, encoder: nn.Module, copies: int, dim: int, speakers: int, dropout: float = 0.0
    ):
        super().__init__()
        self.encoder, self.dim = encoder, dim
        self.pooled = bool(encoder.pooled)
        self.dropout = nn.Dropout(dropout)
        drawn = [nn.init.xavier_normal_(torch.empty(dim, speakers)) for _ in range(copies)]
        self.directions = nn.Parameter(torch.stack(drawn))  # [L or 1, E, S], as s3prl draws them

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        values, lengths = self.encoder(hidden, lengths)
        # Times 30 in the loss: half precision would be felt.
        with torch.autocast(values.device.type, enabled=False):
            values = values.float()
            trained = F.normalize(self.dropout(values[..., -self.dim :]), dim=-1)
            directions = F.normalize(self.directions.float(), dim=1)
            cosines = (trained.transpose(0, 1) @ directions).transpose(0, 1)
        return torch.cat([values[..., : self.dim], cosines], dim=-1), lengths


class LinearEmbedding(nn.Module):
    """Linear(D, E) of each layer's mean over time, the paper's head up to its last matrix."""

    pooled = True

    def __init__(self, num_layers: int, in_dim: int, dim: int, shared: bool):
        super().__init__()
        self.projector = LayerwiseLinear(num_layers, in_dim, dim, shared)

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        means = masked_mean(hidden, lengths)
        return self.projector(means.transpose(0, 1)).transpose(0, 1), lengths


class XVectorModel(nn.Module):
    """SUPERB's network after the first linear map, of s3prl's modules but for the pooling.

    Convolutions over time, mean and standard deviation of the valid frames, two layers. s3prl's
    pooling counts a frame of padding as valid in all but the longest clip of a batch; this one
    counts none, so an embedding does not depend on what else is in the batch. A clip of fewer than
    16 frames is filled up to them with zeros.
    """

    def __init__(self, dim: int, agg_dim: int, dropout: float):
        super().__init__()
        from s3prl.downstream.sv_voxceleb1.model import UtteranceExtractor, XVector

        self.frames = XVector(dim, agg_dim, dropout, batch_norm=False)
        self.utterance = UtteranceExtractor(2 * agg_dim, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        """features [B, T, E], lengths [B] -> [B, 2 E]: what is compared, what is trained."""
        lengths = lengths.to(features.device)
        inside = frames_inside(lengths, features.size(1), features.device)
        features = features.masked_fill(~inside[..., None], 0.0)
        features = F.pad(features, (0, 0, 0, max(0, LEAST - features.size(1))))
        pooled = statistics(self.frames(features, None), (lengths - CONTEXT).clamp_min(2))
        compared = self.utterance.inference(pooled)
        return torch.cat([compared, self.utterance(pooled)], dim=-1), None


def statistics(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean and (unbiased) standard deviation of the valid frames: [B, T, A] -> [B, 2 A], float32.

    lengths: [B], at least 2.
    """
    frames, count = frames.float(), lengths[:, None]
    inside = frames_inside(lengths, frames.size(1), frames.device)[..., None]
    mean = frames.masked_fill(~inside, 0.0).sum(dim=1) / count
    squares = (frames - mean[:, None]).masked_fill(~inside, 0.0).square().sum(dim=1)
    # The root has no slope at 0, where a unit is silent all the time.
    deviation = (squares / (count - 1)).clamp_min(LEAST_VARIANCE).sqrt()
    return torch.cat([mean, deviation], dim=-1)
