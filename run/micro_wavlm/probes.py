"""Linear probes: what logistic regression reads out of each layer of an upstream; the report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchaudio
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from s3prl_varan.audio import SAMPLE_RATE, read_audio
from s3prl_varan.corpora.ravdess import LABELS, find_clips, speaker_folds
from s3prl_varan.files import write_atomic
from s3prl_varan.upstream.wrapper import Upstream

from .audio_cache import find_audio
from .curves import picture
from .frontend import start_from_mel
from .phones import SILENCE, AlignedClip
from .units import with_differences

MAX_FRAMES = 20_000  # frames a frame-level probe is trained on
# scikit-learn's C on standardised inputs; the same everywhere: nothing is tuned on test data.
RIDGE = 0.1
TITLES = {
    "emotion": "emotion (RAVDESS, 7 classes)",
    "speaker": "speaker (RAVDESS, 24 actors)",
    "phones": "phones (LibriSpeech), by frame",
}
Split = tuple[np.ndarray, np.ndarray]  # indices of the training and of the test examples
Encoder = Callable[[Tensor], list[Tensor]]  # waveform [num_samples] -> N x [T, D]


class Score(NamedTuple):
    """What a probe read out of a layer."""

    probe: str
    system: str
    layer: int
    accuracy: float  # in [0, 1], mean over the splits
    spread: float  # standard deviation over the splits


def upstream_encoder(upstream: Upstream) -> Encoder:
    """All hidden states of an upstream for one waveform."""

    @torch.no_grad()
    def encode(wav: Tensor) -> list[Tensor]:
        return [layer[0] for layer in upstream([wav]).layers]

    return encode


def log_mel(wav: Tensor) -> list[Tensor]:
    """The baseline: 80 log-mel energies every 20 ms, [T, 80], as an encoder of one layer."""
    fbank = torchaudio.compliance.kaldi.fbank
    return [fbank(wav[None] * 32768.0, num_mel_bins=80, frame_shift=20.0, dither=0.0)]


def start_as_pretraining(upstream: Upstream, folder: Path) -> None:
    """Give a micro_wavlm the first convolution pre-training starts from, scaled on `folder`."""
    wavs = [read_audio(path)[:SAMPLE_RATE] for path in find_audio(folder)[:16]]
    wavs = [F.layer_norm(wav, wav.shape) for wav in wavs if len(wav) == SAMPLE_RATE]
    expert: Any = upstream.expert
    start_from_mel(expert.model.feature_extractor.conv_layers[0][0], torch.stack(wavs))


def score_layers(
    probe: str,
    system: str,
    layers: Sequence[np.ndarray],
    labels: np.ndarray,
    splits: Sequence[Split],
) -> list[Score]:
    """Test accuracy of a logistic regression on each layer, N x [n, D], standardised by train."""
    scores = []
    for number, inputs in enumerate(layers):
        found = []
        for train, test in splits:
            regression = LogisticRegression(C=RIDGE, max_iter=200, tol=1e-3)
            model = make_pipeline(StandardScaler(), regression).fit(inputs[train], labels[train])
            found.append(model.score(inputs[test], labels[test]))
        scores.append(Score(probe, system, number, float(np.mean(found)), float(np.std(found))))
    return scores


def probe_ravdess(systems: dict[str, Encoder], root: Path) -> list[Score]:
    """Emotion (7 classes, four speaker-independent folds) and speaker (24 actors).

    For the speaker one statement trains, the other tests. Every system is pooled in the same way,
    by mean and standard deviation over time.
    """
    clips, _ = find_clips(root)
    wavs = [read_audio(clip.path) for clip in clips]
    emotion = np.array([LABELS[clip.label] for clip in clips])
    speaker = np.array([int(clip.speaker) for clip in clips])
    statement = np.array([clip.path.stem.split("-")[4] for clip in clips])
    folds: list[Split] = []
    for fold in speaker_folds(clips).values():
        held_out = np.isin(speaker, [int(clip.speaker) for clip in fold["test"]])
        folds.append((np.flatnonzero(~held_out), np.flatnonzero(held_out)))
    first, second = np.flatnonzero(statement == "01"), np.flatnonzero(statement == "02")
    scores = []
    for name, encoder in systems.items():
        rows = [
            [torch.cat([layer.mean(0), layer.std(0)]).float().numpy() for layer in encoder(wav)]
            for wav in wavs
        ]
        layers = [np.stack(layer) for layer in zip(*rows, strict=True)]  # N x [n, 2 D]
        scores += score_layers("emotion", name, layers, emotion, folds)
        scores += score_layers("speaker", name, layers, speaker, [(first, second), (second, first)])
    return scores


def probe_phones(
    systems: dict[str, Encoder], train: Sequence[AlignedClip], test: Sequence[AlignedClip]
) -> list[Score]:
    """Frame accuracy on the phones of `test`, silence left out; MAX_FRAMES of `train` are used.

    Every system is normalised over the recording, the usual remedy for voice and channel; log-mel
    gets first and second differences too.
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
            layers = [(each - each.mean(0)) / (each.std(0) + 1e-5) for each in layers]
            rows.append([frames.float().numpy()[spoken] for frames in layers])
            labels.append(phones[spoken])
        border = sum(map(len, labels[: len(train)]))
        flat = np.concatenate(labels)
        chosen = np.random.default_rng(0).permutation(border)[:MAX_FRAMES]
        split = (chosen, np.arange(border, len(flat)))
        joined = [np.concatenate(layer) for layer in zip(*rows, strict=True)]
        scores += score_layers("phones", name, joined, flat, [split])
    return scores


def markdown(scores: Sequence[Score]) -> str:
    """A row per layer, a column per probe and system, in percent, the best layer in bold."""
    columns: dict[tuple[str, str], dict[int, float]] = {}
    for score in scores:
        columns.setdefault((score.probe, score.system), {})[score.layer] = score.accuracy
    lines = [["layer", *map(": ".join, columns)], ["---"] * (1 + len(columns))]
    for layer in range(1 + max(score.layer for score in scores)):
        lines.append([str(layer), *(_cell(found, layer) for found in columns.values())])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(accuracies: dict[int, float], layer: int) -> str:
    if layer not in accuracies:
        return ""
    text = f"{100 * accuracies[layer]:.1f}"
    return f"**{text}**" if layer == max(accuracies, key=accuracies.__getitem__) else text


def write_report(scores: Sequence[Score], out: Path) -> None:
    """probes.csv, probes.md and probes.png in the folder `out`.

    The picture: a panel per probe, accuracy over the layers; one layer alone is a dashed line.
    """
    table = pd.DataFrame(scores)
    csv = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_atomic(out / "probes.csv", csv)
    write_atomic(out / "probes.md", markdown(scores))
    colors = {system: f"C{number}" for number, system in enumerate(table["system"].unique())}
    probes = table.groupby("probe", sort=False)
    with picture(out / "probes.png", len(probes)) as axes:
        for axis, (probe, part) in zip(axes, probes, strict=True):
            axis.set(title=TITLES.get(str(probe)), xlabel="layer", ylabel="accuracy (%)")
            for system, rows in part.groupby("system", sort=False):
                look: dict[str, Any] = {"color": colors[system], "label": system}
                values = 100 * rows["accuracy"]
                if len(rows) == 1:
                    axis.axhline(values.iloc[0], linestyle="--", **look)
                else:
                    axis.plot(rows["layer"], values, "o-", markersize=3, **look)
