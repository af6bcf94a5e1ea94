"""The settings of a pre-training run: read from YAML, checked once before anything slow."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError, did_you_mean, problems_error

SAMPLE_RATE = 16000
HOP = 320  # samples per frame: the product of the convolutional strides
WINDOW = 400  # samples one frame sees
TARGETS = ("mfcc", "mfcc_context", "layer")
WARM_STARTS = ("no", "all", "cnn")


@dataclass
class StageConfig:
    """One round of masked prediction: which features are clustered into units, and for how long to train."""

    name: str = ""
    target: str = "mfcc"  # "mfcc", "mfcc_context", or "layer": hidden states of the model that the stage before left
    layer: int = 0  # for target "layer": 1..encoder_layers, 0 = the encoder's input
    units: int = 100  # clusters of k-means
    steps: int = 1000
    lr: float = 1e-3  # the peak, after the warm-up
    visible_weight: float = (
        0.0  # share of the loss on frames that are not masked; above 0 short runs learn faster
    )
    below: list[int] = field(
        default_factory=list
    )  # layers under the last one that predict the units too
    warm_start: str = "no"  # what to take over from the last stage's model instead of new weights: "all", or the "cnn"
    speed: float = 0.0  # crops are played faster or slower by up to this share; the units stay those of the original
    muon: bool = False  # Muon for the matrices of the encoder's layers, at twice lr; everything else stays with AdamW
    model: dict[str, Any] = field(default_factory=dict)  # what differs from the run's `model`


@dataclass
class BatchConfig:
    seconds: float = 20.0  # audio per step: crop length x crops
    # Seconds; a step draws one of them. Few lengths: the CPU library compiles kernels for every new shape.
    crops: list[float] = field(default_factory=lambda: [1.5, 2.5, 4.0])
    folder_power: float = (
        0.5  # a folder is drawn in proportion to duration ** power: below 1 favours small ones
    )
    mix_prob: float = (
        0.2  # share of crops with a second utterance mixed in (WavLM's denoising task)
    )
    valid_share: float = 0.01  # share of the recordings held out for the validation curve


@dataclass
class OptimConfig:
    warmup: float = 0.08  # share of the steps
    weight_decay: float = 0.01
    clip: float = 1.0
    mask_prob: float = 0.65
    mask_length: int = 10  # frames of 20 ms
    temperature: float = 0.1
    head_dim: int = 64  # size of the unit embeddings that predictions are compared with
    bf16: bool = False


@dataclass
class LogConfig:
    every: int = 50
    valid_every: int = 250
    save_every: int = 500


@dataclass
class PretrainConfig:
    """`model` holds the keys of s3prl's WavLMConfig; `normalize` must be true: crops are scaled to zero mean, unit variance."""

    seed: int = 0
    max_piece: float = 15.0  # seconds; longer recordings are cut
    mel_start: bool = (
        False  # the first convolution starts as a mel-spaced filter bank instead of at random
    )
    model: dict[str, Any] = field(default_factory=dict)
    stages: list[StageConfig] = field(default_factory=list)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def stage_model(self, number: int) -> dict[str, Any]:
        """WavLMConfig's keys for one stage."""
        return {**self.model, **self.stages[number].model}


def _fill(cls: type, raw: Any, where: str, problems: list[str]) -> Any:
    """Build the dataclass `cls` from a mapping, noting unknown keys and wrong types in `problems`."""
    if not isinstance(raw, dict):
        problems.append(f"{where}: expected a mapping, found {type(raw).__name__}")
        return cls()
    result = cls()
    names = [f.name for f in dataclasses.fields(cls)]
    for key, value in raw.items():
        if key not in names:
            problems.append(f"{where}{key}: unknown key.{did_you_mean(key, names)}")
            continue
        default = getattr(result, key)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if dataclasses.is_dataclass(default):
            value = _fill(type(default), value, f"{where}{key}.", problems)
        elif type(value) is not type(default):
            problems.append(f"{where}{key}: expected {type(default).__name__}, found {value!r}")
            continue
        setattr(result, key, value)
    return result


def _check(config: PretrainConfig, problems: list[str]) -> None:
    if not config.stages:
        problems.append("stages: expected at least one stage")
    if config.model.get("normalize") is not True:
        problems.append("model.normalize: must be true")
    for i, stage in enumerate(config.stages):
        layers = config.stage_model(i).get("encoder_layers", 12)
        where = f"stages[{i}]."
        if stage.target not in TARGETS:
            problems.append(f"{where}target: expected {', '.join(TARGETS)}, found {stage.target!r}")
        if stage.warm_start not in WARM_STARTS:
            problems.append(
                f"{where}warm_start: expected {', '.join(WARM_STARTS)}, found {stage.warm_start!r}"
            )
        if i == 0 and (stage.target == "layer" or stage.warm_start != "no"):
            problems.append(
                f"{where}target, warm_start: the first stage has no model before it to build on"
            )
        if not 0 <= stage.layer <= layers:
            problems.append(f"{where}layer: expected 0 to {layers}, found {stage.layer}")
        if not all(type(layer) is int and 1 <= layer < layers for layer in stage.below):
            problems.append(
                f"{where}below: expected layers from 1 to {layers - 1}, found {stage.below}"
            )
        if not 0.0 <= stage.visible_weight < 1.0:
            problems.append(
                f"{where}visible_weight: expected at least 0 and less than 1, found {stage.visible_weight}"
            )
        if not 0.0 <= stage.speed < 0.5:
            problems.append(
                f"{where}speed: expected at least 0 and less than 0.5, found {stage.speed}"
            )
        if stage.units < 2 or stage.steps < 1:
            problems.append(f"{where}units, steps: expected at least 2 units and 1 step")
    batch = config.batch
    shortest = config.optim.mask_length * 2 * HOP / SAMPLE_RATE
    if not batch.crops or not all(
        isinstance(c, float) and shortest <= c <= batch.seconds for c in batch.crops
    ):
        problems.append(
            f"batch.crops: expected decimal seconds from {shortest} to batch.seconds, found {batch.crops}"
        )


def load_config(path: str | Path) -> PretrainConfig:
    """Read and check the YAML at `path`. Raises UserError that lists every problem."""
    import yaml

    try:
        raw = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    problems: list[str] = []
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(raw).__name__}")
    stages = raw.pop("stages", [])
    config = _fill(PretrainConfig, raw, "", problems)
    if not isinstance(stages, list):
        problems.append(f"stages: expected a list, found {type(stages).__name__}")
        stages = []
    config.stages = [_fill(StageConfig, s, f"stages[{i}].", problems) for i, s in enumerate(stages)]
    for i, stage in enumerate(config.stages):
        stage.name = stage.name or f"stage{i + 1}"
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names) or "last" in names:
        problems.append(
            f"stages: expected names that differ and are not 'last', the newest checkpoint's; found {', '.join(names)}"
        )
    _check(config, problems)
    if problems:
        raise problems_error(f"{path} has {len(problems)} problem(s):", problems)
    return config
