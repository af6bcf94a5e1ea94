"""The contract of a featurizer: which hidden states a downstream reads, and how they are weighted.

A featurizer reads a LayerStack of the hidden states `self.layers` and returns LayerFeatures. Those
that hand on one stream have L' = 1, so heads, objective and training never ask which one it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s3prl_varan.errors import UserError
from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.layerwise.objective import NllReduction, Objective


class Featurizer(nn.Module):
    """Reads the hidden states `layers` (0 = encoder input) and hands on `num_outputs` streams.

    prior: [num_outputs] p(l) over what is handed on; None for one stream.
    """

    NEEDED: ClassVar = ("name",)  # what a class must set
    name: ClassVar[str]  # of -f, and of its section in the config
    learns: ClassVar[bool] = True  # has parameters of its own
    prior: Tensor

    @dataclass(frozen=True)
    class Options:
        """Section of the config that carries the featurizer's name."""

        def objective(self, released_nll: NllReduction) -> Objective:
            """The objective of its training; released_nll: how the released code averages."""
            return Objective()

        def idle(self) -> list[str]:
            """Keys that the others make idle."""
            return []

    def __init__(
        self, layers: Sequence[int], num_outputs: int = 1, prior: Tensor | None = None
    ) -> None:
        super().__init__()
        self.layers = list(layers)
        self.num_outputs = num_outputs
        prior = torch.ones(1) if prior is None else prior
        self.register_buffer("prior", prior, persistent=False)

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> "Featurizer":
        """For an upstream with `num_hidden` hidden states of size `dim`.

        options: an instance of `Options`. layer: the flag -l, or None.
        """
        raise TypeError(f"{cls.__name__} needs a `build` classmethod that says how it is made")

    @classmethod
    def only_layer(cls, layer: int | None) -> int | None:
        """The one hidden state that it reads with this -l; None where it reads several."""
        return None

    def forward(self, stack: LayerStack) -> LayerFeatures:
        """stack.hidden [B, N, T, D], N = len(self.layers)."""
        raise TypeError(f"{type(self).__name__} needs a `forward` that says what it computes")

    def one_stream(self, hidden: Tensor, stack: LayerStack, weights: Tensor) -> LayerFeatures:
        """LayerFeatures of one stream [B, T, D]; weights [N] or [B, N]: shares, for people."""
        shown = weights.detach().float().expand(hidden.size(0), len(self.layers))
        logits = torch.zeros(hidden.size(0), 1, device=hidden.device)
        return LayerFeatures(hidden[:, None], stack.lengths, logits, self.prior, shown)


def checked_layers(layers: Sequence[int], num_hidden: int, key: str) -> list[int]:
    """Hidden-state indices as 0..num_hidden-1 (negative ones count from the end).

    Raises UserError that names `key` for one that is out of range or named twice.
    """
    wrong = [layer for layer in layers if not -num_hidden <= layer < num_hidden]
    if wrong or not layers:
        found = f"{wrong} out of range" if wrong else "none"
        raise UserError(
            f"{key}: expected hidden states in 0..{num_hidden - 1} (0 = encoder input), "
            f"found {found}."
        )
    resolved = [layer % num_hidden for layer in layers]
    if len(set(resolved)) < len(resolved):
        raise UserError(f"{key}: a hidden state is named twice in {list(layers)}.")
    return resolved


def refuse_layer_flag(layer: int | None, name: str, instead: str) -> None:
    """UserError where -l is given to a featurizer that chooses its hidden states itself."""
    if layer is not None:
        raise UserError(
            f"-l names one hidden state, -f {name} {instead}: use `-f layer -l N`, or drop -l."
        )


def refuse_single_state(num_hidden: int, what: str) -> None:
    """UserError where an upstream has one hidden state and there is nothing to weigh."""
    if num_hidden == 1:
        raise UserError(f"This upstream has one hidden state, {what}: use `-f last_layer`.")
