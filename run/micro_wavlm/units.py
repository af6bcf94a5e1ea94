"""The targets of masked prediction: k-means clusters of MFCCs or of an earlier model's layer."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from tqdm import tqdm

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.files import atomic_path

from .audio_cache import AudioCache
from .config import HOP, WINDOW

FIT_FRAMES = 200_000  # frames k-means is fitted on; all frames are assigned
CONTEXT = 2  # frames on either side that "mfcc_context" joins with a frame
Extractor = Callable[[Tensor], Tensor]  # [samples] -> [T, D]


def with_differences(frames: Tensor) -> Tensor:
    """[T, D] -> [T, 3 D]: first and second differences appended."""
    delta = torchaudio.functional.compute_deltas(frames.T)
    return torch.cat([frames, delta.T, torchaudio.functional.compute_deltas(delta).T], dim=1)


def mfccs(wav: Tensor) -> Tensor:
    """[samples] -> [T, 13]; frame t covers the samples of the model's frame t."""
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
    """[samples] -> [T, 65]: MFCCs of five frames, each coefficient standardised over the recording.

    Their clusters follow the voice and the channel less, and phones more, than `mfcc_features` do.
    """
    mfcc = mfccs(wav)
    mfcc = (mfcc - mfcc.mean(0)) / (mfcc.std(0) + 1e-3)
    padded = F.pad(mfcc.T[None], (CONTEXT, CONTEXT), mode="replicate")[0]
    return padded.unfold(1, 2 * CONTEXT + 1, 1).permute(1, 2, 0).flatten(1)


def layer_features(model: Any, wav: Tensor, layer: int) -> Tensor:
    """[samples] -> [T, D] of s3prl's WavLM after `layer` layers (0 = the encoder's input)."""
    source = F.layer_norm(wav, wav.shape)[None]
    (_, results), _ = model.extract_features(
        source, output_layer=max(layer, 1), ret_layer_results=True
    )
    return results[layer][0][:, 0]


@torch.no_grad()
def all_features(cache: AudioCache, extract: Extractor, folder: Path) -> np.ndarray:
    """Features of every frame, [total frames, D] float16, in a nameless file in `folder`."""
    bounds = cache.frame_offsets
    dim = extract(torch.from_numpy(cache.wav(0))).shape[1]
    shape = (int(bounds[-1]), dim)
    table = np.memmap(tempfile.TemporaryFile(dir=folder), dtype=np.float16, mode="w+", shape=shape)
    for i in tqdm(range(len(cache.lengths)), desc="features", unit="piece", mininterval=5):
        found = extract(torch.from_numpy(cache.wav(i)))
        assert len(found) == bounds[i + 1] - bounds[i], "frames of features and cache differ"
        table[bounds[i] : bounds[i + 1]] = found.numpy()
    return table


def cluster(features: np.ndarray, units: int, seed: int) -> np.ndarray:
    """[frames, D] -> [frames] uint16: standardised, then mini-batch k-means."""
    from sklearn.cluster import MiniBatchKMeans

    chosen = np.random.default_rng(seed).permutation(len(features))[:FIT_FRAMES]
    sample = features[np.sort(chosen)].astype(np.float32)
    mean, scale = sample.mean(0), sample.std(0) + 1e-5
    kmeans = MiniBatchKMeans(units, batch_size=4096, n_init=3, max_iter=60, random_state=seed)
    kmeans.fit((sample - mean) / scale)
    labels = [
        kmeans.predict((features[start : start + 65536].astype(np.float32) - mean) / scale)
        for start in range(0, len(features), 65536)
    ]
    return np.concatenate(labels).astype(np.uint16)


def build_units(
    cache: AudioCache, extract: Extractor, units: int, seed: int, path: Path
) -> np.ndarray:
    """[total frames] uint16, kept in `path` (.npy) so that a resumed run has the same targets."""
    if not path.is_file():
        labels = cluster(all_features(cache, extract, path.parent), units, seed)
        with atomic_path(path) as temporary:
            np.save(temporary, labels)
    return np.load(path)
