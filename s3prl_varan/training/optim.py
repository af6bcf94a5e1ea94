"""Optimizer and learning-rate schedule from the config: torch.optim's classes, s3prl's schedules."""

from typing import Any

import torch

from s3prl_varan.config.reading import Config, optimizer_class, scheduler_functions
from s3prl_varan.errors import UserError
from s3prl_varan.model import SpeechModel


def build_optimizer(model: SpeechModel, config: Config) -> torch.optim.Optimizer:
    """One parameter group for each part that trains (upstream, featurizer, downstream), each with its learning rate."""
    options = config.optimizer
    rates = {
        "upstream": options.upstream_lr,
        "featurizer": options.featurizer_lr,
        "downstream": None,
    }
    groups = []
    for name, rate in rates.items():
        params = [p for p in getattr(model, name).parameters() if p.requires_grad]
        if params:
            groups.append(
                {"params": params, "lr": options.lr if rate is None else rate, "name": name}
            )
    cls, extra = optimizer_class(options), dict(config.optimizer_extra)
    if cls in (torch.optim.Adam, torch.optim.AdamW) and extra.get("foreach") is None:
        extra.setdefault(
            "fused", True
        )  # the same update in one pass over the parameters, several times faster
    try:
        return cls(groups, lr=options.lr, **extra)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"optimizer: {options.torch_optim_name} refuses its settings: {error}"
        ) from error


def build_scheduler(
    optimizer: torch.optim.Optimizer, total_steps: int, section: dict[str, Any] | None
) -> Any:
    """The schedule a config names, or None. `warmup_ratio` stands for num_warmup_steps = ratio x total_steps."""
    if not section:
        return None
    options = {key: value for key, value in section.items() if key != "name"}
    if "warmup_ratio" in options:
        options["num_warmup_steps"] = round(options.pop("warmup_ratio") * total_steps)
    try:
        return scheduler_functions()[section["name"]](
            optimizer, num_training_steps=total_steps, **options
        )
    except TypeError as error:
        raise UserError(f"scheduler: {section['name']} refuses its settings: {error}") from error
