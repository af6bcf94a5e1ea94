"""The stages of pre-training: units, masked prediction, checkpoints, curves; stops and resumes at any saved step."""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from s3prl_varan.errors import UserError

from .audio_cache import AudioCache, build_cache
from .batches import CropSampler
from .config import SAMPLE_RATE, OptimConfig, PretrainConfig, StageConfig
from .curves import draw_curves, keep_until, write_metrics
from .frontend import start_from_mel
from .predictor import Prediction, UnitPredictor, build_wavlm
from .units import build_units, layer_features, mfcc_context_features, mfcc_features

MUON_LR = 2.0  # Muon's learning rate, its update scaled to the size of Adam's, in multiples of the stage's


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then a cosine down to 2 % of `peak`."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".tmp")
    torch.save(payload, partial)
    os.replace(partial, path)


def seed_step(*numbers: int) -> None:
    """Fix the global generators, which masks and dropout draw from, by the step: a resumed run draws the same."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    np.random.seed(seed)
    torch.manual_seed(seed)


def draw_mask(shape: torch.Size, config: OptimConfig) -> torch.Tensor:
    """[B, T] bool spans of `mask_length` frames, drawn by s3prl's WavLM code."""
    from s3prl.upstream.wavlm.WavLM import compute_mask_indices

    mask = compute_mask_indices(
        tuple(shape), None, config.mask_prob, config.mask_length, min_masks=2
    )
    return torch.from_numpy(mask)


class Stage:
    """One stage in training: the model, its optimiser and the place in the schedule."""

    def __init__(
        self, number: int, config: PretrainConfig, sampler: CropSampler, wavlm: Any
    ) -> None:
        self.number, self.config, self.sampler = number, config, sampler
        self.settings: StageConfig = config.stages[number]
        optim, settings = config.optim, self.settings
        head = (
            settings.units,
            optim.head_dim,
            optim.temperature,
            settings.visible_weight,
            sorted(settings.below),
        )
        self.model = UnitPredictor(wavlm, *head)
        inner = (
            [p for p in wavlm.encoder.layers.parameters() if p.ndim == 2] if settings.muon else []
        )
        ours = {id(p) for p in inner}
        rest = [p for p in self.model.parameters() if id(p) not in ours]
        decayed = {"params": [p for p in rest if p.ndim >= 2], "weight_decay": optim.weight_decay}
        plain = {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}
        adam = torch.optim.AdamW([decayed, plain], lr=settings.lr, betas=(0.9, 0.98), fused=True)
        self.optimizers: list[torch.optim.Optimizer] = [adam]
        if inner:
            decay, like = optim.weight_decay, "match_rms_adamw"
            self.optimizers.append(
                torch.optim.Muon(
                    inner, lr=MUON_LR * settings.lr, weight_decay=decay, adjust_lr_fn=like
                )
            )
        self.step = 0

    def _predict(self, step: int, valid: bool) -> Prediction:
        batch = self.sampler.draw(step, valid)
        seed_step(self.config.seed, self.number, step, int(valid))
        mask = draw_mask(batch.units.shape, self.config.optim)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.optim.bf16):
            return self.model(batch.wavs, mask, batch.units)

    def train_step(self) -> dict[str, float]:
        optim = self.config.optim
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    self.step, self.settings.steps, optimizer.defaults["lr"], optim.warmup
                )
        rate = self.optimizers[0].param_groups[0]["lr"]
        self.model.train()
        found = self._predict(self.step, valid=False)
        found.total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip)
        if not torch.isfinite(norm):
            raise UserError(
                f"the gradient is not finite at step {self.step}; lower lr ({self.settings.lr})"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss": found.loss.item(),
            "accuracy": found.accuracy.item(),
            "visible_accuracy": found.visible_accuracy.item(),
            "grad_norm": norm.item(),
            "lr": rate,
        }

    @torch.no_grad()
    def validate(self, batches: int = 8) -> dict[str, float]:
        self.model.eval()
        found = [self._predict(i, valid=True) for i in range(batches)]
        return {
            "valid_loss": float(np.mean([f.loss.item() for f in found])),
            "valid_accuracy": float(np.mean([f.accuracy.item() for f in found])),
        }

    def save(self, path: Path) -> None:
        payload = {
            "stage": self.number,
            "step": self.step,
            "cfg": dict(self.model.wavlm.cfg.__dict__),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        save_checkpoint(path, payload)

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]


class Trainer:
    """Runs all stages into the folder `out`.

    Files: audio.i16 and audio.json (the cache), STAGE.units.npy, STAGE.ckpt, last.ckpt, metrics.jsonl, curves.png.
    """

    def __init__(self, config: PretrainConfig, data: list[str], out: Path, resume: bool) -> None:
        self.config, self.out = config, out
        last = out / "last.ckpt"
        if last.is_file() and not resume:
            raise UserError(
                f"{out} holds a run already; give --resume to go on with it, or another --out"
            )
        self.saved = torch.load(last, weights_only=True) if last.is_file() else None
        if self.saved is not None:
            keep_until(out / "metrics.jsonl", self.saved["stage"], self.saved["step"])
        self.cache: AudioCache = build_cache(data, out, config.max_piece)

    def run(self) -> Path:
        """Train every stage that is not finished; returns the checkpoint of the last one."""
        first = 0 if self.saved is None else self.saved["stage"]
        for number in range(first, len(self.config.stages)):
            self._run_stage(number)
        return self._stage_file(len(self.config.stages) - 1, "ckpt")

    def _stage_file(self, number: int, suffix: str) -> Path:
        return self.out / f"{self.config.stages[number].name}.{suffix}"

    def _wavlm_before(self, number: int) -> Any | None:
        if number == 0:
            return None
        path = self._stage_file(number - 1, "ckpt")
        if not path.is_file():
            raise UserError(
                f"{path} is missing: stage {number + 1} builds on it; start again without --resume"
            )
        model = build_wavlm(self.config.stage_model(number - 1))
        state = torch.load(path, weights_only=True)["model"]
        model.load_state_dict(
            {k.removeprefix("wavlm."): v for k, v in state.items() if k.startswith("wavlm.")}
        )
        return model

    def _new_wavlm(self, number: int, sampler: CropSampler, before: Any | None) -> Any:
        model, settings = build_wavlm(self.config.stage_model(number)), self.config.stages[number]
        if settings.warm_start != "no":
            assert before is not None, "load_config refuses a warm start in the first stage"
            everything = settings.warm_start == "all"
            state = {
                k: v
                for k, v in before.state_dict().items()
                if everything or not k.startswith("encoder.")
            }
            model.load_state_dict(state, strict=everything)
        elif self.config.mel_start:
            wavs = torch.cat([sampler.draw(step).wavs[:, :SAMPLE_RATE] for step in range(8)])
            start_from_mel(model.feature_extractor.conv_layers[0][0], wavs)
        return model

    def _run_stage(self, number: int) -> None:
        settings, seed = self.config.stages[number], self.config.seed
        before = self._wavlm_before(number)
        extract: Callable[[torch.Tensor], torch.Tensor]
        if settings.target == "layer":
            assert before is not None, "load_config refuses this target in the first stage"
            extract = partial(layer_features, before.eval(), layer=settings.layer)
        else:
            extract = {"mfcc": mfcc_features, "mfcc_context": mfcc_context_features}[
                settings.target
            ]
        units = build_units(
            self.cache, extract, settings.units, seed, self._stage_file(number, "units.npy")
        )
        torch.manual_seed(seed + number)
        sampler = CropSampler(self.cache, units, self.config.batch, seed + number, settings.speed)
        stage = Stage(number, self.config, sampler, self._new_wavlm(number, sampler, before))
        if self.saved is not None and self.saved["stage"] == number:
            stage.load(self.saved)
        self._train(stage)
        stage.save(self._stage_file(number, "ckpt"))

    def _train(self, stage: Stage) -> None:
        from tqdm import tqdm

        log, settings = self.config.log, stage.settings
        recent: list[dict[str, float]] = []
        began = time.monotonic()
        bar = tqdm(
            total=settings.steps, initial=stage.step, desc=settings.name, unit="step", mininterval=5
        )
        while stage.step < settings.steps:
            recent.append(stage.train_step())
            bar.update()
            finished = stage.step == settings.steps
            if stage.step % log.every == 0 or finished:
                row = {key: float(np.mean([r[key] for r in recent])) for key in recent[0]}
                row["steps_per_second"] = len(recent) / (time.monotonic() - began)
                if stage.step % log.valid_every == 0 or finished:
                    row.update(stage.validate())
                write_metrics(
                    self.out / "metrics.jsonl", {"stage": stage.number, "step": stage.step, **row}
                )
                bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.3f}")
                recent, began = [], time.monotonic()
            if stage.step % log.save_every == 0 or finished:
                stage.save(self.out / "last.ckpt")
                draw_curves(
                    self.out / "metrics.jsonl",
                    self.out / "curves.png",
                    [s.name for s in self.config.stages],
                )
        bar.close()
