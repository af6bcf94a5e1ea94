"""-d s3prl:NAME, -d FILE.py:DownstreamExpert: an expert of s3prl as a task, unmodified.

An expert brings its own corpus, batches, model, loss and figures. What is asked of it is what
s3prl's runner asks: get_dataloader(split), forward(split, features, *others, records=, batch_id=)
and log_records(split, records, logger, ...). It takes one stream of features, as s3prl gives them.
"""

import inspect
import os
import re
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from s3prl_varan.compat import import_downstream
from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.files import parse_yaml
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.layerwise.outputs import Prediction
from s3prl_varan.names import load_reference, short_name
from s3prl_varan.options import plain
from s3prl_varan.tasks.shapes.base import Item, Record, Task

PREFIX = "s3prl:"
INTERFACE = ("get_dataloader", "forward", "log_records")
OWN_LOSS = "nll"  # the expert's own, the mean over a split; `loss` has beta * KL too
LOSSES = (OWN_LOSS, "loss", "kl")  # figures of every expert
KNOWN = Path(__file__).with_name("experts.yaml")  # of s3prl's experts


@dataclass(frozen=True)
class ExpertCall:
    """What an expert is given of a batch besides features; its targets, as it were."""

    split: str
    others: tuple[Any, ...]  # what its dataloader gives after the waveforms
    batch_id: int
    num_batches: int  # of the split
    records: defaultdict[str, list]  # that it fills, one for the batches of a split
    training: bool = False

    def to(self, device: torch.device) -> "ExpertCall":
        """An expert moves what it needs itself."""
        return self


class Log:
    """In TensorBoard's place: keeps the scalars by name, without task and split."""

    def __init__(self, split: str):
        self.split = split
        self.figures: dict[str, float] = {}

    def add_scalar(self, tag: str, value: Any, *_: Any, **__: Any) -> None:
        """`task-fold1/dev-acc` -> acc."""
        self.figures[tag.rpartition("/")[2].removeprefix(f"{self.split}-")] = float(value)

    def __getattr__(self, name: str) -> Any:
        """add_audio and others are passed over."""
        if name.startswith("add_"):
            return lambda *_, **__: None
        raise AttributeError(name)


class ExpertTask(Task):
    """The task of one expert: `find_expert` makes the class.

    downstream_expert of the config goes to the expert as it is, but for three keys: metric,
    higher_is_better (what chooses the best checkpoint) and splits (those it has).
    """

    expert_class: ClassVar[Any]
    needs_gpu: ClassVar[bool] = False
    one_stream = True
    remedy = "See docs/s3prl-experts.md."

    def __init__(self, config: Mapping[str, Any], flags: Mapping[str, Any]):
        super().__init__(Task.Data(), Task.Model(), fold=flags["downstream_variant"])
        section = dict(config["downstream_expert"])
        usual = self.metric, self.higher_is_better
        self.metric = section.pop("metric", self.metric)  # type: ignore[misc]
        higher = usual[1] if self.metric == usual[0] else self.metric not in LOSSES
        self.higher_is_better = section.pop("higher_is_better", higher)  # type: ignore[misc]
        runner = config.get("runner", {})
        evaluated = runner.get("eval_dataloaders", ["dev"])
        splits = [runner.get("train_dataloader", "train"), *evaluated, "test"]
        self.known = list(dict.fromkeys(section.pop("splits", splits)))
        self.given = section
        # As in s3prl's runner: all sections of the config and all flags.
        self.kwargs = {**config, **flags, "downstream_expert": section}
        self.expert: Any = None
        self.step = 0  # of the evaluation to come

    @classmethod
    def read(
        cls, config: Mapping[str, Any], flags: Any, outputs: Any, problems: list[str]
    ) -> "Task | None":
        section = config.get("downstream_expert")
        found = list(section_problems(cls, section))
        task = None if found or problems else cls(config, plain(flags))
        for split in task.known if task else ():  # some experts evaluate `get_SPLIT_dataloader`
            if not re.fullmatch(r"[\w.-]+", str(split)):
                found.append(f"expected names of splits, found {split!r}")
        problems += found
        return None if problems else task

    def section(self) -> dict[str, Any]:
        own = {"metric": self.metric, "higher_is_better": self.higher_is_better}
        return {**self.given, **own, "splits": self.known}

    # ---- the corpus

    corpus = ""  # type: ignore[assignment]

    def splits(self) -> list[str]:
        return self.known

    def items(self, split: str) -> list[Item]:
        return []  # they are the expert's

    def problems(self, splits: Sequence[str]) -> list[str]:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return ["an expert makes its own batches, which cannot be shared out: use one process"]
        if self.needs_gpu and not torch.cuda.is_available():
            return ["this expert calls .cuda() for every batch, and torch sees no GPU here"]
        return []

    def warnings(self, clips: Mapping[str, Sequence[Item]]) -> list[str]:
        return []

    # ---- the expert

    def build_heads(
        self, dim: int, num_layers: int, downsample_rate: int, options: HeadOptions
    ) -> nn.Module:
        """The expert, which reads its corpus now and draws its weights as it likes."""
        if num_layers != 1:
            raise UserError(f"-d {self.name} takes one stream of features, -f gives {num_layers}.")
        if options != HeadOptions():
            raise UserError(f"heads: -d {self.name} has its own model; leave the section out.")
        try:
            self.expert = self.expert_class(
                upstream_dim=dim,
                upstream_rate=downsample_rate,
                **{**deepcopy(self.kwargs), "expdir": str(self.expdir)},
            )
        except Exception as error:  # its own, of any kind: a key or a file is missing, mostly
            self.refuse("could not be built", error)
        torch.manual_seed(self.kwargs["seed"])  # some set a seed of their own
        return self.expert

    def dataloader(self, split: str, epoch: int = 0) -> Any:
        """The expert's own. UserError where it has no such split."""
        takes_epoch = "epoch" in inspect.signature(self.expert.get_dataloader).parameters
        try:
            loader = self.expert.get_dataloader(split, **({"epoch": epoch} if takes_epoch else {}))
            if loader is None or not len(loader):
                raise ValueError("no batches")
        except Exception as error:
            self.refuse(
                f"has no split '{split}' that can be read (config.downstream_expert.splits, "
                "runner.train_dataloader and runner.eval_dataloaders say which there are)",
                error,
            )
        return loader

    def refuse(self, what: str, error: Exception) -> NoReturn:
        """UserError with the line of the expert's code that failed."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"-d {self.name} {what}: {type(error).__name__}: {error} (line {frame.lineno} of "
            f"{frame.filename}). It reads config.downstream_expert as s3prl's own config has it: "
            "see docs/s3prl-experts.md."
        ) from error

    # ---- results

    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        """Names only: what the expert keeps of a clip is its own."""
        call = replace(items[0].target, others=())  # which take memory: spectra, say
        none: Record = {"call": call, "truth": "", "predict": ""}
        return [{"name": item.name, **none} for item in items]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """What the expert logs of a split, or of the training batches since it did so last."""
        call: ExpertCall = records[-1]["call"]
        kept = defaultdict(list, call.records)
        call.records.clear()
        log = Log(call.split)
        self.expert.log_records(
            call.split,
            records=kept,
            logger=log,
            global_step=self.step,
            batch_ids=list(dict.fromkeys(record["call"].batch_id for record in records)),
            total_batch_num=call.num_batches,
        )
        if not call.training and self.metric not in (*log.figures, *LOSSES):
            raise UserError(
                f"config.downstream_expert.metric: -d {self.name} logs no '{self.metric}' of "
                f"{call.split}, but {', '.join(log.figures) or 'nothing'}; {OWN_LOSS}, its loss, "
                f"is there in any case.{did_you_mean(self.metric, list(log.figures))}"
            )
        # Voice conversion's name for its loss is the value.
        named = {name: each for name, each in log.figures.items() if not name[0].isdigit()}
        return {name: each for name, each in named.items() if name not in LOSSES}

    # ---- what a task with heads on layers has, and an expert has not

    def read_outputs(self) -> None:
        return None

    def _not_asked(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("an expert makes its own batches, loss and prediction")

    collate = layer_loss = combine = answers = _not_asked


def section_problems(task: type[ExpertTask], section: Any) -> Iterator[str]:
    """What keeps `downstream_expert` from being handed to an expert."""
    if not isinstance(section, Mapping) or not section:
        yield (
            f"downstream_expert: missing. Give the config of {task.name} with -c: s3prl's own (its "
            "package has none, its repository has), or one of downstream_configs/s3prl"
        )
        return
    kinds: dict[str, Any] = {"metric": str, "higher_is_better": bool, "splits": list}
    for key, kind in kinds.items():
        if not isinstance(section.get(key, kind()), kind):
            yield f"downstream_expert.{key}: expected {kind.__name__}, found {section[key]!r}"
    metric = section.get("metric", task.metric)
    if metric not in (task.metric, *LOSSES) and "higher_is_better" not in section:
        yield f"downstream_expert.higher_is_better: missing, true or false, of metric {metric!r}"
    # Experts evaluate some of their strings as Python; a config, and a checkpoint, is data.
    for key, value in strings(section, "downstream_expert"):
        if "(" in value and not Path(value).exists():
            yield f"{key}: {value!r} has a call in it, which an expert could run"


def strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All strings in plain values, keys of mappings too, each with the place it has."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from strings(name, key)
            yield from strings(each, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each, key)


def expert_names() -> list[str]:
    """The experts that the installed s3prl has."""
    import s3prl.downstream

    folders = [Path(each) for each in s3prl.downstream.__path__]
    return sorted(path.parent.name for each in folders for path in each.glob("*/expert.py"))


def find_expert(name: str) -> type[ExpertTask] | None:
    """The task of the expert that -d names; None where it names another kind of class.

    UserError where s3prl has none of that name, or it cannot be used here.
    """
    short = name.removeprefix(PREFIX)
    about: dict[str, Any] = {"metric": OWN_LOSS, "higher_is_better": False}
    if short != name:
        names = expert_names()
        if short not in names:
            raise UserError(
                f"-d: s3prl has no downstream '{short}'.{did_you_mean(short, names)} It has "
                f"{', '.join(names)}."
            )
        known = parse_yaml(KNOWN.read_text(encoding="utf-8"))
        about = {"higher_is_better": True, **known[short]} if short in known else about
        if "refused" in about:
            raise UserError(
                f"-d {name} cannot be used: {about['refused']}. See docs/s3prl-experts.md."
            )
        found = import_downstream(short).DownstreamExpert
    else:
        found = load_reference(name, "-d", "a subclass of s3prl_varan.Task, or an expert of s3prl")
    is_expert = inspect.isclass(found) and issubclass(found, nn.Module)
    if not is_expert or not all(hasattr(found, each) for each in INTERFACE):
        return None
    about |= {"name": short_name(name), "title": f"{short_name(short)} (expert of s3prl)"}
    return type("Expert", (ExpertTask,), {**about, "expert_class": found})
