"""The stages of pre-training: units, masked prediction, checkpoints; resumes at any saved step."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError
from s3prl_varan.files import atomic_path

from .audio_cache import AudioCache, build_cache
from .batches import CropSampler
from .config import OptimConfig, PretrainConfig, StageConfig
from .curves import Log
from .frontend import start_from_mel
from .predictor import Prediction, UnitPredictor, build_wavlm, encoder_state
from .units import (
    Extractor,
    build_units,
    layer_features,
    mfcc_context_features,
    mfcc_features,
)  # fmt: skip

MUON_LR = 2.0  # Muon's rate in multiples of the stage's; its updates are scaled to Adam's size
VALID_BATCHES = 8


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then a cosine to 2 % of `peak`."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def seed_step(*numbers: int) -> None:
    """Seed what masks and dropout draw from by the step: a resumed run draws the same."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    np.random.seed(seed)
    torch.manual_seed(seed)


def draw_mask(shape: torch.Size, config: OptimConfig) -> Tensor:
    """[B, T] bool spans of `mask_length` frames, drawn by s3prl's WavLM code."""
    from s3prl.upstream.wavlm.WavLM import compute_mask_indices

    prob, length = config.mask_prob, config.mask_length
    return torch.from_numpy(compute_mask_indices(tuple(shape), None, prob, length, min_masks=2))


def build_optimizers(
    model: UnitPredictor, stage: StageConfig, optim: OptimConfig
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the encoder's layers where the stage says so."""
    layers = model.wavlm.encoder.layers
    inner = [p for p in layers.parameters() if p.ndim == 2] if stage.muon else []
    taken = set(map(id, inner))
    rest = [p for p in model.parameters() if id(p) not in taken]
    decay = optim.weight_decay
    matrices = {"params": [p for p in rest if p.ndim >= 2], "weight_decay": decay}
    vectors = {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}
    adam = torch.optim.AdamW([matrices, vectors], lr=stage.lr, betas=(0.9, 0.98), fused=True)
    if not inner:
        return [adam]
    rate, like = MUON_LR * stage.lr, "match_rms_adamw"
    return [adam, torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn=like)]


class Stage:
    """One stage in training: the model, its optimisers and the place in the schedule."""

    def __init__(
        self, number: int, config: PretrainConfig, sampler: CropSampler, wavlm: Any
    ) -> None:
        self.number, self.config, self.sampler, self.step = number, config, sampler, 0
        self.settings, self.optim = config.stages[number], config.optim
        self.model = UnitPredictor(
            wavlm,
            self.settings.units,
            self.optim.head_dim,
            self.optim.temperature,
            self.settings.visible_weight,
            sorted(self.settings.below),
        )
        self.optimizers = build_optimizers(self.model, self.settings, self.optim)

    def _predict(self, step: int, valid: bool) -> Prediction:
        batch = self.sampler.draw(step, valid)
        seed_step(self.config.seed, self.number, step, int(valid))
        mask = draw_mask(batch.units.shape, self.optim)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.optim.bf16):
            return self.model(batch.wavs, mask, batch.units)

    def train_step(self) -> dict[str, float]:
        """A step of all optimisers; what is logged of it."""
        steps, warmup = self.settings.steps, self.optim.warmup
        for optimizer in self.optimizers:
            rate = learning_rate(self.step, steps, optimizer.defaults["lr"], warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.model.train()
        found = self._predict(self.step, valid=False)
        found.total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
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
            "lr": self.optimizers[0].param_groups[0]["lr"],
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and accuracy on held-out crops."""
        self.model.eval()
        found = [self._predict(number, valid=True) for number in range(VALID_BATCHES)]
        return {
            "valid_loss": float(np.mean([each.loss.item() for each in found])),
            "valid_accuracy": float(np.mean([each.accuracy.item() for each in found])),
        }

    def save(self, path: Path) -> None:
        """Write all that going on needs."""
        payload = {
            "stage": self.number,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic_path(path) as temporary:
            torch.save(payload, temporary)

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]


def pretrain(config: PretrainConfig, data: list[str], out: Path, *, resume: bool) -> Path:
    """Train every stage that is not finished; returns the checkpoint of the last one.

    Files in `out`: audio.i16 and audio.json (the cache), STAGE.units.npy, STAGE.ckpt, last.ckpt,
    metrics.jsonl, curves.png.
    """
    if any(stage.muon for stage in config.stages) and not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"stages with `muon: true` need torch 2.9 or newer, found {torch.__version__}. Update "
            "torch, or set it to false; other weights come out then."
        )
    last, saved = out / "last.ckpt", None
    if last.is_file():
        if not resume:
            raise UserError(
                f"{out} holds a run already; give --resume to go on with it, or another --out"
            )
        saved = torch.load(last, weights_only=True)
    log = Log(out, saved and (saved["stage"], saved["step"]))
    cache = build_cache(data, out, config.max_piece)
    for number in range(saved["stage"] if saved else 0, len(config.stages)):
        stage = prepare_stage(number, config, cache, out)
        if saved and saved["stage"] == number:
            stage.load(saved)
        train(stage, log, out)
        stage.save(out / f"{stage.settings.name}.ckpt")
    return out / f"{config.stages[-1].name}.ckpt"


def prepare_stage(number: int, config: PretrainConfig, cache: AudioCache, out: Path) -> Stage:
    """The stage's units and its model, before the first step."""
    settings, seed = config.stages[number], config.seed
    before = None
    if number > 0:
        before = build_wavlm(config.stage_model(number - 1)).eval()
        before.load_state_dict(encoder_state(out / f"{config.stages[number - 1].name}.ckpt"))
    extractors: dict[str, Extractor] = {
        "mfcc": mfcc_features,
        "mfcc_context": mfcc_context_features,
        "layer": partial(layer_features, before, layer=settings.layer),
    }
    extract, path = extractors[settings.target], out / f"{settings.name}.units.npy"
    units = build_units(cache, extract, settings.units, seed, path)
    torch.manual_seed(seed + number)
    sampler = CropSampler(cache, units, config.batch, seed + number, settings.speed)
    return Stage(number, config, sampler, new_wavlm(number, config, sampler, before))


def new_wavlm(number: int, config: PretrainConfig, sampler: CropSampler, before: Any) -> Any:
    """A stage's encoder: new, or with what it takes over from the one before."""
    model, start = build_wavlm(config.stage_model(number)), config.stages[number].warm_start
    if start == "all":
        model.load_state_dict(before.state_dict())
    elif start == "cnn":
        state = before.state_dict().items()
        kept = {key: value for key, value in state if not key.startswith("encoder.")}
        model.load_state_dict(kept, strict=False)
    elif config.mel_start:
        wavs = torch.cat([sampler.draw(step).wavs[:, :SAMPLE_RATE] for step in range(8)])
        start_from_mel(model.feature_extractor.conv_layers[0][0], wavs)
    return model


def train(stage: Stage, log: Log, out: Path) -> None:
    """Steps to the stage's end, with logs, validation and checkpoints between them."""
    every, steps, name = stage.config.log, stage.settings.steps, stage.settings.name
    recent: list[dict[str, float]] = []
    began = time.monotonic()
    left = range(stage.step + 1, steps + 1)
    bar = tqdm(left, initial=stage.step, total=steps, desc=name, unit="step", mininterval=5)
    for step in bar:
        recent.append(stage.train_step())
        if step % every.every == 0 or step == steps:
            row = {key: float(np.mean([each[key] for each in recent])) for key in recent[0]}
            row["steps_per_second"] = len(recent) / (time.monotonic() - began)
            if step % every.valid_every == 0 or step == steps:
                row |= stage.validate()
            log.add({"stage": stage.number, "step": step, **row})
            bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.3f}")
            recent, began = [], time.monotonic()
        if step % every.save_every == 0 or step == steps:
            stage.save(out / "last.ckpt")
            log.draw([each.name for each in stage.config.stages])
