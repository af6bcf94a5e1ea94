"""Featurizer, heads and loss by themselves, on hidden states that are there already: how they grow with L, T and B."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from s3prl_varan.benchmark.cases import CLASSES, SYMBOLS, WIDTH, StubExpert, labels_of
from s3prl_varan.benchmark.plain import PlainVaran
from s3prl_varan.config.options import HeadOptions, VaranOptions
from s3prl_varan.features.stack import stack_layers
from s3prl_varan.featurizers.registry import build_featurizer
from s3prl_varan.layerwise.downstream import adapt_expert

HEADS = ("weighted_sum", "varan", "plain", "plain_pooled")


def build_heads(
    kind: str,
    task: str,
    *,
    num_layers: int,
    frames: int,
    batch: int,
    dim: int = 768,
    dropout: float = 0.1,
    train_inputs: bool = False,
    device: str = "cpu",
) -> Callable[[], Tensor]:
    """Forward and backward of everything after the upstream, over `num_layers` hidden states [batch, frames, dim].

    train_inputs: also the gradient with respect to the hidden states, as LoRA and full fine-tuning need it.
    """
    torch.manual_seed(0)
    ctc = task == "ctc"
    layers = [
        torch.randn(batch, frames, dim, device=device).requires_grad_(train_inputs)
        for _ in range(num_layers + 1)
    ]
    lengths = torch.full((batch,), frames, device=device)
    others = labels_of(batch, frames / 50, ctc, device)
    options_class = HeadOptions if kind == "weighted_sum" else VaranOptions
    options = options_class(head="linear", head_dropout=dropout)
    featurizer = build_featurizer(
        "weighted_sum" if kind == "weighted_sum" else "varan", num_layers + 1, dim, options
    )
    parts: list[nn.Module] = []
    if kind.startswith("plain"):
        outputs, first = SYMBOLS if ctc else CLASSES, kind == "plain_pooled"
        heads = PlainVaran(
            num_layers,
            dim,
            WIDTH,
            outputs,
            featurizer.prior,
            ctc=ctc,
            pool_first=first,
            dropout=dropout,
        ).to(device)
        parts.append(heads)
        forward = lambda: heads(layers[1:], lengths, *others)  # noqa: E731
    else:
        downstream = adapt_expert(
            "benchmark", StubExpert(dim, ctc), dim, featurizer.num_outputs, options
        ).to(device)
        parts += [featurizer.to(device), downstream]

        def forward() -> Tensor:
            stack = stack_layers(
                [layers[index] for index in featurizer.layers], lengths, pool=downstream.pooled
            )
            return downstream("train", featurizer(stack), others, {}).loss

    def step() -> Tensor:
        for part in parts:
            part.zero_grad()
        for layer in layers:
            layer.grad = None
        loss = forward()
        loss.backward()
        return loss.detach()

    return step
