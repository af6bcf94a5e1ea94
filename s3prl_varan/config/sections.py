"""Sections of a config that every run has: runner and upstream (optimizer.py has the rest)."""

from dataclasses import dataclass, field
from typing import Literal

from s3prl_varan.errors import UserError
from s3prl_varan.options import Count, Natural, NonNegative, Positive


@dataclass(frozen=True)
class RunnerOptions:
    """Section `runner:`, s3prl's keys first, then ours."""

    total_steps: Count = 10000  # optimizer steps
    gradient_clipping: NonNegative = 1.0  # L2 norm; 0 = off
    gradient_accumulate_steps: Count = 1
    log_step: Count = 100
    eval_step: Count = 500
    save_step: Count = 500
    max_keep: Count = 1
    eval_dataloaders: list[str] = field(default_factory=lambda: ["dev"])
    train_dataloader: str = "train"
    # Losses, softmax over layers and KL stay in float32 whatever is chosen here.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False  # torch.compile of upstream layers, posterior and linear heads
    early_stop: Natural = 0  # stop after so many evaluations without a new best on dev; 0 = off
    # Training clips whose mean q(l | x) is put in its place at the end, to see what it is worth;
    # 0 = do not look. For featurizers that weigh layers by the input.
    dynamics_clips: Natural = 1000
    batch_by_length: bool = False  # batches of clips of similar length: less padding
    batch_seconds: Positive | None = None  # then: batch size by padded seconds, not by clips

    def __post_init__(self) -> None:
        if self.batch_seconds is not None and not self.batch_by_length:
            raise UserError(
                "batch_seconds sets the size of batches by length, so it needs "
                "runner.batch_by_length: true"
            )
        if not any(name.startswith("dev") for name in self.eval_dataloaders):
            raise UserError("eval_dataloaders needs a dev split, it chooses the best checkpoint")


@dataclass(frozen=True)
class UpstreamOptions:
    """Section `upstream:`, what the upstream does while it is trained."""

    dropout: bool = True  # its own dropouts
    masking: bool = False  # its own SpecAugment-like masking of frames
    train_cnn: bool = False  # --upstream_trainable: train the convolutional front end too
    gradient_checkpointing: bool = False  # recompute layers going back: less memory, more time
