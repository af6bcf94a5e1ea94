"""VARAN written the plain way, a loop over layers in paper order, to compare against."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.layerwise.heads import LayerwiseLinear
from s3prl_varan.layerwise.objective import elbo


class PlainVaran(nn.Module):
    """The upstream and weights of a VARAN model with linear heads; layers are passed one by one.

    Class heads project every frame and classify the mean over an utterance's frames (SUPERB's
    order). `pool_first` takes the mean before the projection, which is the same function.
    """

    def __init__(self, model: Any, *, pool_first: bool = False):
        super().__init__()
        heads, self.upstream = model.downstream.heads, model.upstream
        self.trains_upstream, self.pool_first = model.trains_upstream, pool_first
        self.layers, self.prior = model.featurizer.layers, model.featurizer.prior
        self.posterior = deepcopy(model.featurizer.posterior)
        self.projectors = unstacked(heads.projector)
        self.classifiers = unstacked(heads.classifier)
        self.dropout, self.beta = heads.dropout, model.downstream.objective.beta

    def forward(self, wavs: list[Tensor], targets: Any) -> Tensor:
        """Loss of waveforms B x [num_samples] with labels [B], or with CTC's (the blank is 0)."""
        with torch.set_grad_enabled(self.trains_upstream):
            hidden = self.upstream(wavs)
        layers, lengths = [hidden.layers[index] for index in self.layers], hidden.lengths
        means = torch.stack([mean(layer, lengths) for layer in layers], dim=1)  # [B, L, D]
        losses = []
        parts = zip(layers, means.unbind(1), self.projectors, self.classifiers, strict=True)
        for layer, pooled, project, classify in parts:
            if isinstance(targets, Tensor):
                summary = project(pooled) if self.pool_first else mean(project(layer), lengths)
                logits = classify(self.dropout(summary)).float()
                losses.append(F.cross_entropy(logits, targets, reduction="none"))
                continue
            logits = classify(self.dropout(project(layer))).float()
            sizes = targets.labels, lengths, targets.lengths
            log_probs = logits.log_softmax(-1).transpose(0, 1)
            losses.append(F.ctc_loss(log_probs, *sizes, reduction="none") / lengths)
        return elbo(torch.stack(losses, dim=1), self.posterior(means), self.prior, self.beta).loss


def unstacked(layers: LayerwiseLinear) -> nn.ModuleList:
    """An nn.Linear for each layer, with its weights."""
    linears = nn.ModuleList()
    for weight, bias in zip(layers.weight.detach(), layers.bias.detach(), strict=True):
        linear = nn.Linear(weight.size(1), weight.size(0))
        linear.load_state_dict({"weight": weight, "bias": bias})
        linears.append(linear)
    return linears


def mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, D] -> [B, D], over the valid frames."""
    inside = (torch.arange(hidden.size(1), device=hidden.device) < lengths[:, None])[..., None]
    return (hidden * inside).sum(dim=1) / lengths[:, None]
