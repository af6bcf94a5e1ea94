"""The contract of a task: all that the rest of the program asks of one. A task is one file.

A class holds its options (`Data`, `Model`), finds its corpus, builds its heads, says its loss and
its prediction, and scores and writes what came out. Nothing else knows a task by name.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from s3prl_varan.audio import examine_audio_files, header_samples, read_audio
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.layerwise.objective import NllReduction
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.options import Count, Natural, plain, read_options
from s3prl_varan.tasks.shapes.splits import overlaps, small_dev

Record = dict[str, Any]  # of one clip: name, truth, predict and whatever the task scores


@dataclass(frozen=True)
class Item:
    """One clip of a split."""

    name: str  # as prediction files have it
    path: Path
    target: Any  # what `collate` takes: a class id, ids of slots, units of a text...
    speaker: str | None = None  # where the corpus says
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: to the end of the file


def first_there(root: Path, *names: str) -> str:
    """The first of these files or folders that `root` has, as a path; none there: the first."""
    return str(root / next((name for name in names if (root / name).exists()), names[0]))


class Task(ABC):
    """A downstream task on one corpus, with its options. Subclass it, or a shape in this folder.

    data, model: instances of `Data` and `Model`. fold: of a cross-validated corpus. outputs: what
    the heads put out (see `outputs`), where a checkpoint brings it; then no corpus is needed.
    """

    NEEDED: ClassVar = ("name", "metric")  # what a class must set, besides its abstract methods
    name: ClassVar[str]  # of -d
    title: ClassVar[str] = ""  # for people: "spoken words"
    metric: ClassVar[str]  # the figure of `score` that chooses the best checkpoint
    higher_is_better: ClassVar[bool] = True
    default_fold: ClassVar[str | None] = None
    rules: ClassVar[tuple[str, ...]] = ("geometric", "mixture")  # of prediction, see `combine`
    released_nll: ClassVar[NllReduction] = "batch_mean"  # how the authors' code averages this loss
    draws_anew: ClassVar[bool] = False  # `load` gives another crop or the like each time
    scores_training: ClassVar[bool] = True  # predictions of training batches are cheap to score
    trains: ClassVar[bool] = True  # else -m evaluate needs no checkpoint
    one_stream: ClassVar[bool] = False  # cannot have a head on every layer
    outputs_everywhere: ClassVar[bool] = True  # else only training's targets have a loss
    knows_speakers: ClassVar[bool] = False  # those of training are meant to be in the other splits
    longest_piece: ClassVar[float | None] = None  # seconds; -m inference cuts longer recordings
    remedy: ClassVar[str] = "Set the paths in config.downstream_expert.datarc, with -o or -c."
    preparations: ClassVar[tuple[str, ...]] = ()  # commands of prepare_data.py for its corpora
    head_keys: ClassVar[tuple[str, ...]] = ()  # keys of modelrc that describe the task's own head
    config: ClassVar[Mapping[str, Any]] = {}  # the default config of a task that ships none
    expdir = Path()  # the experiment's folder, for what is written while the run goes on

    @dataclass(frozen=True)
    class Data:
        """Section `downstream_expert.datarc`."""

        train_batch_size: Count = 32
        eval_batch_size: Count = 32
        num_workers: Natural = 4
        pre_load: bool = False  # keep decoded clips in memory

    @dataclass(frozen=True)
    class Model:
        """Section `downstream_expert.modelrc`."""

    data: Any
    model: Any

    def __init__(
        self, data: Any, model: Any, *, fold: str | None = None, outputs: Any = None
    ) -> None:
        self.data, self.model = data, model
        self.fold = fold or self.default_fold
        if outputs is not None:
            self.__dict__["outputs"] = outputs

    @classmethod
    def read(
        cls, config: Mapping[str, Any], flags: Any, outputs: Any, problems: list[str]
    ) -> "Task | None":
        """The task that the section `downstream_expert` of a config describes.

        flags: the run's (config/settings.py). What is wrong goes into `problems`, a line each;
        then the result is None.
        """
        section = config.get("downstream_expert", {})
        if not isinstance(section, dict):
            problems.append(f"downstream_expert: expected datarc and modelrc, found {section!r}")
            return None
        for key in section:
            if key not in ("datarc", "modelrc"):
                problems.append(f"downstream_expert.{key}: unknown key. Known: datarc, modelrc.")
        data, model = (
            read_options(each, section.get(key, {}), f"downstream_expert.{key}", problems)
            for key, each in (("datarc", cls.Data), ("modelrc", cls.Model))
        )
        if data is None or model is None:
            return None
        return cls(data, model, fold=flags.downstream_variant, outputs=outputs)

    def section(self) -> dict[str, Any]:
        """`downstream_expert` as plain values, defaults filled in."""
        return {"datarc": plain(self.data), "modelrc": plain(self.model)}

    def idle(self, heads: HeadOptions) -> list[str]:
        """Keys of modelrc that this run does not read: of heads it did not select."""
        select = getattr(self.model, "select", None)
        if heads.kind == "linear":
            return list(self.head_keys)
        values = {each.name: getattr(self.model, each.name) for each in fields(self.model)}
        return [name for name, value in values.items() if is_dataclass(value) and name != select]

    # ---- the corpus

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        """--data ROOT: the keys of datarc that a corpus in ROOT sets; None takes a key out.

        UserError where ROOT cannot be such a corpus, or the task does not say (as here).
        """
        raise UserError(
            f"--data: -d {cls.name} does not say where its files lie in a folder (it has no "
            "`locate`). Set the paths in config.downstream_expert.datarc, with -o or -c."
        )

    @property
    def corpus(self) -> str:
        """Name of the corpus in tables: the folder that the first path among the options names."""
        values = [getattr(self.data, each.name) for each in fields(self.data)]
        paths = [value for value in values if isinstance(value, str)]
        return Path(paths[0]).name if paths else ""

    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the splits: a dev* one chooses the checkpoint, test* are tested."""

    def folds(self) -> list[str]:
        """Folds that the prepared corpus has; none where the task has none."""
        return []

    @abstractmethod
    def items(self, split: str) -> list[Item]:
        """The clips of a split, in the corpus's order. UserError where its lists cannot be read."""

    def problems(self, splits: Sequence[str]) -> list[str]:
        """All that keeps `splits` from being used, a line each, before anything slow starts.

        The lists are read by `items`, whose UserError has a problem in each line, and the header
        of every file is looked at. What several splits have in common is said once.
        """
        found: dict[str, None] = {}
        paths: dict[Path, None] = {}
        for split in splits:
            try:
                items = self.items(split)
            except UserError as error:
                found |= dict.fromkeys(str(error).splitlines())
                continue
            paths |= dict.fromkeys(item.path for item in items)
            if not items:
                found[f"{split}: no clips"] = None
        checked = examine_audio_files(paths, decode=False)
        return [*found, *(file.problem for file in checked if file.problem)]

    def warnings(self, clips: Mapping[str, Sequence[Item]]) -> list[str]:
        """What is odd about the splits read, a line each, but keeps no one from using them."""
        return [*overlaps(clips, speakers=not self.knows_speakers), *small_dev(clips)]

    def load(self, item: Item, rng: random.Random, training: bool) -> Tensor:
        """The waveform [num_samples] of a clip, 16 kHz, float32 in [-1, 1].

        rng: for what is drawn anew each time (a crop, say), so that a run can be repeated.
        """
        return read_audio(item.path, start=item.start, end=item.end)

    def num_samples(self, item: Item, training: bool) -> int:
        """How many samples `load` will give, from the file's header."""
        whole = header_samples(item.path)
        end = whole if item.end is None else min(whole, round(16000 * item.end))
        return max(0, end - round(16000 * item.start))

    def weights(self, items: Sequence[Item]) -> list[float] | None:
        """How often each training clip is drawn, up to a constant; None: each once an epoch."""
        return None

    def batch_size(self, training: bool) -> int:
        """Clips in a batch."""
        return self.data.train_batch_size if training else self.data.eval_batch_size

    # ---- heads, loss and prediction

    @cached_property
    def outputs(self) -> Any:
        """What the outputs mean, as plain values that a checkpoint keeps: class names, say."""
        return self.read_outputs()

    @abstractmethod
    def read_outputs(self) -> Any:
        """`outputs`, from the corpus."""

    @abstractmethod
    def collate(self, targets: Sequence[Any]) -> Any:
        """Targets of a batch as a tensor, or anything with a `to(device)`."""

    @abstractmethod
    def build_heads(
        self, dim: int, num_layers: int, downsample_rate: int, options: HeadOptions
    ) -> nn.Module:
        """Heads for `num_layers` streams of size `dim`, a frame every `downsample_rate` samples.

        forward(hidden [B, L, T, D], lengths [B]) -> (values, lengths). An attribute `pooled` that
        is True says that each layer's mean over time is enough for them.
        """

    @abstractmethod
    def layer_loss(self, out: LayerOutputs, targets: Any) -> Tensor:
        """Loss of every layer's head: [B, L] nats per example, or [B, L, K]: one per hypothesis."""

    @abstractmethod
    def combine(self, out: LayerOutputs, posterior_logits: Tensor, rule: str) -> Prediction:
        """One prediction of L, weighted by q(l | x) [B, L], by one of `rules`."""

    # ---- results

    @abstractmethod
    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        """What is kept of each clip for `score` and `write`: name, truth, predict (if any)..."""

    @abstractmethod
    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Figures of a whole split, `metric` among them; in percent where they are rates."""

    def parts(self, record: Record) -> tuple[float, float] | None:
        """(amount, of): `metric` of a split is 100 * sum(amount) / sum(of) over its clips.

        For intervals over clips; None, for all of them, where the metric is no such ratio.
        """
        return None

    def write(self, records: Sequence[Record], split: str, folder: Path) -> None:  # noqa: B027
        """Prediction files of a split, in s3prl's names and formats; none where it has none."""

    def submission(self) -> dict[str, str]:
        """Path in SUPERB's upload -> the file of `write` that belongs there; {} for no entry."""
        return {}

    @abstractmethod
    def answers(self, prediction: Prediction) -> list[dict[str, Any]]:
        """-m inference: what is to be said of each clip, plain values with the key `prediction`."""

    def join(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One answer of those for the pieces of a long recording."""
        return answers[0]

    def text(self, answer: dict[str, Any]) -> str:
        """An answer as a line for people."""
        return str(answer["prediction"])
