"""Batches of equal-length crops. The batch of a step depends on (seed, step) only, so a resumed run sees the same ones."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .audio_cache import AudioCache
from .config import HOP, SAMPLE_RATE, WINDOW, BatchConfig


@dataclass
class UnitBatch:
    wavs: Tensor  # [B, samples] float32, zero mean, unit variance per crop
    units: Tensor  # [B, T] int64


def mix_crops(wavs: np.ndarray, prob: float, rng: np.random.Generator) -> np.ndarray:
    """WavLM's utterance mixing: add a stretch of another crop, of at most half the length, at -5..5 dB energy ratio.

    wavs: [B, samples]; the units stay those of the first speaker. Source: Chen et al. 2022 (WavLM), section III-B.
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
    """Draws crops of one random length per step: from a folder (by duration ** folder_power), a piece, a start."""

    def __init__(
        self,
        cache: AudioCache,
        units: np.ndarray,
        config: BatchConfig,
        seed: int,
        speed: float = 0.0,
    ) -> None:
        """units: [total frames], of all pieces end to end. Speed of a crop: from 1 - speed to 1 + speed; held-out crops: 1."""
        self.cache, self.units, self.config, self.seed, self.speed = (
            cache,
            units,
            config,
            seed,
            speed,
        )
        self.lengths, self.frame_offsets = cache.lengths, cache.frame_offsets
        order = np.random.default_rng(seed).permutation(len(self.lengths))
        held_out = max(1, round(config.valid_share * len(order))) if len(order) > 1 else 0
        self.valid, self.train = order[:held_out], order[held_out:]
        totals = np.bincount(cache.folders, weights=self.lengths, minlength=len(cache.roots))
        self.folder_weight = totals**config.folder_power / np.maximum(totals, 1)

    def _crop_frames(self, pieces: np.ndarray, rng: np.random.Generator) -> int:
        frames = int(rng.choice(self.config.crops) * SAMPLE_RATE / HOP)
        return min(frames, int(self.cache.frame_counts[pieces].max()))

    def draw(self, step: int, valid: bool = False) -> UnitBatch:
        pieces, speed = (
            self.valid if valid and len(self.valid) else self.train,
            0.0 if valid else self.speed,
        )
        rng = np.random.default_rng([self.seed, int(valid), step])
        frames = self._crop_frames(pieces, rng)
        samples = (frames - 1) * HOP + WINDOW
        longest = min(math.ceil(samples * (1 + speed)), self.lengths[pieces].max())
        usable = pieces[self.lengths[pieces] >= longest]
        weight = self.lengths[usable] * self.folder_weight[self.cache.folders[usable]]
        count = max(1, int(self.config.seconds * SAMPLE_RATE / HOP) // frames)
        chosen = rng.choice(usable, size=count, p=weight / weight.sum())
        rates = rng.uniform(1 - speed, 1 + speed, count) if speed else np.ones(count)
        rates = np.minimum(
            rates, self.lengths[chosen] / samples
        )  # no faster than the piece is long
        available = self.cache.frame_counts[chosen]
        starts = rng.integers(0, np.maximum(1, available - np.ceil(frames * rates).astype(int) + 1))
        wavs = np.stack(
            [self._wav(p, s, samples, r) for p, s, r in zip(chosen, starts, rates, strict=True)]
        )
        wavs = mix_crops(wavs, 0.0 if valid else self.config.mix_prob, rng)
        wavs = (wavs - wavs.mean(1, keepdims=True)) / np.sqrt(wavs.var(1, keepdims=True) + 1e-5)
        heard = starts[:, None] + np.rint(np.arange(frames) * rates[:, None]).astype(
            int
        )  # frames of the piece, at its own speed
        units = self.units[
            self.frame_offsets[chosen][:, None] + np.minimum(heard, available[:, None] - 1)
        ]
        return UnitBatch(torch.from_numpy(wavs), torch.from_numpy(units.astype(np.int64)))

    def _wav(self, piece: int, start: int, samples: int, rate: float) -> np.ndarray:
        """[samples] float32 from frame `start` of a piece on, played `rate` times as fast (linear interpolation)."""
        begin, end = self.cache.offsets[piece] + start * HOP, self.cache.offsets[piece + 1]
        read = (
            self.cache.samples[begin : min(begin + math.ceil(samples * rate), end)].astype(
                np.float32
            )
            / 32768.0
        )
        if rate == 1:
            return read
        return np.interp(np.arange(samples) * rate, np.arange(len(read)), read).astype(np.float32)
