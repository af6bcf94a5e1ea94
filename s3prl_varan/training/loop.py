"""The training loop, one for all tasks, on `accelerate`: one process or several alike."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from s3prl_varan.config.optimizer import build_optimizer, build_scheduler
from s3prl_varan.config.settings import Config
from s3prl_varan.errors import UserError
from s3prl_varan.model import SpeechModel
from s3prl_varan.tasks.shapes.base import Record, Task
from s3prl_varan.training.artifacts import (
    Artifacts,
    count_parameters,
    figures_table,
    parameter_table,
)  # fmt: skip
from s3prl_varan.training.checkpoint import (
    BEST,
    STATES,
    Best,
    load_checkpoint,
    load_model_state,
    random_kept,
    random_states,
    set_random_states,
)  # fmt: skip
from s3prl_varan.training.data import Batch, Loaders
from s3prl_varan.training.dynamics import Replacements, dynamics_table
from s3prl_varan.training.evaluation import Evaluation, Evaluator, elbo_terms, to_device
from s3prl_varan.training.guards import listed, naming_clips
from s3prl_varan.training.stopping import Stopped, StopRequests
from s3prl_varan.tuning.lora import check_lora_gradients

logger = logging.getLogger(__name__)


class Trainer:
    """`run` trains and tests; `test` alone evaluates.

    folder: of the experiment. artifacts: writes there; None in all processes but one.
    """

    def __init__(
        self,
        model: SpeechModel,
        task: Task,
        config: Config,
        loaders: Loaders,
        accelerator: Accelerator,
        folder: Path,
        artifacts: Artifacts | None,
    ):
        self.model, self.task, self.config = model, task, config
        self.loaders, self.accelerator = loaders, accelerator
        self.folder, self.artifacts = folder, artifacts
        self.options = config.runner
        self.evaluator = Evaluator(model, task, accelerator)
        self.step, self.best = 0, Best()
        self.losses: list[dict[str, Tensor]] = []  # of the steps since the last row of metrics
        self.records: list[Record] = []
        self.lora_checked = False

    def run(self, resume: dict[str, Any] | None, tested: Sequence[str]) -> None:
        """Train to total_steps or until dev is flat, then test the best checkpoint on dev."""
        try:
            self._run(resume, tested)
        finally:  # TensorBoard's last events, however it ended
            if self.artifacts is not None:
                self.artifacts.close()

    def _run(self, resume: dict[str, Any] | None, tested: Sequence[str]) -> None:
        started = time.perf_counter()
        self.setup(resume)
        self.train()
        seconds = time.perf_counter() - started
        self.accelerator.wait_for_everyone()
        load_model_state(self.model, load_checkpoint(self.folder / BEST), self.folder / BEST)
        done = self.test(tested, self.best.step)
        if self.artifacts is not None:
            self.artifacts.write_result(self.best, done, self.step, seconds)
            print(f"experiment: {self.folder}")

    # ---- training

    def setup(self, resume: dict[str, Any] | None) -> None:
        """Optimizer, schedule and batches, from the start or from where a checkpoint left off."""
        model, steps = self.model, self.options.total_steps
        optimizer = build_optimizer(model.parts, self.config.optimizer)
        self.scheduler = build_scheduler(optimizer, steps, self.config.scheduler)
        if resume is not None:
            self._restore(resume, optimizer)
        if self.artifacts is not None:
            self.artifacts.rewind(self.step)
            self.artifacts.write_config()
            print(parameter_table(count_parameters(model.parts)))
        self.trained = [each for each in model.parameters() if each.requires_grad]
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        start = self.step * self.options.gradient_accumulate_steps
        loader = self.loaders.train(self.options.train_dataloader, start)
        self.batches: Iterator[Batch] = iter(loader)
        if resume is not None:  # last of all, so that nothing draws in between
            with self._fitting():
                set_random_states(resume["Random"])

    def _restore(self, resume: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """All but the generators, which come last."""
        self._check_states(resume)
        with self._fitting():
            self.step, self.best = resume["Step"], Best(**resume["Best"])
            optimizer.load_state_dict(resume["Optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(resume["Scheduler"])
            if self.accelerator.scaler is not None and resume.get("Scaler"):
                self.accelerator.scaler.load_state_dict(resume["Scaler"])
            device, unlogged = self.accelerator.device, resume["Unlogged"]
            self.losses = [
                {name: torch.tensor(term, device=device) for name, term in terms.items()}
                for terms in unlogged["losses"]
            ]
            self.records = json.loads(unlogged["records"])

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """What a checkpoint's states raise where they are not those of this run, as UserError."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder}: the states of this checkpoint do not fit this run "
                f"({type(error).__name__}: {error}). Resume from another states-*.ckpt, or start "
                "from its weights with -i."
            ) from error

    def _check_states(self, resume: dict[str, Any]) -> None:
        """UserError where a checkpoint cannot be gone on from, or what it counts on is gone."""
        lacks = [key for key in STATES if key not in resume]
        if lacks:
            raise UserError(
                f"{self.folder}: this checkpoint is for evaluation, it has no {', '.join(lacks)}. "
                "Resume from a states-*.ckpt, or start from its weights with -i."
            )
        if resume["Best"].get("value") is not None and not (self.folder / BEST).is_file():
            raise UserError(
                f"{self.folder / BEST} is gone: the best checkpoint so far, of step "
                f"{resume['Best'].get('step')}, cannot be tested at the end. Put it back, or start "
                "anew with --overwrite."
            )

    def train(self) -> None:
        """Steps, and between them logs, evaluations and checkpoints."""
        options = self.options
        bar = tqdm(
            total=options.total_steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=self.artifacts is None,
            dynamic_ncols=True,
        )
        stopped = 0
        # Unconditionally, and after every evaluation: a mode is set, never assumed.
        self.model.train()
        with StopRequests() as requests, bar:
            while self.step < options.total_steps and not self.dev_is_flat:
                self.losses.append(self._step())
                self.step += 1
                bar.update()
                last = self.step == options.total_steps
                if self.step % options.log_step == 0 or last:
                    self._log(bar)
                if self.step % options.eval_step == 0 or last:
                    self._evaluate_dev(bar)
                    self.model.train()
                stopped = self._agreed(requests.received)
                if self.step % options.save_step == 0 or last or self.dev_is_flat or stopped:
                    self._save_states()
                if stopped:
                    break
        if stopped and self.step < options.total_steps:
            requests.hand_on()
            raise Stopped(stopped, self.folder, self.step)

    def _agreed(self, signal_number: int) -> int:
        """The signal that any process got: they must stop at the same step. 0: none."""
        if self.accelerator.num_processes == 1:
            return signal_number
        received = torch.tensor(signal_number, device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())

    @property
    def dev_is_flat(self) -> bool:
        """Has dev stopped improving?"""
        patience = self.options.early_stop
        return patience > 0 and self.best.evaluations_since >= patience

    def _step(self) -> dict[str, Tensor]:
        """One optimizer step, over gradient_accumulate_steps batches: mean terms, on the device."""
        count = self.options.gradient_accumulate_steps
        sums: dict[str, Tensor] = {}
        clips: list[list[str]] = []  # names, of each batch
        for _ in range(count):
            batch = next(self.batches)
            clips.append(batch.names)
            guard = naming_clips(batch.names, batch.wavs)
            with guard, self.accelerator.accumulate(self.wrapped):
                step = self.wrapped(*to_device(self.model, batch, self.accelerator.device))
                terms = elbo_terms(step.terms)
                self.accelerator.backward(terms["loss"])
                self._after_backward(terms, clips)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.detach().float() / count
            if step.prediction is not None and self.artifacts is not None:
                self.records += self.task.records(step.prediction, batch.items)
        if self.scheduler is not None and not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        return sums

    def _after_backward(self, terms: dict[str, Tensor], clips: list[list[str]]) -> None:
        """Gradients that are not there or not finite stop the run; large ones are clipped."""
        if not self.lora_checked:
            check_lora_gradients(self.model.upstream)
            self.lora_checked = True
        norm = None
        if self.accelerator.sync_gradients:
            clip = self.options.gradient_clipping or math.inf
            norm = self.accelerator.clip_grad_norm_(self.trained, clip)
        self._check_finite(terms, norm, clips)

    def _check_finite(
        self, terms: dict[str, Tensor], norm: Tensor | None, clips: list[list[str]]
    ) -> None:
        # fp16's loss scaling overflows in passing: then only the norm is not finite.
        scaled = self.accelerator.scaler is not None
        bad_norm = not scaled and norm is not None and not math.isfinite(float(norm))
        bad_loss = not bool(torch.isfinite(terms["loss"]))
        if bad_norm or bad_loss:
            names = listed(sum(clips[-1:] if bad_loss else clips, []))
            shown = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
            raise UserError(
                f"Training diverged at step {self.step + 1}: {shown}, gradient norm "
                f"{float(norm or 0):.4g}, on the clips {names}. Lower optimizer.lr, lengthen the "
                "warm-up, or set runner.precision: fp32. The checkpoints written so far are kept."
            )

    @random_kept()
    def _log(self, bar: tqdm) -> None:
        losses, records, self.losses, self.records = self.losses, self.records, [], []
        if self.artifacts is None:
            return
        means = {
            name: float(torch.stack([terms[name] for terms in losses]).mean()) for name in losses[0]
        }
        figures = {**means, **(self.task.score(records) if records else {})}
        rate = self.optimizer.param_groups[-1]["lr"]
        self.artifacts.write_metrics(self.step, "train", {**figures, "lr": rate})
        bar.set_postfix(loss=f"{means['loss']:.3f}")

    @random_kept()
    def _evaluate_dev(self, bar: tqdm) -> None:
        """Evaluate every split of eval_dataloaders; the first dev split chooses the checkpoint."""
        splits = self.options.eval_dataloaders
        deciding = next(name for name in splits if name.startswith("dev"))
        for split in splits:
            # Drawing takes longer than a small split does.
            evaluation = self.evaluate(split, self.step, final=False)
            if split != deciding:
                continue
            task, figures = self.task, evaluation.figures
            improved = self.best.update(self.step, figures, task.metric, task.higher_is_better)
            if self.artifacts is None:
                continue
            shown = [f"{k} {v:.2f}" for k, v in figures.items() if k not in ("nll", "kl")]
            mark = "  (best so far)" if improved else ""
            bar.write(f"step {self.step} {split}: {', '.join(shown)}{mark}")
            if improved:
                self.artifacts.save_best(self.step, self.best)

    def _save_states(self) -> None:
        if self.artifacts is not None:
            scheduler, scaler = self.scheduler, self.accelerator.scaler
            states = {
                "Optimizer": self.optimizer.state_dict(),
                "Scheduler": None if scheduler is None else scheduler.state_dict(),
                "Scaler": None if scaler is None else scaler.state_dict(),
                "Random": random_states(),
                "Unlogged": self._unlogged(),
            }
            self.artifacts.save_states(self.step, self.best, states)

    def _unlogged(self) -> dict[str, Any]:
        """What the next row of metrics.jsonl is made of, as plain values."""
        try:
            records = json.dumps(self.records)
        except TypeError:  # of a user's own task: that row then tells of the steps after a resume
            records = "[]"
        losses = [{name: float(term) for name, term in terms.items()} for terms in self.losses]
        return {"losses": losses, "records": records}

    # ---- evaluation

    def evaluate(
        self,
        split: str,
        step: int,
        *,
        final: bool = True,
        replacements: Replacements | None = None,
    ) -> Evaluation:
        """Evaluate a split and write what came out; final: of the best checkpoint, at the end."""
        loader = self.loaders.evaluation(split)
        evaluation = self.evaluator.evaluate(split, loader, replacements)
        if self.artifacts is not None:
            self.artifacts.write_evaluation(evaluation, step, final=final)
        return evaluation

    def test(self, splits: Sequence[str], step: int) -> dict[str, Evaluation]:
        """Evaluate splits, see whether q(l | x) is any good for them, and print their figures."""
        others = self.replacements()
        done = {split: self.evaluate(split, step, replacements=others) for split in splits}
        if self.artifacts is not None:
            print(figures_table({split: each.figures for split, each in done.items()}))
            if others is not None:
                print("\nq(l | x), what it knows of the input and what that is worth:")
                metric = self.task.metric
                looked = {split: (one.figures[metric], one.dynamics) for split, one in done.items()}
                print(dynamics_table(metric, looked))
        return done

    def replacements(self) -> Replacements | None:
        """What to put in the place of an input-dependent q(l | x)."""
        count, split = self.options.dynamics_clips, self.options.train_dataloader
        if not self.model.featurizer.depends_on_input or not count:
            return None
        posteriors = None
        try:
            posteriors = self.evaluator.posteriors(self.loaders.sample(split, count))
        except UserError as error:  # -m evaluate where the training set is not at hand
            logger.warning("no static twin, '%s' cannot be read: %s", split, error)
        return Replacements(self.model.featurizer.prior, posteriors)
