"""Batches of equal-length crops, of (seed, step) only: a resumed run sees the same ones."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s3prl_varan.audio import SAMPLE_RATE

from .audio_cache import AudioCache, as_float
from .config import HOP, WINDOW, BatchConfig


@dataclass(frozen=True)
class UnitBatch:
    """Crops and what is to be predicted of them."""

    wavs: Tensor  # [B, samples] float32, zero mean, unit variance per crop
    units: Tensor  # [B, T] int64


def mix_crops(wavs: np.ndarray, prob: float, rng: np.random.Generator) -> np.ndarray:
    """WavLM's utterance mixing: add up to half a crop of another, at -5..5 dB energy ratio.

    wavs: [B, samples]; the units stay those of the first speaker. Source: Chen et al. 2022 (WavLM),
    section III-B.
    """
    mixed = wavs.copy()
    total = wavs.shape[1]
    for i in range(len(wavs)):
        if len(wavs) < 2 or rng.random() >= prob:
            continue
        other = wavs[(i + rng.integers(1, len(wavs))) % len(wavs)]
        size = int(rng.integers(total // 8, total // 2 + 1))
        source, place = rng.integers(0, total - size + 1, size=2)
        stretch = other[source : source + size]
        ratio = 10 ** (rng.uniform(-5, 5) / 10)
        energy = float((wavs[i] ** 2).mean()), float((stretch**2).mean())
        mixed[i, place : place + size] += stretch * np.sqrt(energy[0] / (energy[1] * ratio + 1e-8))
    return mixed


class CropSampler:
    """Draws crops of one random length per step: a folder (by duration ** power), a piece, a start.

    units: [total frames], of all pieces end to end. speed: crops are played 1 - speed to 1 + speed
    times as fast; held-out ones at their own pace.
    """

    def __init__(
        self,
        cache: AudioCache,
        units: np.ndarray,
        config: BatchConfig,
        seed: int,
        speed: float = 0.0,
    ) -> None:
        self.cache, self.units, self.config = cache, units, config
        self.seed, self.speed = seed, speed
        self.lengths, self.frame_counts = cache.lengths, cache.frame_counts
        self.frame_offsets = cache.frame_offsets
        order = np.random.default_rng(seed).permutation(len(self.lengths))
        held_out = max(1, round(config.valid_share * len(order))) if len(order) > 1 else 0
        self.valid, self.train = order[:held_out], order[held_out:]
        totals = np.bincount(cache.folders, weights=self.lengths)
        self.folder_weight = totals**config.folder_power / np.maximum(totals, 1)

    def draw(self, step: int, valid: bool = False) -> UnitBatch:
        """The batch of a step, or a held-out one."""
        pieces = self.valid if valid and len(self.valid) else self.train
        speed = 0.0 if valid else self.speed
        rng = np.random.default_rng([self.seed, int(valid), step])
        frames = int(rng.choice(self.config.crops) * SAMPLE_RATE / HOP)
        frames = min(frames, int(self.frame_counts[pieces].max()))
        samples = (frames - 1) * HOP + WINDOW
        longest = min(math.ceil(samples * (1 + speed)), self.lengths[pieces].max())
        usable = pieces[self.lengths[pieces] >= longest]
        weight = self.lengths[usable] * self.folder_weight[self.cache.folders[usable]]
        count = max(1, int(self.config.seconds * SAMPLE_RATE / HOP) // frames)
        chosen = rng.choice(usable, size=count, p=weight / weight.sum())
        rates = rng.uniform(1 - speed, 1 + speed, count) if speed else np.ones(count)
        rates = np.minimum(rates, self.lengths[chosen] / samples)  # a piece lasts that long only
        available = self.frame_counts[chosen]
        starts = rng.integers(0, np.maximum(1, available - np.ceil(frames * rates).astype(int) + 1))
        crops = zip(chosen, starts, rates, strict=True)
        wavs = np.stack([self._wav(piece, start, samples, rate) for piece, start, rate in crops])
        wavs = mix_crops(wavs, 0.0 if valid else self.config.mix_prob, rng)
        wavs = (wavs - wavs.mean(1, keepdims=True)) / np.sqrt(wavs.var(1, keepdims=True) + 1e-5)
        # Frames of the piece at its own speed, whose units these are.
        heard = starts[:, None] + np.rint(np.arange(frames) * rates[:, None]).astype(int)
        heard = np.minimum(heard, available[:, None] - 1)
        units = self.units[self.frame_offsets[chosen][:, None] + heard]
        return UnitBatch(torch.from_numpy(wavs), torch.from_numpy(units.astype(np.int64)))

    def _wav(self, piece: int, start: int, samples: int, rate: float) -> np.ndarray:
        """[samples] float32 from frame `start` on, `rate` times as fast (linear interpolation)."""
        begin, end = self.cache.offsets[piece] + start * HOP, self.cache.offsets[piece + 1]
        read = as_float(self.cache.samples[begin : min(begin + math.ceil(samples * rate), end)])
        if rate == 1:
            return read
        return np.interp(np.arange(samples) * rate, np.arange(len(read)), read).astype(np.float32)
