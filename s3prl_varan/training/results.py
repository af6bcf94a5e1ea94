"""What an experiment leaves for people and programs: the figures of a split, the best so far, result.json, a text table."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch

from s3prl_varan.config.options import CALL_FLAGS
from s3prl_varan.config.reading import Config
from s3prl_varan.model import SpeechModel
from s3prl_varan.tasks.metrics import confusion
from s3prl_varan.tasks.registry import Task
from s3prl_varan.training.parameter_table import PartSize, parameter_table

MAX_CONFUSION_CLASSES = 50


@dataclass
class Evaluation:
    """A whole split, evaluated."""

    split: str
    figures: dict[str, float]  # metrics in percent, loss, nll and kl in nats
    records: dict[str, list]


@dataclass
class Best:
    """The best evaluation on dev so far."""

    step: int = 0
    value: float | None = None
    figures: dict[str, float] | None = None
    evaluations_since: int = 0


def experiment_result(
    args: Namespace,
    config: Config,
    task: Task,
    model: SpeechModel,
    best: Best,
    done: dict[str, Evaluation],
) -> dict[str, Any]:
    """The content of result.json: what was run, the best on dev, the figures of the test splits, where the weights lie."""
    result: dict[str, Any] = {
        "upstream": args.upstream,
        "downstream": args.downstream,
        "featurizer": args.featurizer,
        "tuning": "lora" if args.lora else "finetune" if args.upstream_trainable else "frozen",
        "fold": args.downstream_variant or task.default_fold,
        "seed": args.seed,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "best_step": best.step,
        "dev": best.figures,
        "test": {split: evaluation.figures for split, evaluation in done.items()},
        "layers": model.featurizer.layers,
        "parameters": {
            row.part: {"trainable": row.trainable, "total": row.total}
            for row in model_parameters(model)
        },
        "args": plain_args(args),
        "config": config.raw,
    }
    for split, evaluation in done.items():
        records = evaluation.records
        result.setdefault("layer_weights", {})[split] = (
            torch.tensor(records["layer_weights"]).mean(dim=0).tolist()
        )
        if (
            task.predict in records
            and len(set(map(str, records[task.truth]))) <= MAX_CONFUSION_CLASSES
        ):
            result.setdefault("confusion", {})[split] = confusion(
                records[task.truth], records[task.predict]
            )
    return result


def plain_args(args: Namespace) -> dict[str, Any]:
    """The flags that make an experiment what it is, as checkpoints and result.json store them."""
    return {name: value for name, value in vars(args).items() if name not in CALL_FLAGS}


def model_parameters(model: SpeechModel) -> list[PartSize]:
    """Trainable and total parameters of each part, and of all."""
    return parameter_table(
        {"upstream": model.upstream, "featurizer": model.featurizer, "downstream": model.downstream}
    )


def figures_table(rows: dict[str, dict[str, float]]) -> str:
    """A small text table: a row per split, a column per figure."""
    names = list(next(iter(rows.values())))
    width = max(len("split"), *(len(split) for split in rows))
    lines = ["  ".join([f"{'split':<{width}}", *(f"{name:>8}" for name in names)])]
    lines += [
        "  ".join([f"{split:<{width}}", *(f"{figures[name]:8.2f}" for name in names)])
        for split, figures in rows.items()
    ]
    return "\n".join(lines)
