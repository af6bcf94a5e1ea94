"""A task beside the s3prl expert that it replaces, unmodified: one row of test_parity.py each."""

import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_varan.compat import import_downstream
from s3prl_varan.layerwise.heads import HeadOptions, LinearHeads
from s3prl_varan.layerwise.objective import elbo
from s3prl_varan.layerwise.outputs import LayerOutputs
from s3prl_varan.options import read_options
from s3prl_varan.tasks import find_task
from s3prl_varan.tasks.shapes.base import Item, Task

DIM, RATE = 12, 320  # of the features: their size, samples a frame


@dataclass(frozen=True)
class Row:
    """A task, its config and what is compared. `datarc` takes a function fixture name -> folder."""

    task: str
    datarc: Callable[[Callable[[str], Path]], dict[str, Any]]
    modelrc: dict[str, Any]
    fold: str | None = None
    figure: str = "acc"  # both of `score` and of what the expert logs
    unit: float = 100.0  # what ours is for their 1
    splits: tuple[str, ...] = ("dev", "test")
    loses_one: bool = False  # the expert drops a clip of each split that ours keeps
    files: int = 2  # prediction files of a split
    submission: dict[str, str] = field(default_factory=dict)  # of the leaderboard's upload
    lessons: int = 10  # steps of `teach`
    ours: dict[str, Any] = field(default_factory=dict)  # in datarc, keys of our task only
    theirs: dict[str, Any] = field(default_factory=dict)  # in datarc, keys of the expert only


UTTERANCE = {
    "projector_dim": 8,
    "select": "UtteranceLevel",
    "UtteranceLevel": {"pooling": "MeanPooling"},
}


class Log:
    """In TensorBoard's place: the last value of every scalar, by the name after the last dash."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, **_: Any) -> None:
        self.values[name.rpartition("-")[2]] = value


def make_task(row: Row, folder_of: Callable[[str], Path]) -> Task:
    """Our task."""
    cls, problems = find_task(row.task), []
    data = read_options(cls.Data, {**row.datarc(folder_of), **row.ours}, "datarc", problems)
    model = read_options(cls.Model, row.modelrc, "modelrc", problems)
    assert not problems, problems
    return cls(data, model, fold=row.fold)


def make_expert(row: Row, folder_of: Callable[[str], Path], folder: Path) -> Any:
    """s3prl's, which knows a few clips and has no dropout; it writes into `folder`."""
    section = {"datarc": {**row.datarc(folder_of), **row.theirs}, "modelrc": row.modelrc}
    cls = import_downstream(row.task).DownstreamExpert
    torch.manual_seed(0)
    expert = cls(
        upstream_dim=DIM,
        upstream_rate=RATE,
        downstream_expert=section,
        expdir=str(folder),
        downstream_variant=row.fold,
    )
    expert.eval()
    teach(expert, row)
    return expert


def teach(expert: Any, row: Row) -> None:
    """Fit the first batch of every split: right about some clips, wrong about others."""
    optimizer = torch.optim.Adam(expert.parameters(), lr=0.02)
    batches = {split: tuple(next(iter(expert.get_dataloader(split)))) for split in row.splits}
    for _ in range(row.lessons):
        for split, (_, *others) in batches.items():
            optimizer.zero_grad()
            expert(
                split, clip_features(*batches[split]), *others, records=defaultdict(list)
            ).backward()
            optimizer.step()


def last_linear(model: nn.Module) -> nn.Linear:
    """The one that gives the outputs."""
    return [each for each in model.modules() if isinstance(each, nn.Linear)][-1]


def heads_of_expert(task: Task, expert: Any) -> nn.Module:
    """Our heads of one layer, with the expert's weights."""
    heads = task.build_heads(DIM, 1, RATE, HeadOptions(kind="expert")).eval()
    if isinstance(heads, LinearHeads):
        pairs = [
            (heads.projector, expert.projector),
            (heads.classifier, last_linear(expert.model)),
        ]
        for ours, theirs in pairs:
            ours.load_state_dict({key: value[None] for key, value in theirs.state_dict().items()})
        return heads
    heads.projectors[0].load_state_dict(expert.projector.state_dict())
    heads.models[0].load_state_dict(expert.model.state_dict())
    return heads


def clip_features(waves: Any, _labels: Any, names: Any) -> list[Tensor]:
    """[frames, DIM] for each clip, a frame every RATE samples; random, the same for one name."""
    features = []
    for wave, name in zip(waves, names, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        frames = max(3, len(wave) // RATE)
        features.append(2 * torch.randn(frames + 1, DIM, generator=generator))
    return [each[:1] + each[1:] for each in features]  # a clip differs from the next as a whole


def run_heads(heads: nn.Module, features: list[Tensor]) -> LayerOutputs:
    """Outputs of one layer for unpadded features."""
    lengths = torch.tensor([len(each) for each in features])
    return LayerOutputs(*heads(pad_sequence(features, batch_first=True)[:, None], lengths))


@torch.no_grad()
def run_both(
    task: Task, heads: nn.Module, expert: Any, split: str, folder: Path
) -> tuple[list[float], list[float], dict[str, float], dict[str, float]]:
    """A split through both: losses of the batches, then figures, each of ours and of theirs.

    Ours writes its files into `folder`, the expert into its own.
    """
    by_name: dict[str, Item] = {item.name: item for item in task.items(split)}
    ours, theirs, log = [], [], Log()
    records, kept = defaultdict(list), []
    for waves, labels, names in expert.get_dataloader(split):
        features = clip_features(waves, labels, names)
        theirs.append(float(expert(split, features, labels, names, records=records)))
        items = [by_name[name] for name in names]
        out = run_heads(heads, features)
        targets = task.collate([item.target for item in items])
        logits = torch.zeros(len(items), 1)  # one layer has all of the posterior
        ours.append(float(elbo(task.layer_loss(out, targets), logits, torch.ones(1), 0.0).loss))
        kept += task.records(task.combine(out, logits, task.rules[0]), items)
    expert.log_records(
        split, records=records, logger=log, global_step=1, batch_ids=[0], total_batch_num=1
    )
    task.write(kept, split, folder)
    return ours, theirs, task.score(kept), log.values
