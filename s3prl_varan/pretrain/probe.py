"""Linear probes: what a logistic regression reads out of each layer of an upstream, against log-mel features."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_varan.audio import AUDIO_SUFFIXES, read_audio
from s3prl_varan.corpora.ravdess import LABELS, find_clips, speaker_folds
from s3prl_varan.errors import UserError
from s3prl_varan.upstream.wrapper import Upstream

from .config import SAMPLE_RATE
from .frontend import start_from_mel
from .phones import SILENCE, AlignedClip
from .units import with_differences

MAX_FRAMES = 20_000  # frames a frame-level probe is trained on
RIDGE = 0.1  # scikit-learn's C, on standardised inputs; the same everywhere, so that nothing is tuned on test data
Split = tuple[np.ndarray, np.ndarray]  # indices of the training and of the test examples
Encoder = Callable[[Tensor], list[Tensor]]  # waveform [num_samples] -> N x [T, D]


@dataclass
class Score:
    probe: str
    system: str
    layer: int
    accuracy: float  # in [0, 1], mean over the splits
    spread: float  # standard deviation over the splits


def upstream_encoder(upstream: Upstream) -> Encoder:
    """All hidden states of an upstream for one waveform."""

    def encode(wav: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [layer[0] for layer in upstream([wav]).layers]

    return encode


def log_mel(wav: Tensor) -> list[Tensor]:
    """The baseline: 80 log-mel energies, 25 ms windows every 20 ms, [T, 80], as an encoder of one layer."""
    import torchaudio

    mel = torchaudio.compliance.kaldi.fbank(
        wav[None] * 32768.0, num_mel_bins=80, frame_shift=20.0, dither=0.0
    )
    return [mel]


def linear_accuracy(inputs: np.ndarray, labels: np.ndarray, split: Split) -> float:
    """Test accuracy of a logistic regression on inputs [n, D], standardised by the training part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = split
    model = make_pipeline(StandardScaler(), LogisticRegression(C=RIDGE, max_iter=200, tol=1e-3))
    return float(model.fit(inputs[train], labels[train]).score(inputs[test], labels[test]))


def score_layers(
    probe: str, system: str, layers: list[np.ndarray], labels: np.ndarray, splits: list[Split]
) -> list[Score]:
    """layers: N x [n, D]. One row per layer."""
    scores = []
    for number, inputs in enumerate(layers):
        found = [linear_accuracy(inputs, labels, split) for split in splits]
        scores.append(Score(probe, system, number, float(np.mean(found)), float(np.std(found))))
    return scores


def pooled(encoder: Encoder, wavs: list[Tensor]) -> list[np.ndarray]:
    """N x [n, 2 D]: mean and standard deviation over time of every layer."""
    rows = []
    for wav in wavs:
        rows.append(
            [torch.cat([layer.mean(0), layer.std(0)]).float().numpy() for layer in encoder(wav)]
        )
    return [np.stack(layer) for layer in zip(*rows, strict=True)]


def probe_ravdess(systems: dict[str, Encoder], root: Path) -> list[Score]:
    """Emotion (7 classes, four speaker-independent folds) and speaker (24 actors; one statement trains, the other tests).

    Every system is pooled in the same way, by mean and standard deviation over time.
    """
    clips, _ = find_clips(root)
    wavs = [read_audio(clip.path) for clip in clips]
    emotion = np.array([LABELS[clip.label] for clip in clips])
    speaker = np.array([int(clip.speaker) for clip in clips])
    statement = np.array([clip.path.stem.split("-")[4] for clip in clips])
    place = {clip.path: i for i, clip in enumerate(clips)}
    folds: list[Split] = []
    for fold in speaker_folds(clips).values():
        test = np.array([place[clip.path] for clip in fold["test"]])
        folds.append((np.setdiff1d(np.arange(len(clips)), test), test))
    first, second = np.flatnonzero(statement == "01"), np.flatnonzero(statement == "02")
    scores = []
    for name, encoder in systems.items():
        layers = pooled(encoder, wavs)
        scores += score_layers("emotion", name, layers, emotion, folds)
        scores += score_layers("speaker", name, layers, speaker, [(first, second), (second, first)])
    return scores


def read_folder(folder: Path, limit: int) -> list[Tensor]:
    """The first `limit` 16 kHz recordings below `folder`, N x [num_samples]."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: no audio below it")
    return [read_audio(path) for path in paths[:limit]]


def start_as_pretraining(upstream: Upstream, folder: Path) -> None:
    """Give a micro_wavlm the first convolution that pre-training starts from, scaled on speech in `folder`."""
    wavs = [wav[:SAMPLE_RATE] for wav in read_folder(folder, limit=16)]
    wavs = [F.layer_norm(wav, wav.shape) for wav in wavs if len(wav) == SAMPLE_RATE]
    expert: Any = upstream.expert
    start_from_mel(expert.model.feature_extractor.conv_layers[0][0], torch.stack(wavs))


def normalised(frames: Tensor) -> Tensor:
    """[T, D]: zero mean and unit variance over the recording, the usual remedy for voice and channel."""
    return (frames - frames.mean(0)) / (frames.std(0) + 1e-5)


def probe_phones(
    systems: dict[str, Encoder], train: list[AlignedClip], test: list[AlignedClip]
) -> list[Score]:
    """Frame accuracy on the phones of `test`, silence left out; trained on at most MAX_FRAMES frames of `train`.

    Every system is normalised over the recording; log-mel gets first and second differences too.
    """
    scores = []
    for name, encoder in systems.items():
        rows: list[list[np.ndarray]] = []
        labels = []
        for clip in (*train, *test):
            layers = encoder(clip.wav)
            if name == "fbank":
                layers = [with_differences(frames) for frames in layers]
            phones = clip.frame_phones(len(layers[0]))
            spoken = phones != SILENCE
            rows.append([normalised(frames).float().numpy()[spoken] for frames in layers])
            labels.append(phones[spoken])
        border = sum(map(len, labels[: len(train)]))
        flat = np.concatenate(labels)
        chosen = np.random.default_rng(0).permutation(border)[:MAX_FRAMES]
        split = (chosen, np.arange(border, len(flat)))
        scores += score_layers(
            "phones", name, [np.concatenate(x) for x in zip(*rows, strict=True)], flat, [split]
        )
    return scores
