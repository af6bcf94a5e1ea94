"""What a run leaves in its folder: metrics, predictions, checkpoints, result.json."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from s3prl_varan.config.settings import RunSettings
from s3prl_varan.files import (
    CLIPS,
    CONFIG,
    METRICS,
    RESULT,
    append_line,
    csv_text,
    read_jsonl,
    write_atomic,
)  # fmt: skip
from s3prl_varan.model import SpeechModel
from s3prl_varan.tasks.shapes.base import Record, Task
from s3prl_varan.tasks.shapes.metrics import confusion
from s3prl_varan.training.checkpoint import BEST, Best, model_state, save_checkpoint, states_of
from s3prl_varan.training.dynamics import information
from s3prl_varan.training.evaluation import Evaluation
from s3prl_varan.training.layer_weights import write_layer_weights

MAX_CONFUSION_CLASSES = 50


class Artifacts:
    """Writes the files of one experiment folder; one process of a run has it.

    board: keep TensorBoard events too.
    """

    def __init__(
        self, folder: Path, settings: RunSettings, model: SpeechModel, *, board: bool = False
    ):
        self.folder, self.settings, self.model = folder, settings, model
        self.board = SummaryWriter(str(folder)) if board else None

    def write_config(self) -> None:
        """config.yaml: the settings, while the run goes on."""
        content = yaml.safe_dump(self.settings.stored(), sort_keys=False)
        write_atomic(self.folder / CONFIG, content)

    def rewind(self, step: int) -> None:
        """Drop the rows of metrics.jsonl that a run going on from `step` will write once more."""
        path = self.folder / METRICS
        if path.is_file():
            kept = [
                row
                for row in read_jsonl(path)
                if row.get("step", 0) <= step and not row.get("final")
            ]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write_metrics(self, step: int, split: str, figures: dict[str, float], **more: Any) -> None:
        """A row of metrics.jsonl, and TensorBoard's scalars."""
        row = finite_json({"step": step, "split": split, **figures, **more})
        append_line(self.folder / METRICS, json.dumps(row, allow_nan=False))
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(f"{split}/{name}", value, step)

    def write_evaluation(self, evaluation: Evaluation, step: int, *, final: bool) -> None:
        """Figures, prediction files and layer weights of a split.

        final: not between steps but of a checkpoint; then a picture is drawn too.
        """
        split, records = evaluation.split, evaluation.records
        more: dict[str, Any] = {}
        if self.model.featurizer.weighs_layers:
            more["layer_weights"] = evaluation.layer_weights
        if final:
            more["final"] = True
        if evaluation.dynamics is not None:
            more["dynamics"] = evaluation.dynamics
        elif self.model.featurizer.depends_on_input:
            more["information_nats"] = information(records)[0]
        self.write_metrics(step, split, evaluation.figures, **more)
        task, featurizer = self.settings.task, self.model.featurizer
        task.write(records, split, self.folder)
        if final:
            write_clips(self.folder, task, split, records)
        if len(featurizer.layers) > 1 and featurizer.weighs_layers:
            prior = featurizer.prior.tolist()
            of_layers = prior if len(prior) == len(featurizer.layers) else None
            write_layer_weights(
                self.folder, featurizer.layers, split, records, prior=of_layers, picture=final
            )

    # ---- checkpoints

    def save_best(self, step: int, best: Best) -> None:
        """dev-best.ckpt."""
        save_checkpoint(self.folder / BEST, self._payload(step, best))

    def save_states(self, step: int, best: Best, states: dict[str, Any]) -> None:
        """states-STEP.ckpt with what a resume needs; of older ones as many as max_keep says."""
        path = self.folder / f"states-{step}.ckpt"
        save_checkpoint(path, {**self._payload(step, best), **states})
        for old in states_of(self.folder)[: -self.settings.config.runner.max_keep]:
            old.unlink()

    def _payload(self, step: int, best: Best) -> dict[str, Any]:
        return {**model_state(self.model, self.settings), "Step": step, "Best": asdict(best)}

    # ---- the end

    def write_result(
        self, best: Best, tested: Mapping[str, Evaluation], steps: int, seconds: float
    ) -> None:
        """result.json: what was run, the best on dev, the test figures, where the weights lie."""
        from s3prl_varan import __version__

        settings, task = self.settings, self.settings.task
        stored = settings.stored()
        result = {
            "version": __version__,
            "upstream": settings.flags.upstream,
            "downstream": settings.flags.downstream,
            "featurizer": settings.flags.featurizer,
            "tuning": settings.flags.tuning,
            "fold": task.fold,
            "seed": settings.flags.seed,
            **{key: stored["task"][key] for key in ("title", "metric", "higher_is_better")},
            "corpus": task.corpus,
            "submission": task.submission(),
            "best_step": best.step,
            "dev": best.figures,
            "test": {split: evaluation.figures for split, evaluation in tested.items()},
            "layers": self.model.featurizer.layers,
            "layer_weights": {
                split: each.layer_weights
                for split, each in tested.items()
                if self.model.featurizer.weighs_layers
            },
            "dynamics": {
                split: each.dynamics for split, each in tested.items() if each.dynamics is not None
            },
            "confusion": _confusions(tested),
            "parameters": count_parameters(self.model.parts),
            **stored,
            "steps": steps,
            "seconds": round(seconds, 2),
        }
        text = json.dumps(finite_json(result), indent=2, allow_nan=False)
        write_atomic(self.folder / RESULT, text + "\n")

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()


def write_clips(folder: Path, task: Task, split: str, records: Sequence[Record]) -> None:
    """SPLIT_clips.csv: what each clip adds to the metric (Task.parts), for tests over clips."""
    parts = [task.parts(record) for record in records]
    rows = [
        [record["name"], record["speaker"] or "", *(f"{value:g}" for value in part)]
        for record, part in zip(records, parts, strict=True)
        if part is not None
    ]
    if rows:
        content = csv_text([["clip", "speaker", "amount", "of"], *rows])
        write_atomic(folder / f"{split}{CLIPS}", content)


def _confusions(tested: Mapping[str, Evaluation]) -> dict[str, Any]:
    found = {}
    for split, evaluation in tested.items():
        truth = [record["truth"] for record in evaluation.records]
        classes = set(map(str, truth))
        guessed = all("predict" in record for record in evaluation.records)
        # As many classes as clips are no classes: transcripts, say, which are all different.
        told = classes != {""} and len(classes) < len(truth)
        if guessed and told and len(classes) <= MAX_CONFUSION_CLASSES:
            predicted = [record["predict"] for record in evaluation.records]
            found[split] = confusion(truth, predicted)
    return found


def count_parameters(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    """{part: {"trainable", "total"}}, and of "all": a parameter that parts share counts once."""
    seen: dict[int, nn.Parameter] = {}
    counts = {}
    for name, part in parts.items():
        own = {id(each): each for each in part.parameters()}
        counts[name] = _sizes(own.values())
        seen |= own
    return {**counts, "all": _sizes(seen.values())}


def _sizes(parameters: Iterable[nn.Parameter]) -> dict[str, int]:
    sizes = [(each.numel(), each.requires_grad) for each in parameters]
    trainable = sum(size for size, trains in sizes if trains)
    return {"trainable": trainable, "total": sum(size for size, _ in sizes)}


def parameter_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The counts as a text table."""
    lines = [f"{'part':<12}{'trainable':>14}{'total':>14}{'%':>8}"]
    for name, count in counts.items():
        share = 100 * count["trainable"] / max(1, count["total"])
        lines.append(f"{name:<12}{count['trainable']:>14,}{count['total']:>14,}{share:>8.2f}")
    return "\n".join(lines)


def figures_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A small text table: a row per split, a column per figure."""
    if not rows:
        return "no test split"
    names = list(next(iter(rows.values())))
    width = max(len("split"), *(len(split) for split in rows))
    lines = ["  ".join([f"{'split':<{width}}", *(f"{name:>8}" for name in names)])]
    for split, figures in rows.items():
        lines.append("  ".join([f"{split:<{width}}", *(f"{figures[name]:8.2f}" for name in names)]))
    return "\n".join(lines)


def finite_json(value: Any) -> Any:
    """`value` with null for numbers that are not finite, which JSON has no name for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(each) for each in value]
    return value
