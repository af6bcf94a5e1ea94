"""The contract of a featurizer: which hidden states a downstream reads, and how they are weighted.

A featurizer reads a LayerStack of the hidden states `self.layers` and returns LayerFeatures. Those
that hand on one stream have L' = 1, so heads, objective and training never ask which one it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from s3prl_varan.errors import UserError
from s3prl_varan.features.pooling import frames_inside
from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.layerwise.objective import NllReduction, Objective

# transformer: all hidden states but 0; all; or a list of them
LayersOption = Literal["transformer", "all"] | list[int]


class Featurizer(nn.Module):
    """Reads the hidden states `layers` (0 = encoder input) and hands on `num_outputs` streams.

    prior: p(l) over what is handed on, or over what is weighed inside; None where nothing is.
    """

    NEEDED: ClassVar = ("name",)  # what a class must set
    name: ClassVar[str]  # of -f, and of its section in the config
    several_streams: ClassVar[bool] = False  # it hands on layers by themselves, for a head on each
    # Where only means over time are asked for, it may be given the means instead of the frames.
    # Right for weights that frames do not decide; one that is not linear in the frames says False.
    takes_means: ClassVar[bool] = True
    weighs_layers: ClassVar[bool] = True  # else no weights are shown: it has none
    # It weighs by a q(l | x) of its input: then `layer_logits` and `weigh` tell what that is worth.
    depends_on_input: bool = False
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

        def learns(self) -> bool:
            """Has the featurizer parameters of its own?"""
            return True

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

    def layer_logits(self, stack: LayerStack) -> Tensor:
        """log q(l | x) up to a constant, [B, N] in float32."""
        raise TypeError(f"{type(self).__name__} needs `layer_logits` to depend on the input")

    def weigh(self, stack: LayerStack, logits: Tensor) -> LayerFeatures:
        """What `forward` gives with these logits [B, N] in the place of its own."""
        raise TypeError(f"{type(self).__name__} needs a `weigh` that says what q is for")

    def one_stream(
        self, hidden: Tensor, stack: LayerStack, weights: Tensor, inner_kl: Tensor | None = None
    ) -> LayerFeatures:
        """LayerFeatures of one stream [B, T, D]; weights [N] or [B, N]: shares, for people.

        inner_kl: [B] nats, the KL of those weights to a prior, where it is part of the loss.
        """
        shown = weights.detach().float().expand(hidden.size(0), len(self.layers))
        logits = torch.zeros(hidden.size(0), 1, device=hidden.device)
        certain = torch.ones(1, device=hidden.device)
        return LayerFeatures(hidden[:, None], stack.lengths, logits, certain, shown, inner_kl)

    def all_streams(self, stack: LayerStack, logits: Tensor) -> LayerFeatures:
        """LayerFeatures of every hidden state by itself; logits [B, N] of q(l | x)."""
        shown = logits.detach().softmax(dim=-1)
        return LayerFeatures(stack.hidden, stack.lengths, logits, self.prior, shown)


def valid_frames(stack: LayerStack) -> tuple[Tensor, Tensor]:
    """The M frames of a batch that are no padding, [M, N, D], and where they were, [B, T] bool."""
    inside = frames_inside(stack.lengths, stack.hidden.size(2), stack.hidden.device)
    return stack.hidden.transpose(1, 2)[inside], inside


def put_back(rows: Tensor, inside: Tensor) -> Tensor:
    """Rows [M, D] of valid frames at their places, [B, T, D], with zeros for padding."""
    hidden = rows.new_zeros(*inside.shape, rows.size(-1))
    hidden[inside] = rows
    return hidden


def several_layers(
    layers: LayersOption, num_hidden: int, name: str, layer: int | None
) -> list[int]:
    """The option `layers` of -f `name` as indices; UserError where -l or the upstream forbid it."""
    refuse_layer_flag(layer, name, f"weighs several (set `{name}.layers`)")
    refuse_single_state(num_hidden, f"-f {name} has nothing to choose from")
    if isinstance(layers, str):
        layers = list(range(1 if layers == "transformer" else 0, num_hidden))
    return checked_layers(layers, num_hidden, f"{name}.layers")


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
