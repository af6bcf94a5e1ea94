"""Section `lora:` of the config: what is adapted and how strongly. Free of heavy imports, for the command line."""

import re
from dataclasses import dataclass

from s3prl_varan.errors import did_you_mean, problems_error

PRESETS = ("ffn", "attention", "all")


@dataclass
class LoraOptions:
    """Low-rank adaptation: W becomes W + (alpha / rank) B A, with B [out, rank] and A [rank, in] trained, W frozen."""

    rank: int = 16
    alpha: float | None = None  # null: equal to rank, so that the factor is 1
    dropout: float = (
        0.0  # on the input of A; only for matrices that the upstream applies as a Linear module
    )
    targets: str | list[str] = (
        "ffn"  # ffn | attention | all, or a list of module names (or their ends) and regexes
    )
    layers: list[int] | None = None  # transformer layers, from 0; null: all
    train_norms: bool = False  # also the norms of these layers
    train_biases: bool = False  # also the biases of these layers

    def __post_init__(self) -> None:
        problems = []
        if self.rank < 1:
            problems.append(f"rank: expected 1 or more, found {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            problems.append(f"alpha: expected a number above 0 or null, found {self.alpha}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout: expected 0 or more and below 1, found {self.dropout}")
        if isinstance(self.targets, str):
            if self.targets not in PRESETS:
                problems.append(
                    f"targets: expected {', '.join(PRESETS)} or a list of names and regexes, found '{self.targets}'."
                    f"{did_you_mean(self.targets, PRESETS)} For a module of that name write ['{self.targets}'], a list."
                )
        else:
            problems += _list_problems(self.targets)
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            problems.append(
                f"layers: expected transformer layers counted from 0, or null for all; found {self.layers}"
            )
        if problems:
            raise problems_error("LoRA options that cannot be used:", problems)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


def _list_problems(targets: list[str]) -> list[str]:
    problems = [] if targets else ["targets: the list is empty, expected names of modules to adapt"]
    for entry in targets:
        try:
            re.compile(entry)
        except re.error as error:
            problems.append(
                f"targets: '{entry}' is neither a name nor a regular expression ({error})"
            )
    return problems
