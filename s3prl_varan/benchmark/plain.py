"""VARAN written the plain way, a loop over layers in paper order, to compare against. Used nowhere else."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.config.options import VaranOptions
from s3prl_varan.featurizers.posterior import LayerPosterior
from s3prl_varan.layerwise.objective import elbo


class PlainVaran(nn.Module):
    """Layers [B, T, D] x L -> loss. Each layer has its own projector and classifier and passes through them by itself.

    ctc=False: every frame is projected, the mean over an utterance's frames classified (SUPERB's order). `pool_first`
    takes the mean before the projection, which is the same function.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        width: int,
        outputs: int,
        prior: Tensor,
        *,
        ctc: bool,
        pool_first: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.prior: Tensor
        self.projectors = nn.ModuleList(nn.Linear(dim, width) for _ in range(num_layers))
        self.classifiers = nn.ModuleList(nn.Linear(width, outputs) for _ in range(num_layers))
        self.posterior = LayerPosterior(dim)
        self.register_buffer("prior", prior)
        self.dropout = nn.Dropout(dropout)
        self.ctc, self.pool_first = ctc, pool_first

    def forward(
        self, layers: list[Tensor], lengths: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """labels [B], or for CTC [B, S] with label_lengths [B]. Blank is 0."""
        summaries = torch.stack([_mean(layer, lengths) for layer in layers], dim=1)  # [B, L, D]
        posterior_logits = self.posterior(summaries)
        losses = []
        for index, (layer, project, classify) in enumerate(
            zip(layers, self.projectors, self.classifiers, strict=True)
        ):
            if self.ctc:
                log_probs = (
                    classify(self.dropout(project(layer))).float().log_softmax(-1).transpose(0, 1)
                )
                losses.append(
                    F.ctc_loss(log_probs, labels, lengths, label_lengths, reduction="none")
                    / lengths
                )
                continue
            pooled = (
                project(summaries[:, index]) if self.pool_first else _mean(project(layer), lengths)
            )
            losses.append(
                F.cross_entropy(classify(self.dropout(pooled)).float(), labels, reduction="none")
            )
        return elbo(
            torch.stack(losses, dim=1), posterior_logits, self.prior, VaranOptions().kl_beta
        ).loss


def _mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, D] -> [B, D], over the valid frames."""
    inside = (torch.arange(hidden.size(1), device=hidden.device) < lengths[:, None])[..., None]
    return (hidden * inside).sum(dim=1) / lengths[:, None]
