"""Layer-wise probing heads: one head per aggregated layer (or one shared by all), batched over layers.

Every head maps (hidden [B, L, T, D], lengths [B]) to (logits, lengths): [B, L, C] for utterance tasks, [B, L, T', V] with
the lengths [B] of T' for frame tasks.
"""

import copy
import math

import torch
from torch import Tensor, nn

from s3prl_varan.features.pooling import masked_mean


class LayerwiseLinear(nn.Module):
    """L independent Linear(D, P) in one batched product: [L, N, D] -> [L, N, P]. `shared`: one matrix for all layers."""

    def __init__(self, num_layers: int, in_dim: int, out_dim: int, shared: bool = False):
        super().__init__()
        copies = 1 if shared else num_layers
        self.weight = nn.Parameter(torch.empty(copies, out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(copies, out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each layer's slice as torch.nn.Linear initialises itself."""
        bound = 1.0 / math.sqrt(self.weight.size(-1))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        return _linear(inputs, self.weight, self.bias)

    def after(self, first: "LayerwiseLinear", inputs: Tensor) -> Tensor:
        """self(first(inputs)) as one product with the matrices multiplied beforehand: cheaper for many rows."""
        with torch.autocast(inputs.device.type, enabled=False):
            weight = torch.bmm(self.weight, first.weight)  # [L, V, P] x [L, P, D]
            bias = self.bias + torch.bmm(self.weight, first.bias[..., None])[..., 0]
        return _linear(inputs, weight, bias)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[L, N, D] with [L or 1, P, D], [L or 1, P] -> [L, N, P]."""
    if weight.size(0) == 1:
        return nn.functional.linear(inputs, weight[0], bias[0])
    return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))


class LinearHeads(nn.Module):
    """The paper's head: Linear(D, P), then Linear(P, C), no activation between; on the mean over time, or on every frame."""

    def __init__(
        self,
        num_layers: int,
        dim: int,
        hidden_dim: int,
        num_classes: int,
        *,
        per_frame: bool,
        shared: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.per_frame = per_frame
        self.spec = {
            "num_layers": num_layers,
            "dim": dim,
            "hidden_dim": hidden_dim,
            "num_classes": num_classes,
            "per_frame": per_frame,
            "shared": shared,
        }
        self.projector = LayerwiseLinear(num_layers, dim, hidden_dim, shared)
        self.dropout = nn.Dropout(dropout)
        self.classifier = LayerwiseLinear(num_layers, hidden_dim, num_classes, shared)

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if not self.per_frame and hidden.size(2) > 1:
            hidden = masked_mean(hidden, lengths)[:, :, None]
        batch, layers, frames, dim = hidden.shape
        rows = hidden.transpose(0, 1).reshape(
            layers, batch * frames, dim
        )  # a view where the stack is laid out [L, B, T, D]
        if self._folds(batch * frames):
            logits = self.classifier.after(self.projector, rows)
        else:
            logits = self.classifier(self.dropout(self.projector(rows)))
        logits = logits.view(layers, batch, frames, -1).transpose(0, 1)
        return (logits, lengths) if self.per_frame else (logits[:, :, 0], lengths)

    def _folds(self, rows: int) -> bool:
        """Are the two matrices cheaper as one? Only with no dropout between them; for `rows` inputs of each layer."""
        width, outputs = self.projector.weight.size(1), self.classifier.weight.size(1)
        drops = self.training and self.dropout.p > 0
        return not drops and rows * (width - outputs) > 2 * width * outputs


def zero_padding(hidden: Tensor, lengths: Tensor) -> Tensor:
    """hidden [B, L, T, D] with zeros past each length, which is what s3prl's experts pad with; convolutions look there."""
    padding = (
        torch.arange(hidden.size(2), device=hidden.device) >= lengths.to(hidden.device)[:, None]
    )
    if not padding.any():
        return hidden
    fill = (
        hidden.masked_fill if hidden.requires_grad else hidden.masked_fill_
    )  # in place where no graph needs the old values
    return fill(padding[:, None, :, None], 0.0)


class ExpertHeads(nn.Module):
    """Copies of a downstream expert's own projector and model, whatever they are; these cannot be stacked, so they loop.

    With one layer this is the expert's own head, unchanged; `shared` folds the layers into the batch instead of looping.
    """

    def __init__(
        self, projector: nn.Module, model: nn.Module, num_layers: int, shared: bool = False
    ):
        super().__init__()
        copies = 1 if shared else num_layers
        self.projectors = nn.ModuleList(copy.deepcopy(projector) for _ in range(copies))
        self.models = nn.ModuleList(copy.deepcopy(model) for _ in range(copies))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every copy anew: s3prl's experts build their head right after seeding the generator with a constant."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def _one(self, index: int, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        logits, out_lengths = self.models[index](self.projectors[index](hidden), lengths)
        return logits, lengths if out_lengths is None else out_lengths

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batch, layers = hidden.shape[:2]
        hidden = zero_padding(hidden, lengths)
        lengths = (
            lengths.cpu()
        )  # s3prl's recurrent heads pack padded sequences, which wants them there
        if len(self.models) == 1:
            logits, out = self._one(
                0,
                hidden.reshape(batch * layers, *hidden.shape[2:]),
                lengths.repeat_interleave(layers),
            )
            return logits.unflatten(0, (batch, layers)), out.view(batch, layers)[:, 0]
        results = [self._one(index, hidden[:, index], lengths) for index in range(layers)]
        return torch.stack([logits for logits, _ in results], dim=1), results[0][1]
