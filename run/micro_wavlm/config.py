"""The settings of a pre-training run: read from YAML, checked once before anything slow."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.options import Count, Natural, NonNegative, Positive, Range, Share, read_options

HOP = 320  # samples per frame: the product of the convolutional strides
WINDOW = 400  # samples one frame sees
EXAMPLE = "run/micro_wavlm/micro_wavlm.yaml"


@dataclass(frozen=True)
class StageConfig:
    """One round of masked prediction: which features are clustered into units, how to train."""

    name: str
    # "layer": hidden states of the model that the stage before left.
    target: Literal["mfcc", "mfcc_context", "layer"] = "mfcc"
    layer: Natural = 0  # for target "layer": 1..encoder_layers, 0 = the encoder's input
    units: Annotated[int, Range(low=2)] = 100  # clusters of k-means
    steps: Count = 1000
    lr: Positive = 1e-3  # the peak, after the warm-up
    # Share of the loss on frames that are not masked; above 0 short runs learn faster.
    visible_weight: Share = 0.0
    # Layers under the last one that predict the units too.
    below: list[Count] = field(default_factory=list)
    # What to take over from the last stage's model instead of new weights.
    warm_start: Literal["all", "cnn"] | None = None
    # Crops are played faster or slower by up to this share; the units stay those of the original.
    speed: Annotated[float, Range(low=0, below=0.5)] = 0.0
    # Muon (torch 2.9) for the matrices of the encoder's layers; all else stays with AdamW.
    muon: bool = False
    model: dict[str, Any] = field(default_factory=dict)  # what differs from the run's `model`


@dataclass(frozen=True)
class BatchConfig:
    """What a step hears."""

    seconds: Positive = 20.0  # audio per step: crop length x crops
    # Seconds; a step draws one of them. Few: the CPU library compiles kernels for every new shape.
    crops: list[Positive] = field(default_factory=lambda: [1.5, 2.5, 4.0])
    # A folder is drawn in proportion to duration ** power: below 1 favours small ones.
    folder_power: NonNegative = 0.5
    mix_prob: Annotated[float, Range(low=0, high=1)] = 0.2  # crops with a second one mixed in
    valid_share: Share = 0.01  # of the recordings, held out for the validation curve


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, masks and head, the same in all stages."""

    warmup: Share = 0.08  # share of the steps
    weight_decay: NonNegative = 0.01
    clip: Positive = 1.0
    mask_prob: Share = 0.65
    mask_length: Count = 10  # frames of 20 ms
    temperature: Positive = 0.1
    head_dim: Count = 64  # size of the unit embeddings that predictions are compared with
    bf16: bool = False


@dataclass(frozen=True)
class LogConfig:
    """Every how many steps."""

    every: Count = 50
    valid_every: Count = 250
    save_every: Count = 500


@dataclass
class PretrainConfig:
    """`model`: keys of s3prl's WavLMConfig; crops have zero mean and unit variance (normalize)."""

    seed: Natural = 0
    max_piece: Positive = 15.0  # seconds; longer recordings are cut
    mel_start: bool = False  # start the first convolution as a mel-spaced filter bank
    model: dict[str, Any] = field(default_factory=dict)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    stages: list[StageConfig] = field(init=False)

    def stage_model(self, number: int) -> dict[str, Any]:
        """WavLMConfig's keys for one stage."""
        return {**self.model, **self.stages[number].model}


def load_config(path: str | Path) -> PretrainConfig:
    """Read and check the YAML at `path`. Raises UserError that lists every problem."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected settings as in {EXAMPLE}, found {raw!r:.80}")
    stages = raw.pop("stages", None)
    problems: list[str] = []
    config = read_options(PretrainConfig, raw, "config", problems)
    if not isinstance(stages, list) or not stages:
        problems.append(f"stages: expected a list of at least one stage, found {stages!r}")
        stages = []
    read = [
        read_options(StageConfig, stage, f"stages[{number}]", problems)
        for number, stage in enumerate(stages)
    ]
    if config is not None and None not in read:
        config.stages = [stage for stage in read if stage is not None]
        problems += _contradictions(config)
    if problems or config is None:
        raise problems_error(f"{path} has {len(problems)} problem(s):", problems)
    return config


def _contradictions(config: PretrainConfig) -> Iterator[str]:
    """What is wrong with settings that are each possible."""
    if config.model.get("normalize") is not True:
        yield "config.model.normalize: must be true"
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names) or "last" in names:
        yield (
            "stages: expected names that differ and are not 'last', the newest checkpoint's; "
            f"found {', '.join(names)}"
        )
    batch = config.batch
    shortest = config.optim.mask_length * 2 * HOP / SAMPLE_RATE
    if not batch.crops or not shortest <= min(batch.crops) <= max(batch.crops) <= batch.seconds:
        yield f"config.batch.crops: expected {shortest} to {batch.seconds} s, found {batch.crops}"
    for number, stage in enumerate(config.stages):
        layers, where = config.stage_model(number).get("encoder_layers", 12), f"stages[{number}]"
        if number == 0 and (stage.target == "layer" or stage.warm_start):
            yield f"{where}: target, warm_start: the first stage has no model before it"
        if stage.layer > layers:
            yield f"{where}.layer: expected 0 to {layers}, found {stage.layer}"
        if max(stage.below, default=0) >= layers:
            yield f"{where}.below: expected layers from 1 to {layers - 1}, found {stage.below}"
