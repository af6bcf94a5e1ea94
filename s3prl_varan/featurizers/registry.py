"""Featurizers: which hidden states a downstream reads, and how they are weighted. `-f NAME` picks a class from a registry.

    last_layer     the last hidden state
    layer          the hidden state that -l names
    weighted_sum   SUPERB's learned weights over all hidden states, the same for every input
    varan          every layer by itself, weighted per input by a posterior q(l | x) (arXiv 2508.12061)

Each reads a LayerStack of the hidden states `self.layers` and returns LayerFeatures.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from s3prl_varan.config.options import FEATURIZER_OPTIONS, HeadOptions, VaranOptions
from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.features.pooling import masked_mean
from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.posterior import LayerPosterior
from s3prl_varan.featurizers.priors import layer_prior

FEATURIZERS: dict[str, type["Featurizer"]] = {}


def register_featurizer(
    name: str, options: type[HeadOptions] = HeadOptions
) -> Callable[[type], type]:
    """Class decorator: make a Featurizer known as `-f name`, its config section `name:` read into `options`."""

    def register(cls: type["Featurizer"]) -> type["Featurizer"]:
        FEATURIZERS[name] = cls
        FEATURIZER_OPTIONS[name] = options
        cls.name = name
        return cls

    return register


class Featurizer(nn.Module):
    """Base: reads the hidden states `layers` (indices, 0 = encoder input) and hands on `num_outputs` of them."""

    name: ClassVar[str]
    prior: Tensor

    def __init__(self, layers: Sequence[int], num_outputs: int = 1, prior: Tensor | None = None):
        super().__init__()
        self.layers = list(layers)
        self.num_outputs = num_outputs
        self.register_buffer("prior", torch.ones(1) if prior is None else prior, persistent=False)

    @classmethod
    def build(
        cls, num_hidden: int, dim: int, options: HeadOptions, layer: int | None
    ) -> "Featurizer":
        """From an upstream with `num_hidden` hidden states of `dim`, a config section and the -l flag."""
        raise TypeError(
            f"{cls.__name__} does not say how it is built: give it a `build` classmethod"
        )

    def forward(self, stack: LayerStack) -> LayerFeatures:
        """stack.hidden [B, N, T, D], N = len(self.layers)."""
        raise TypeError(
            f"{type(self).__name__} does not say what it computes: give it a `forward` method"
        )


@register_featurizer("layer")
class SingleLayer(Featurizer):
    """One hidden state, as it is."""

    def __init__(self, layer: int):
        super().__init__([layer])

    @classmethod
    def build(
        cls, num_hidden: int, dim: int, options: HeadOptions, layer: int | None
    ) -> "Featurizer":
        if layer is None:
            raise UserError(
                f"-f layer needs -l, the hidden state to read: 0 (encoder input) to {num_hidden - 1}."
            )
        return cls(checked_layers([layer], num_hidden, "-l")[0])

    def forward(self, stack: LayerStack) -> LayerFeatures:
        ones = stack.hidden.new_ones(stack.hidden.size(0), 1, dtype=torch.float32)
        return LayerFeatures(stack.hidden, stack.lengths, torch.zeros_like(ones), self.prior, ones)


@register_featurizer("last_layer")
class LastLayer(SingleLayer):
    """The last hidden state."""

    @classmethod
    def build(
        cls, num_hidden: int, dim: int, options: HeadOptions, layer: int | None
    ) -> "Featurizer":
        if layer is not None:
            raise UserError(
                "-l names a hidden state, -f last_layer reads the last one: use `-f layer -l N`, or drop -l."
            )
        return cls(num_hidden - 1)


@register_featurizer("weighted_sum")
class WeightedSum(Featurizer):
    """SUPERB's featurizer (arXiv 2105.01051): softmax weights over all hidden states, learned, the same for every input.

    Equal to s3prl's Featurizer on the same hidden states and weights; both start from equal weights.
    """

    def __init__(self, num_hidden: int):
        super().__init__(range(num_hidden))
        self.weights = nn.Parameter(torch.zeros(num_hidden))

    @classmethod
    def build(
        cls, num_hidden: int, dim: int, options: HeadOptions, layer: int | None
    ) -> "Featurizer":
        if layer is not None:
            raise UserError(
                "-l names one hidden state, -f weighted_sum reads all: use `-f layer -l N`, or drop -l."
            )
        if num_hidden == 1:
            raise UserError(
                "This upstream has one hidden state, a weighted sum has nothing to weigh: use `-f last_layer`."
            )
        return cls(num_hidden)

    def forward(self, stack: LayerStack) -> LayerFeatures:
        weights = torch.softmax(self.weights, dim=-1)
        summed = torch.einsum("n,bntd->btd", weights.to(stack.hidden.dtype), stack.hidden)
        shown = weights.detach().expand(stack.hidden.size(0), -1)
        return LayerFeatures(
            summed[:, None], stack.lengths, shown.new_zeros(len(shown), 1), self.prior, shown
        )


@register_featurizer("varan", options=VaranOptions)
class Varan(Featurizer):
    """VARAN: all chosen layers go on, each to its own head, with a posterior q(l | x) predicted from their means."""

    def __init__(self, layers: Sequence[int], dim: int, prior: Tensor, posterior_heads: int = 16):
        super().__init__(layers, num_outputs=len(layers), prior=prior)
        self.posterior = LayerPosterior(dim, posterior_heads)

    @classmethod
    def build(
        cls, num_hidden: int, dim: int, options: HeadOptions, layer: int | None
    ) -> "Featurizer":
        assert isinstance(options, VaranOptions)
        if layer is not None:
            raise UserError(
                "-l names one hidden state, -f varan weighs several: set `varan.layers`, or use `-f layer -l N`."
            )
        if num_hidden == 1:
            raise UserError(
                "This upstream has one hidden state, VARAN has nothing to choose from: use `-f last_layer`."
            )
        layers = options.layers
        if isinstance(layers, str):
            layers = list(range(1 if layers == "transformer" else 0, num_hidden))
        layers = checked_layers(layers, num_hidden, "varan.layers")
        prior = layer_prior(
            options.prior,
            len(layers),
            chi2_df=options.chi2_df,
            chi2_nc=options.chi2_nc,
            geometric_p=options.geometric_p,
        )
        return cls(layers, dim, prior, options.posterior_heads)

    def forward(self, stack: LayerStack) -> LayerFeatures:
        pooled = masked_mean(stack.hidden, stack.lengths)  # [B, L, D]
        logits = self.posterior(pooled).float()
        return LayerFeatures(
            stack.hidden, stack.lengths, logits, self.prior, logits.detach().softmax(dim=-1)
        )


def checked_layers(layers: Sequence[int], num_hidden: int, key: str) -> list[int]:
    """Hidden-state indices as 0..num_hidden-1 (negative ones count from the end), or a UserError that names `key`."""
    wrong = [layer for layer in layers if not -num_hidden <= layer < num_hidden]
    if wrong or not layers:
        found = f"{wrong} out of range" if wrong else "none"
        raise UserError(
            f"{key}: expected hidden states in 0..{num_hidden - 1} (0 = encoder input), found {found}."
        )
    resolved = [layer % num_hidden for layer in layers]
    if len(set(resolved)) < len(resolved):
        raise UserError(f"{key}: a hidden state is named twice in {list(layers)}.")
    return resolved


def featurizer_class(name: str) -> type[Featurizer]:
    """The registered class, or a UserError that lists the known names."""
    if name not in FEATURIZERS:
        known = ", ".join(FEATURIZERS)
        raise UserError(
            f"Unknown featurizer '{name}': expected one of {known}.{did_you_mean(name, FEATURIZERS)}"
        )
    return FEATURIZERS[name]


def build_featurizer(
    name: str, num_hidden: int, dim: int, options: HeadOptions, layer: int | None = None
) -> Featurizer:
    """The featurizer `-f name` for an upstream with `num_hidden` hidden states of size `dim`."""
    return featurizer_class(name).build(num_hidden, dim, options, layer)
