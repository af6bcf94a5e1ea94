"""The targets of masked prediction: k-means clusters of MFCCs, or of a layer of the model trained before."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio_cache import AudioCache
from .config import HOP, SAMPLE_RATE, WINDOW

FIT_FRAMES = 200_000  # frames k-means is fitted on; all frames are assigned


def mfcc_features(wav: Tensor) -> Tensor:
    """[samples] -> [T, 39]: 13 MFCCs, first and second differences; frame t covers the samples of the model's frame t."""
    import torchaudio

    window, hop = (1000.0 * n / SAMPLE_RATE for n in (WINDOW, HOP))
    mfcc = torchaudio.compliance.kaldi.mfcc(
        wav[None] * 32768.0, sample_frequency=SAMPLE_RATE, frame_length=window, frame_shift=hop, dither=0.0
    )
    delta = torchaudio.functional.compute_deltas(mfcc.T)
    return torch.cat([mfcc, delta.T, torchaudio.functional.compute_deltas(delta).T], dim=1)


def layer_features(model: Any, wav: Tensor, layer: int) -> Tensor:
    """[samples] -> [T, D] hidden states of s3prl's WavLM `model` after `layer` layers (0 = the encoder's input)."""
    source = torch.nn.functional.layer_norm(wav, wav.shape)[None]
    (_, results), _ = model.extract_features(source, output_layer=max(layer, 1), ret_layer_results=True)
    return results[layer][0][:, 0]


def all_features(cache: AudioCache, model: Any | None, layer: int, path: Path) -> np.ndarray:
    """Features of every frame of the cache, [total frames, D] float16 in a memory-mapped file; MFCCs when `model` is None."""
    from tqdm import tqdm

    bounds = cache.frame_offsets
    table: np.ndarray | None = None
    was_training = model is not None and model.training
    if model is not None:
        model.eval()
    with torch.no_grad():
        for i in tqdm(range(len(cache.lengths)), desc="features", unit="piece", mininterval=5):
            wav = torch.from_numpy(cache.wav(i))
            found = mfcc_features(wav) if model is None else layer_features(model, wav, layer)
            if table is None:
                shape = (int(bounds[-1]), found.shape[1])
                table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
            assert len(found) == bounds[i + 1] - bounds[i], "frames of the features and of the cache differ"
            table[bounds[i] : bounds[i + 1]] = found.numpy()
    if model is not None:
        model.train(was_training)
    assert table is not None
    return table


def cluster(features: np.ndarray, units: int, seed: int) -> np.ndarray:
    """[frames, D] -> [frames] uint16: standardised, then mini-batch k-means with `units` clusters."""
    from sklearn.cluster import MiniBatchKMeans

    chosen = np.random.default_rng(seed).permutation(len(features))[:FIT_FRAMES]
    sample = features[np.sort(chosen)].astype(np.float32)
    mean, scale = sample.mean(0), sample.std(0) + 1e-5
    kmeans = MiniBatchKMeans(units, batch_size=4096, n_init=3, max_iter=60, random_state=seed)
    kmeans.fit((sample - mean) / scale)
    labels = np.empty(len(features), dtype=np.uint16)
    for start in range(0, len(features), 65536):
        block = features[start : start + 65536].astype(np.float32)
        labels[start : start + 65536] = kmeans.predict((block - mean) / scale)
    return labels


def build_units(cache: AudioCache, model: Any | None, layer: int, units: int, seed: int, path: Path) -> np.ndarray:
    """Units of all frames, kept in `path` (.npy) so that a resumed run has the same targets. Returns [total frames] uint16."""
    if not path.is_file():
        scratch = path.with_suffix(".features.tmp")
        labels = cluster(all_features(cache, model, layer, scratch), units, seed)
        scratch.unlink()
        partial = path.with_suffix(".tmp.npy")
        np.save(partial, labels)
        os.replace(partial, path)
    return np.load(path)
