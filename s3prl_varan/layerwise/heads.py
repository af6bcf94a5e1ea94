"""Layer-wise probing heads: one per aggregated layer (or one shared by all), batched.

Every head maps (hidden [B, L, T, D], lengths [B]) to (values, lengths): [B, L, C] for utterance
tasks, [B, L, T', V] with the lengths [B] of T' for frame tasks.

B batch, L layers, T frames, D hidden size, P projection, C classes, V symbols.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from s3prl_varan.errors import UserError
from s3prl_varan.features.pooling import frames_inside, masked_mean
from s3prl_varan.options import Share, Width


@dataclass(frozen=True)
class HeadOptions:
    """Section `heads:`, the same for every featurizer: a comparison is one of featurizers."""

    # expert: SUPERB's own head of the task, as modelrc describes it; linear: the paper's,
    # Linear(D, dim) and Linear(dim, C) with nothing between but dropout.
    kind: Literal["expert", "linear"] = "expert"
    dim: Width = 256  # width of a linear head
    dropout: Share = 0.0  # before a linear head's last matrix
    shared: bool = False  # one head for all layers

    def idle(self) -> list[str]:
        """Keys that the others make idle."""
        return [] if self.kind == "linear" else ["dim"]


class LayerwiseLinear(nn.Module):
    """L independent Linear(D, P) in one batched product: [L, N, D] -> [L, N, P].

    `shared`: one matrix for all layers.
    """

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
        """self(first(inputs)) with the matrices multiplied beforehand: cheaper for many rows."""
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
    """The paper's head, Linear(D, P) then Linear(P, C), on the mean over time or on every frame.

    pooled: means over time are enough for it.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        hidden_dim: int,
        num_outputs: int,
        *,
        per_frame: bool,
        shared: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pooled = not per_frame
        self.projector = LayerwiseLinear(num_layers, dim, hidden_dim, shared)
        self.dropout = nn.Dropout(dropout)
        self.classifier = LayerwiseLinear(num_layers, hidden_dim, num_outputs, shared)

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.pooled and hidden.size(2) > 1:
            hidden = masked_mean(hidden, lengths)[:, :, None]
        batch, layers, frames, dim = hidden.shape
        # A view where the stack is laid out [L, B, T, D], as stack_layers leaves it.
        rows = hidden.transpose(0, 1).reshape(layers, batch * frames, dim)
        if self._folds(batch * frames):
            logits = self.classifier.after(self.projector, rows)
        else:
            logits = self.classifier(self.dropout(self.projector(rows)))
        logits = logits.view(layers, batch, frames, -1).transpose(0, 1)
        return (logits[:, :, 0], lengths) if self.pooled else (logits, lengths)

    def _folds(self, rows: int) -> bool:
        """Are the two matrices cheaper as one, for `rows` inputs of each layer?

        Only with no dropout between them.
        """
        width, outputs = self.projector.weight.size(1), self.classifier.weight.size(1)
        drops = self.training and self.dropout.p > 0
        return not drops and rows * (width - outputs) > 2 * width * outputs


class CopiedHeads(nn.Module):
    """One copy per layer of a head that cannot be stacked (recurrent, convolutional, attentive).

    make: builds one (projector, model) of s3prl's form, model(projector(x) [B, T, P], lengths [B])
    -> (values, lengths or None); called once for each copy, so each is drawn anew. `shared`: one
    copy, with the layers folded into the batch. pooled: never, they look at frames.
    """

    pooled = False

    def __init__(
        self,
        make: Callable[[], tuple[nn.Module, nn.Module]],
        num_layers: int,
        shared: bool = False,
    ):
        super().__init__()
        pairs = [make() for _ in range(1 if shared else num_layers)]
        self.projectors = nn.ModuleList(projector for projector, _ in pairs)
        self.models = nn.ModuleList(model for _, model in pairs)

    def _one(self, index: int, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        values, out_lengths = self.models[index](self.projectors[index](hidden), lengths)
        return values, lengths if out_lengths is None else out_lengths

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batch, layers = hidden.shape[:2]
        hidden = zero_padding(hidden, lengths)
        lengths = lengths.cpu()  # recurrent heads pack padded sequences, which wants them there
        if len(self.models) == 1:
            folded = hidden.reshape(batch * layers, *hidden.shape[2:])
            values, out = self._one(0, folded, lengths.repeat_interleave(layers))
            return values.unflatten(0, (batch, layers)), out.view(batch, layers)[:, 0]
        results = [self._one(index, hidden[:, index], lengths) for index in range(layers)]
        return torch.stack([values for values, _ in results], dim=1), results[0][1]


def copied_heads(
    options: HeadOptions,
    num_layers: int,
    dim: int,
    width: int,
    build_model: Callable[[], nn.Module],
) -> CopiedHeads:
    """Copies of SUPERB's head, Linear(dim, width) then a model; UserError for a dropout."""
    refuse_dropout(options)
    return CopiedHeads(lambda: (nn.Linear(dim, width), build_model()), num_layers, options.shared)


def refuse_dropout(options: HeadOptions) -> None:
    """UserError where heads.dropout is asked of a head that has its own dropout in modelrc."""
    if options.dropout > 0:
        raise UserError(
            "heads.dropout applies to linear heads; this task's own head has its dropout in "
            "config.downstream_expert.modelrc: set it there, or choose heads.kind: linear."
        )


def zero_padding(hidden: Tensor, lengths: Tensor) -> Tensor:
    """hidden [B, L, T, D] with zeros past each length, as s3prl pads; convolutions look there."""
    padding = ~frames_inside(lengths, hidden.size(2), hidden.device)
    if not padding.any():
        return hidden
    # In place where no graph needs the old values: [B, L, T, D] of CTC is large.
    fill = hidden.masked_fill if hidden.requires_grad else hidden.masked_fill_
    return fill(padding[:, None, :, None], 0.0)
