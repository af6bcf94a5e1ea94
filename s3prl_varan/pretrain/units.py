"""The targets of masked prediction: k-means clusters of MFCCs, or of a layer of the model trained before."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio_cache import AudioCache
from .config import HOP, SAMPLE_RATE, WINDOW

FIT_FRAMES = 200_000  # frames k-means is fitted on; all frames are assigned
CONTEXT = 2  # frames on either side that "mfcc_context" joins with a frame


def with_differences(frames: Tensor) -> Tensor:
    """[T, D] -> [T, 3 D]: first and second differences appended, as spectral features are commonly used by frame."""
    import torchaudio

    delta = torchaudio.functional.compute_deltas(frames.T)
    return torch.cat([frames, delta.T, torchaudio.functional.compute_deltas(delta).T], dim=1)


def mfccs(wav: Tensor) -> Tensor:
    """[samples] -> [T, 13]; frame t covers the samples of the model's frame t."""
    import torchaudio

    window, hop = (1000.0 * n / SAMPLE_RATE for n in (WINDOW, HOP))
    return torchaudio.compliance.kaldi.mfcc(
        wav[None] * 32768.0,
        sample_frequency=SAMPLE_RATE,
        frame_length=window,
        frame_shift=hop,
        dither=0.0,
    )


def mfcc_features(wav: Tensor) -> Tensor:
    """[samples] -> [T, 39]: MFCCs, first and second differences."""
    return with_differences(mfccs(wav))


def mfcc_context_features(wav: Tensor) -> Tensor:
    """[samples] -> [T, 65]: MFCCs of five neighbouring frames, every coefficient standardised over the recording.

    Their clusters follow the voice and the channel less, and phones more, than those of `mfcc_features`.
    """
    mfcc = mfccs(wav)
    mfcc = (mfcc - mfcc.mean(0)) / (mfcc.std(0) + 1e-3)
    padded = torch.nn.functional.pad(mfcc.T[None], (CONTEXT, CONTEXT), mode="replicate")[0]
    return padded.unfold(1, 2 * CONTEXT + 1, 1).permute(1, 2, 0).flatten(1)


def layer_features(model: Any, wav: Tensor, layer: int) -> Tensor:
    """[samples] -> [T, D] hidden states of s3prl's WavLM `model` after `layer` layers (0 = the encoder's input)."""
    source = torch.nn.functional.layer_norm(wav, wav.shape)[None]
    (_, results), _ = model.extract_features(
        source, output_layer=max(layer, 1), ret_layer_results=True
    )
    return results[layer][0][:, 0]


def all_features(cache: AudioCache, extract: Callable[[Tensor], Tensor], path: Path) -> np.ndarray:
    """Features of every frame of the cache, [total frames, D] float16 in a memory-mapped file; extract: [samples] -> [T, D]."""
    from tqdm import tqdm

    bounds = cache.frame_offsets
    table: np.ndarray | None = None
    with torch.no_grad():
        for i in tqdm(range(len(cache.lengths)), desc="features", unit="piece", mininterval=5):
            found = extract(torch.from_numpy(cache.wav(i)))
            if table is None:
                shape = (int(bounds[-1]), found.shape[1])
                table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
            assert len(found) == bounds[i + 1] - bounds[i], (
                "frames of the features and of the cache differ"
            )
            table[bounds[i] : bounds[i + 1]] = found.numpy()
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


def build_units(
    cache: AudioCache, extract: Callable[[Tensor], Tensor], units: int, seed: int, path: Path
) -> np.ndarray:
    """Units of all frames, kept in `path` (.npy) so that a resumed run has the same targets. Returns [total frames] uint16."""
    if not path.is_file():
        scratch = path.with_suffix(".features.tmp")
        labels = cluster(all_features(cache, extract, scratch), units, seed)
        scratch.unlink()
        partial = path.with_suffix(".tmp.npy")
        np.save(partial, labels)
        os.replace(partial, path)
    return np.load(path)
