"""Section `lora:` of the config: what is adapted and how strongly. Free of heavy imports."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from s3prl_varan.errors import problems_error
from s3prl_varan.options import Count, Natural, Positive, Share

Preset = Literal["ffn", "attention", "all"]
PRESETS: tuple[str, ...] = get_args(Preset)


@dataclass
class LoraOptions:
    """Low-rank adaptation: W becomes W + (alpha / rank) B A.

    B [out, rank] and A [rank, in] are trained, W [out, in] is frozen.
    """

    rank: Count = 16
    alpha: Positive | None = None  # null: equal to rank, so that the factor is 1
    # On the input of A; only for matrices that the upstream applies as a Linear module.
    dropout: Share = 0.0
    # A list holds names of modules, or the ends of names, or regexes of whole names, or presets.
    targets: Preset | list[str] = "ffn"
    layers: list[Natural] | None = None  # transformer layers, from 0; null: all
    train_norms: bool = False  # also the norms of these layers
    train_biases: bool = False  # also the biases of these layers

    def __post_init__(self) -> None:
        problems = []
        if self.layers == []:
            problems.append("layers: the list is empty; expected layers from 0, or null for all")
        if self.targets == []:
            problems.append("targets: the list is empty, expected names of modules to adapt")
        for entry in self.targets if isinstance(self.targets, list) else []:
            try:
                re.compile(entry)
            except re.error as error:
                problems.append(
                    f"targets: '{entry}' is neither a name nor a regular expression ({error})"
                )
        if problems:
            raise problems_error("LoRA options that cannot be used:", problems)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank
