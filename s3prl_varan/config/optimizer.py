"""Optimizer and schedule from their sections: torch.optim's classes, s3prl's schedules."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.options import NonNegative, plain, read_options


@dataclass(frozen=True)
class OptimizerOptions:
    """Section `optimizer:`. Any further key is handed to the torch.optim class."""

    name: str = "TorchOptim"  # s3prl's, with torch_optim_name; or a class of torch.optim
    torch_optim_name: str = "AdamW"
    lr: NonNegative = 1e-3
    featurizer_lr: NonNegative | None = None  # posterior, weights of the weighted sum; null: lr
    upstream_lr: NonNegative | None = None  # LoRA or fine-tuned upstream; null: lr
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], section: str, problems: list[str]) -> Any:
        """Keys that are not ours are for torch's class; a step on a toy shows what it refuses."""
        own = ("name", "torch_optim_name", "lr", "featurizer_lr", "upstream_lr")
        extra = {key: value for key, value in values.items() if key not in own}
        rest = {key: value for key, value in values.items() if key in own}
        options = read_options(cls, {**rest, "extra": extra}, section, problems, plain_only=True)
        if options is not None:
            problems += [f"{section}{text}" for text in options.problems()]
        return options

    def to_plain(self) -> dict[str, Any]:
        """As the config has it."""
        values = plain(self, plain_only=True)
        extra = values.pop("extra")
        return {**values, **extra}

    def optimizer_class(self) -> Any:
        """The class of torch.optim. UserError for an unknown name."""
        known = {name: cls for name, cls in vars(torch.optim).items() if inspect.isclass(cls)}
        del known["Optimizer"]
        s3prls = self.name == "TorchOptim"
        name = self.torch_optim_name if s3prls else self.name
        if name not in known:
            key = "torch_optim_name" if s3prls else "name (or TorchOptim)"
            raise UserError(
                f".{key}: expected a class of torch.optim, found '{name}'."
                f"{did_you_mean(name, known)}"
            )
        return known[name]

    def problems(self) -> list[str]:
        """What torch's class refuses, found by a step on a matrix and a vector."""
        try:
            cls = self.optimizer_class()
        except UserError as error:
            return [str(error)]
        known = set(inspect.signature(cls).parameters) - {"params"}
        unknown = [key for key in self.extra if key not in known]
        if unknown:
            name = f"torch.optim.{cls.__name__}"
            return [f".{key}: unknown to {name}.{did_you_mean(key, known)}" for key in unknown]
        toys = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
        for toy in toys:
            toy.grad = torch.ones_like(toy)
        try:
            cls(toys, lr=self.lr, **self.extra).step()
        except Exception as error:  # noqa: BLE001 (each class has its own)
            settings = _shown({"lr": self.lr, **self.extra})
            return [f": torch.optim.{cls.__name__} refuses {settings}: {error}"]
        return []


def scheduler_problems(section: Any, total_steps: int) -> list[str]:
    """What is wrong with the section `scheduler:`, found by making and stepping the schedule."""
    if section is None:
        return []
    if not isinstance(section, dict) or "name" not in section:
        return [f"scheduler: expected `name:` and its options, or null; found {section!r}"]
    known, name = scheduler_functions(), section["name"]
    if not isinstance(name, str) or name not in known:
        return [
            f"scheduler.name: expected one of {', '.join(known)}, found {name!r}."
            f"{did_you_mean(name, known)}"
        ]
    takes = {*inspect.signature(known[name]).parameters, "warmup_ratio", "name"}
    takes -= {"optimizer", "num_training_steps"}
    unknown = [key for key in section if key not in takes]
    if unknown:
        return [f"scheduler.{key}: unknown to {name}.{did_you_mean(key, takes)}" for key in unknown]
    if "num_warmup_steps" in takes and not {"num_warmup_steps", "warmup_ratio"} & section.keys():
        return ["scheduler.warmup_ratio: missing, expected a number from 0 to 1"]
    ratio = section.get("warmup_ratio", 0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        return [f"scheduler.warmup_ratio: expected a number from 0 to 1, found {ratio!r}"]
    toy = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    try:
        schedule = build_scheduler(toy, total_steps, section)
        for _ in range(2):
            toy.step()
            schedule.step()
    except Exception as error:  # noqa: BLE001 (each schedule has its own)
        settings = {key: value for key, value in section.items() if key != "name"}
        return [f"scheduler: {name} refuses {_shown(settings)}: {error}"]
    return []


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in settings.items()) or "its defaults"


def build_optimizer(
    parts: Mapping[str, nn.Module], options: OptimizerOptions
) -> torch.optim.Optimizer:
    """A parameter group for each part that trains, with its learning rate.

    parts: "upstream", "featurizer" and "downstream" by name.
    """
    rates = {"upstream": options.upstream_lr, "featurizer": options.featurizer_lr}
    groups = []
    for name, part in parts.items():
        trained = [each for each in part.parameters() if each.requires_grad]
        rate = rates.get(name)
        if trained:
            rate = options.lr if rate is None else rate
            groups.append({"params": trained, "lr": rate, "name": name})
    cls, extra = options.optimizer_class(), dict(options.extra)
    if cls in (torch.optim.Adam, torch.optim.AdamW) and extra.get("foreach") is None:
        # The same update in one pass over the parameters, several times faster.
        extra.setdefault("fused", True)
    return cls(groups, lr=options.lr, **extra)


def scheduler_functions() -> dict[str, Any]:
    """s3prl's learning-rate schedules by the name a config gives them."""
    from s3prl import schedulers

    found = {name.removeprefix("get_"): make for name, make in vars(schedulers).items()}
    return {
        name: make
        for name, make in found.items()
        if f"get_{name}" in vars(schedulers) and name != "scheduler"
    }


def build_scheduler(
    optimizer: torch.optim.Optimizer, total_steps: int, section: Mapping[str, Any] | None
) -> Any:
    """The schedule a config names, or None.

    `warmup_ratio` stands for num_warmup_steps = ratio x total_steps.
    """
    if section is None:
        return None
    options = {key: value for key, value in section.items() if key != "name"}
    if "warmup_ratio" in options:
        options["num_warmup_steps"] = round(options.pop("warmup_ratio") * total_steps)
    make = scheduler_functions()[section["name"]]
    return make(optimizer, num_training_steps=total_steps, **options)
