"""Settings of a run as one value: flags, config and task. resolve.py makes it, once."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_varan.config.optimizer import OptimizerOptions
from s3prl_varan.config.sections import RunnerOptions, UpstreamOptions
from s3prl_varan.errors import problems_error
from s3prl_varan.features.specaug import SpecAugOptions
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.names import file_name
from s3prl_varan.options import Seed, plain
from s3prl_varan.tasks.shapes.base import Task
from s3prl_varan.tuning.options import LoraOptions

MAX_SHOWN = 20  # problems of a corpus in one message
ID_LENGTH = 12  # hexadecimal digits of a run's identity
# Where a run lies, how it is logged and how fast it goes, not what comes out.
PLACE = (
    "args.config",
    "args.data",
    "args.upstream_refresh",
    "config.runner.log_step",
    "config.runner.save_step",
    "config.runner.max_keep",
    "config.runner.dynamics_clips",
    "config.runner.compile",
    "config.downstream_expert.datarc.num_workers",
    "config.downstream_expert.datarc.pre_load",
    "config.downstream_expert.datarc.eval_batch_size",
    "config.upstream.gradient_checkpointing",
)


@dataclass(frozen=True)
class Flags:
    """The flags that make an experiment what it is, under s3prl's names."""

    upstream: str
    downstream: str
    featurizer: str = "varan"
    downstream_variant: str | None = None  # the fold
    seed: Seed = 1337
    upstream_ckpt: str | None = None
    upstream_model_config: str | None = None
    upstream_refresh: bool = False
    upstream_feature_selection: str = "hidden_states"
    upstream_feature_normalize: bool = False
    upstream_layer_selection: int | None = None
    upstream_trainable: bool = False
    lora: bool = False
    config: str | None = None  # path, as it was given or found
    data: str | None = None  # folder of the corpus; what it sets is in the config

    @property
    def tuning(self) -> str:
        """frozen | lora | finetune."""
        return "lora" if self.lora else "finetune" if self.upstream_trainable else "frozen"


@dataclass(frozen=True)
class Config:
    """The checked config."""

    runner: RunnerOptions
    optimizer: OptimizerOptions
    scheduler: Mapping[str, Any] | None
    specaug: SpecAugOptions | None
    heads: HeadOptions
    upstream: UpstreamOptions
    lora: LoraOptions
    featurizer: Any  # Options of the class that -f names


@dataclass(frozen=True)
class Stored:
    """What a checkpoint keeps of the run that wrote it."""

    args: Mapping[str, Any]
    config: Mapping[str, Any]
    outputs: Any  # of the task's heads
    source: Path


@dataclass(frozen=True)
class RunSettings:
    """Everything that makes an experiment what it is."""

    flags: Flags
    config: Config
    task: Task
    featurizer: Any  # the class that -f names
    tested: tuple[str, ...]  # splits of -t, or all test splits
    splits_read: tuple[str, ...]  # all that this run reads

    @property
    def trains_upstream(self) -> bool:
        """LoRA or full fine-tuning?"""
        return self.flags.tuning != "frozen"

    @property
    def folder_name(self) -> str:
        """Name for the experiment's folder, of what usually distinguishes runs."""
        flags = self.flags
        layer = flags.upstream_layer_selection
        featurizer = flags.featurizer + ("" if layer is None else str(layer))
        tuning = None if flags.tuning == "frozen" else flags.tuning
        parts = [flags.upstream, flags.downstream, featurizer, tuning, self.task.fold]
        return file_name("_".join([*filter(None, parts), f"seed{flags.seed}"]))

    @property
    def id(self) -> str:
        """Identity: a hash of what decides the outcome, the same on every machine."""
        text = json.dumps(_plain_numbers(self.deciding()), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]

    def plain_config(self) -> dict[str, Any]:
        """The config as plain values, defaults filled in."""
        config = self.config
        return {
            "runner": plain(config.runner),
            "optimizer": plain(config.optimizer),
            "scheduler": config.scheduler and dict(config.scheduler),
            "specaug": config.specaug and plain(config.specaug),
            self.featurizer.name: plain(config.featurizer),
            "heads": plain(config.heads),
            "upstream": plain(config.upstream),
            "lora": plain(config.lora),
            "downstream_expert": self.task.section(),
        }

    def deciding(self) -> dict[str, Any]:
        """Flat {"args.seed": 1, "config.varan.prior": "uniform", ...} of what decides the outcome.

        Keys that this run never reads are left out, and so is where it lies and how fast it goes.
        """
        flags, sections = self.flags, self.plain_config()
        unread = {*PLACE, "config.downstream_expert.datarc.test_fold", *self._idle()}
        if not self.trains_upstream:
            del sections["upstream"]
        if not flags.lora:
            del sections["lora"]
        flat = {f"args.{key}": value for key, value in plain(flags).items()}
        flat = {key: value for key, value in flat.items() if value not in (None, False)}
        if self.task.fold:
            flat["args.downstream_variant"] = self.task.fold
        flat |= dict(_flatten(sections, "config."))
        # Of the splits evaluated while training only the one that chooses matters.
        flat["config.runner.eval_dataloaders"] = self.deciding_split
        return {key: value for key, value in flat.items() if key not in unread}

    def _idle(self) -> Iterator[str]:
        config, name = self.config, self.featurizer.name
        yield from (f"config.{name}.{key}" for key in config.featurizer.idle())
        yield from (f"config.heads.{key}" for key in config.heads.idle())
        modelrc = "config.downstream_expert.modelrc."
        flat = [key for key, _ in _flatten(plain(self.task.model), modelrc)]
        for prefix in (f"{modelrc}{key}" for key in self.task.idle(config.heads)):
            yield from (key for key in flat if f"{key}.".startswith(f"{prefix}."))
        if not self.trains_upstream:
            yield "config.optimizer.upstream_lr"
        if not config.featurizer.learns():
            yield "config.optimizer.featurizer_lr"

    @property
    def deciding_split(self) -> str:
        """The split that chooses the best checkpoint."""
        return next(name for name in self.config.runner.eval_dataloaders if name.startswith("dev"))

    def stored(self) -> dict[str, Any]:
        """What an experiment's files keep of its settings, for people and programs."""
        task = self.task
        return {
            "id": self.id,
            "task": {
                "name": task.name,
                "title": task.title,
                "metric": task.metric,
                "higher_is_better": task.higher_is_better,
                "fold": task.fold,
                "corpus": task.corpus,
            },
            "args": plain(self.flags),
            "config": self.plain_config(),
            "settings": self.deciding(),
        }

    def check_corpus(self) -> None:
        """UserError with everything that keeps the splits from being used."""
        if not self.splits_read:  # inference: a checkpoint needs no corpus
            return
        problems = self.task.problems(self.splits_read)
        rest = len(problems) - MAX_SHOWN
        if rest > 0:
            problems = [*problems[:MAX_SHOWN], f"and {rest} more"]
        if problems:
            headline = f"The corpus of -d {self.flags.downstream} cannot be used:"
            raise problems_error(headline, problems, self.task.remedy)


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """1.0 and 1 are one value."""
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in settings.items()
    }
