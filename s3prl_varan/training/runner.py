"""The training and evaluation loop, one for all tasks, on `accelerate` (one process, torchrun or accelerate launch alike)."""

import json
import math
import sys
import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3prl_varan.app import experiment
from s3prl_varan.config.reading import Config
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.downstream import heads_spec, quiet
from s3prl_varan.model import SpeechModel
from s3prl_varan.tasks.registry import Task
from s3prl_varan.training.checkpoint import (
    BEST,
    load_checkpoint,
    load_model_state,
    model_state,
    save_checkpoint,
    write_atomic,
)
from s3prl_varan.training.layer_report import write_layer_weights
from s3prl_varan.training.lengths import SAMPLE_RATE
from s3prl_varan.training.loaders import EpochBatches, eval_loader, lengths_to_batch, train_loader
from s3prl_varan.training.optim import build_optimizer, build_scheduler
from s3prl_varan.training.parameter_table import format_parameter_table
from s3prl_varan.training.results import (
    Best,
    Evaluation,
    experiment_result,
    figures_table,
    model_parameters,
    plain_args,
)
from s3prl_varan.tuning.lora import check_lora_gradients


class Runner:
    """setup in __init__, then `train` or `evaluate_splits`."""

    def __init__(self, args: Namespace, config: Config, task: Task, model: SpeechModel):
        self.args, self.config, self.task, self.model = args, config, task, model
        self.expdir = Path(args.expdir)
        options = config.runner
        precision = "fp16" if options.fp16 else options.precision
        AcceleratorState._reset_state()  # several experiments may run in one process, one after another
        GradientState._reset_state()
        self.accelerator = Accelerator(
            cpu=args.device == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_steps=options.gradient_accumulate_steps,
        )
        self.device = self.accelerator.device
        self.model.to(self.device)
        self.is_main = self.accelerator.is_main_process
        self.writer = (
            SummaryWriter(str(self.expdir)) if self.is_main and args.mode == "train" else None
        )
        self.eval_loaders: dict[str, Any] = {}
        self.lora_checked = False
        if args.verbose and self.is_main:
            print(model)
        if args.cache and args.mode != "inference":
            self._attach_cache()
        if options.compile and args.mode == "train":
            from s3prl_varan.training.compiled import compile_model

            print(compile_model(model), file=sys.stderr)

    def _attach_cache(self) -> None:
        """Take the frozen upstream's features from the cache, and say what will fit."""
        from s3prl_varan.features.cache import attach_cache

        options, asked = (
            self.config.runner,
            experiment.split_names(self.args, self.task, self.config),
        )
        if self.args.mode == "train":
            asked = [options.train_dataloader, *options.eval_dataloaders, *asked]
        with quiet():
            datasets = [
                self.model.downstream.expert.get_dataloader(split).dataset
                for split in dict.fromkeys(asked)
            ]
        root = self.expdir / "cache" if self.args.cache == "auto" else Path(self.args.cache)
        message = attach_cache(self.model, root, datasets, budget_gb=self.args.cache_gb)
        if self.is_main:
            print(message, file=sys.stderr)

    # ---- training

    def train(self, resume: dict[str, Any] | None) -> None:
        """Train to total_steps (or until early_stop), then evaluate the best checkpoint on the test splits."""
        options, started = self.config.runner, time.perf_counter()
        if self.is_main:
            write_atomic(
                self.expdir / "config.yaml",
                _to_yaml({"args": plain_args(self.args), "config": self.config.raw}),
            )
        optimizer = build_optimizer(self.model, self.config)
        scheduler = build_scheduler(
            optimizer, options.total_steps, self.config.raw.get("scheduler")
        )
        step, best = 0, Best()
        if resume is not None:
            step, best = resume["Step"], Best(**resume["Best"])
            optimizer.load_state_dict(resume["Optimizer"])
            if scheduler is not None:
                scheduler.load_state_dict(resume["Scheduler"])
            torch.set_rng_state(resume["Rng"])
        if self.is_main:
            print(format_parameter_table(model_parameters(self.model)))
        self.trainable = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]
        wrapped, optimizer = self.accelerator.prepare(self.model, optimizer)
        batches = self._train_batches(step * options.gradient_accumulate_steps)
        stream = iter(batches)
        bar = tqdm(
            total=options.total_steps,
            initial=step,
            desc="train",
            unit="step",
            disable=not self.is_main,
            dynamic_ncols=True,
        )
        records: dict[str, list] = defaultdict(list)
        losses: list[dict[str, Tensor]] = []
        # Unconditionally: `training` is True in a new module whose upstream was put in eval mode by its probe.
        self.model.train()
        while step < options.total_steps and not self._flat(best):
            losses.append(self._step(wrapped, optimizer, scheduler, stream, records, step))
            step += 1
            bar.update()
            if step % options.log_step == 0 or step == options.total_steps:
                self._log_training(step, records, losses, optimizer, bar)
                records, losses = defaultdict(list), []
            last = step == options.total_steps
            if step % options.eval_step == 0 or last:
                self._evaluate_during_training(step, best, bar)
                self.model.train()
            if step % options.save_step == 0 or last or self._flat(best):
                self._save_states(step, best, optimizer, scheduler)
        bar.close()
        if self.writer:
            self.writer.flush()
        self._conclude(best, step, time.perf_counter() - started)

    def _train_batches(self, start: int) -> Any:
        with quiet():
            loader = self.model.downstream.expert.get_dataloader(
                self.config.runner.train_dataloader
            )
        world = self.accelerator.num_processes
        batches = EpochBatches(
            loader,
            self.args.seed,
            rank=self.accelerator.process_index,
            world=world,
            start=start,
            **self._by_length(loader, self.config.runner.train_dataloader),
        )
        return train_loader(loader, batches)

    def _by_length(self, loader: Any, split: str) -> dict[str, Any]:
        """What batches by length need to know, if the config asks for them."""
        options = self.config.runner
        if not options.batch_by_length:
            return {}
        seconds = options.batch_seconds
        return {
            "lengths": lengths_to_batch(loader.dataset, split),
            "max_samples": seconds and seconds * SAMPLE_RATE,
        }

    def _step(
        self,
        wrapped: Any,
        optimizer: Any,
        scheduler: Any,
        stream: Any,
        records: dict[str, list],
        step: int,
    ) -> dict[str, Tensor]:
        """One optimizer step, over gradient_accumulate_steps batches. Returns the mean terms, on the device."""
        options = self.config.runner
        sums: dict[str, Tensor] = {}
        for _ in range(options.gradient_accumulate_steps):
            wavs, *others = next(stream)
            with self.accelerator.accumulate(wrapped):
                terms = wrapped(
                    options.train_dataloader, self._to_device(wavs), tuple(others), records
                )
                self.accelerator.backward(terms["loss"])
                if self.args.lora and not self.lora_checked:
                    check_lora_gradients(self.model.upstream)
                    self.lora_checked = True
                if self.accelerator.sync_gradients:
                    clip = options.gradient_clipping or math.inf
                    norm = self.accelerator.clip_grad_norm_(self.trainable, clip)
                    self._check_finite(terms, norm, step)
                optimizer.step()
                optimizer.zero_grad()
            for name, term in terms.items():
                sums[name] = (
                    sums.get(name, 0.0) + term.detach().float() / options.gradient_accumulate_steps
                )
        if scheduler is not None and not self.accelerator.optimizer_step_was_skipped:
            scheduler.step()
        return sums

    def _check_finite(self, terms: dict[str, Tensor], norm: Tensor | None, step: int) -> None:
        """Stop on a loss that is no number. (fp16's loss scaling overflows in passing: then only the norm is not finite.)"""
        scaled = self.accelerator.scaler is not None
        bad = not bool(torch.isfinite(terms["loss"])) or (
            not scaled and norm is not None and not math.isfinite(float(norm))
        )
        if bad:
            shown = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
            raise UserError(
                f"Training diverged at step {step + 1}: {shown}, gradient norm {float(norm or 0):.4g}. Lower optimizer.lr, "
                "lengthen the warm-up, or set runner.precision: fp32. The checkpoints written so far are kept."
            )

    def _to_device(self, wavs: Any) -> list[Tensor]:
        device = (
            "cpu" if self.model.cached_encoder is not None else self.device
        )  # a cache looks at the samples first
        return [
            torch.as_tensor(wav, dtype=torch.float32).to(device, non_blocking=True) for wav in wavs
        ]

    def _flat(self, best: Best) -> bool:
        """Has dev stopped improving?"""
        patience = self.config.runner.early_stop
        return patience > 0 and best.evaluations_since >= patience

    def _log_training(
        self, step: int, records: dict, losses: list[dict[str, Tensor]], optimizer: Any, bar: tqdm
    ) -> None:
        means = {
            name: float(torch.stack([terms[name] for terms in losses]).mean()) for name in losses[0]
        }
        if not self.is_main:
            return
        self._write_metrics(
            {"step": step, "split": "train", **means, "lr": optimizer.param_groups[-1]["lr"]}
        )
        if self.writer:
            for name, value in means.items():
                self.writer.add_scalar(f"train/{name}", value, step)
        bar.set_postfix(loss=f"{means['loss']:.3f}")
        self._expert_log(self.config.runner.train_dataloader, records, step)

    def _evaluate_during_training(self, step: int, best: Best, bar: tqdm) -> None:
        """Evaluate every split of eval_dataloaders; the first dev split decides on the best checkpoint."""
        splits = self.config.runner.eval_dataloaders
        deciding = next(name for name in splits if name.startswith("dev"))
        for split in splits:
            evaluation = self.evaluate(
                split, step, picture=False
            )  # drawing takes longer than a small split
            if not self.is_main or split != deciding:
                if split == deciding:
                    self._update_best(best, step, evaluation)
                continue
            improved = self._update_best(best, step, evaluation)
            shown = ", ".join(
                f"{name} {value:.2f}"
                for name, value in evaluation.figures.items()
                if name not in ("nll", "kl")
            )
            bar.write(f"step {step} {split}: {shown}{'  (best so far)' if improved else ''}")
            if improved:
                save_checkpoint(self.expdir / BEST, self._payload(step, best))

    def _update_best(self, best: Best, step: int, evaluation: Evaluation) -> bool:
        value = evaluation.figures[self.task.metric]
        improved = self.task.better(value, best.value)
        best.evaluations_since = 0 if improved else best.evaluations_since + 1
        if improved:
            best.step, best.value, best.figures = step, value, evaluation.figures
        return improved

    # ---- evaluation

    @torch.no_grad()
    def evaluate(self, split: str, step: int, *, picture: bool = True) -> Evaluation:
        """Figures and records of a whole split, gathered over all processes; written to metrics.jsonl."""
        self.model.eval()
        loader = self._eval_loader(split)
        records: dict[str, list] = defaultdict(list)
        sums: dict[str, float] = defaultdict(float)
        count = 0
        for wavs, *others in tqdm(
            loader, desc=split, leave=False, disable=not self.is_main, dynamic_ncols=True
        ):
            with self.accelerator.autocast():
                terms = self.model(split, self._to_device(wavs), tuple(others), records)
            for name, term in terms.items():
                sums[name] += float(term) * len(wavs)
            count += len(wavs)
        records, sums, count = self._gather(dict(records), dict(sums), count)
        figures = {
            **self.task.measure(records),
            **{name: value / count for name, value in sums.items()},
        }
        evaluation = Evaluation(split, figures, records)
        if self.is_main:
            self._record(evaluation, step, picture)
        return evaluation

    def _eval_loader(self, split: str) -> Any:
        if split not in self.eval_loaders:
            with quiet():
                loader = self.model.downstream.expert.get_dataloader(split)
            accelerator = self.accelerator
            self.eval_loaders[split] = eval_loader(
                loader,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
                **self._by_length(loader, split),
            )
        return self.eval_loaders[split]

    def _gather(self, records: dict, sums: dict, count: int) -> tuple[dict, dict, int]:
        if self.accelerator.num_processes == 1:
            return records, sums, count
        from accelerate.utils import gather_object

        parts = gather_object([(records, sums, count)])
        keys = {key for part in parts for key in part[0]}
        merged = {key: [item for part in parts for item in part[0].get(key, [])] for key in keys}
        return (
            merged,
            {key: sum(part[1].get(key, 0.0) for part in parts) for key in sums},
            sum(part[2] for part in parts),
        )

    def _record(self, evaluation: Evaluation, step: int, picture: bool) -> None:
        weights = torch.tensor(evaluation.records["layer_weights"]).mean(dim=0).tolist()
        self._write_metrics(
            {
                "step": step,
                "split": evaluation.split,
                **evaluation.figures,
                "layer_weights": weights,
            }
        )
        if self.writer:
            for name, value in evaluation.figures.items():
                self.writer.add_scalar(f"{evaluation.split}/{name}", value, step)
        self._expert_log(evaluation.split, evaluation.records, step)
        if len(self.model.featurizer.layers) > 1:
            layers = self.model.featurizer.layers
            write_layer_weights(
                self.expdir,
                self.task,
                layers,
                evaluation.split,
                evaluation.records,
                picture=picture,
            )

    def evaluate_splits(self, step: int) -> dict[str, Evaluation]:
        """Evaluate the splits of -t and print their figures."""
        splits = experiment.split_names(self.args, self.task, self.config)
        done = {split: self.evaluate(split, step) for split in splits}
        if self.is_main:
            print(figures_table({split: evaluation.figures for split, evaluation in done.items()}))
        return done

    # ---- what is left behind

    def _conclude(self, best: Best, step: int, seconds: float) -> None:
        """The best dev checkpoint on the test splits: table, result.json."""
        self.accelerator.wait_for_everyone()
        path = self.expdir / BEST
        load_model_state(self.model, load_checkpoint(path), path)
        done = self.evaluate_splits(best.step)
        if not self.is_main:
            return
        result = experiment_result(self.args, self.config, self.task, self.model, best, done)
        result.update(steps=step, seconds=round(seconds, 2))
        write_atomic(self.expdir / "result.json", json.dumps(result, indent=2) + "\n")
        print(f"experiment: {self.expdir}")

    def _payload(self, step: int, best: Best) -> dict[str, Any]:
        return {
            **model_state(self.model, lora=experiment.plain_lora(self.args, self.config)),
            "Heads": heads_spec(self.model.downstream),
            "Args": plain_args(self.args),
            "Config": self.config.raw,
            "Step": step,
            "Best": vars(best),
        }

    def _save_states(self, step: int, best: Best, optimizer: Any, scheduler: Any) -> None:
        if not self.is_main:
            return
        payload = {
            **self._payload(step, best),
            "Optimizer": optimizer.state_dict(),
            "Scheduler": None if scheduler is None else scheduler.state_dict(),
            "Rng": torch.get_rng_state(),
        }
        save_checkpoint(self.expdir / f"states-{step}.ckpt", payload)
        states = sorted(
            self.expdir.glob("states-*.ckpt"), key=lambda path: int(path.stem.split("-")[1])
        )
        for path in states[: -max(1, self.config.runner.max_keep)]:
            path.unlink()

    def _write_metrics(self, row: dict[str, Any]) -> None:
        with open(self.expdir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _expert_log(self, split: str, records: dict[str, list], step: int) -> None:
        """The expert's own log: prediction files and TensorBoard scalars under s3prl's names."""
        logger_or_none = self.writer or _NoLogger()
        with quiet():
            self.model.downstream.expert.log_records(
                split,
                records=records,
                logger=logger_or_none,
                global_step=step,
                batch_ids=[],
                total_batch_num=0,
            )


class _NoLogger:
    """Takes scalars where no TensorBoard run is open."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""


def _to_yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False)
