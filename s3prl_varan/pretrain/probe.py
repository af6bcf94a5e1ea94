"""Linear probes: what one matrix reads out of each layer of an upstream, against log-mel features."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..ctc import greedy_labels, layerwise_ctc
from ..data.audio import AUDIO_SUFFIXES, read_audio
from ..data.librispeech import read_split
from ..data.ravdess import LABELS, find_clips, speaker_folds
from ..errors import UserError
from ..upstream import Upstream
from .config import SAMPLE_RATE
from .frontend import start_from_mel

MAX_FRAMES = 12_000  # frames a frame-level probe is trained on
LETTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
EPOCHS, BATCH, RATE = 40, 10, 1e-2  # of the probe on letters
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

    mel = torchaudio.compliance.kaldi.fbank(wav[None] * 32768.0, num_mel_bins=80, frame_shift=20.0, dither=0.0)
    return [mel]


def with_differences(frames: Tensor) -> Tensor:
    """[T, D] -> [T, 3 D]: first and second differences appended, as log-mel features are commonly used by frame."""
    import torchaudio

    delta = torchaudio.functional.compute_deltas(frames.T)
    return torch.cat([frames, delta.T, torchaudio.functional.compute_deltas(delta).T], dim=1)


def linear_accuracy(inputs: np.ndarray, labels: np.ndarray, split: Split) -> float:
    """Test accuracy of a logistic regression on inputs [n, D], standardised by the training part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = split
    model = make_pipeline(StandardScaler(), LogisticRegression(C=RIDGE, max_iter=200, tol=1e-3))
    return float(model.fit(inputs[train], labels[train]).score(inputs[test], labels[test]))


def score_layers(probe: str, system: str, layers: list[np.ndarray], labels: np.ndarray, splits: list[Split]) -> list[Score]:
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
        rows.append([torch.cat([layer.mean(0), layer.std(0)]).float().numpy() for layer in encoder(wav)])
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


def read_folder(folder: Path, limit: int | None = None) -> list[Tensor]:
    """All 16 kHz recordings below `folder`, N x [num_samples], or the first `limit` of them."""
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


def teacher_units(teacher: Encoder, layer: int, train: list[Tensor], test: list[Tensor], units: int) -> list[list[np.ndarray]]:
    """Frame labels from k-means over one layer of a recogniser's encoder, which stand in for phones: [train, test]."""
    from sklearn.cluster import MiniBatchKMeans

    states = [[teacher(wav)[layer].numpy() for wav in part] for part in (train, test)]
    table = np.concatenate(states[0])
    mean, scale = table.mean(0), table.std(0) + 1e-5
    kmeans = MiniBatchKMeans(units, batch_size=4096, n_init=3, random_state=0).fit((table - mean) / scale)
    return [[kmeans.predict((rows - mean) / scale) for rows in part] for part in states]


def probe_frames(
    systems: dict[str, Encoder], teacher: Encoder, layer: int, train: list[Tensor], test: list[Tensor], units: int = 50
) -> list[Score]:
    """Frame accuracy on the teacher's units: trained on frames of `train`, tested on all of `test`.

    `fbank` gets first and second differences too.
    """
    labels = teacher_units(teacher, layer, train, test, units)
    targets = [label for part in labels for label in part]
    scores = []
    for name, encoder in systems.items():
        rows: list[list[np.ndarray]] = []
        counts = []
        for wav, label in zip([*train, *test], targets, strict=True):
            layers = [with_differences(x) if name == "fbank" else x for x in encoder(wav)]
            counts.append(min(len(label), len(layers[0])))
            rows.append([layer[: counts[-1]].float().numpy() for layer in layers])
        flat = np.concatenate([label[:count] for label, count in zip(targets, counts, strict=True)])
        border = sum(counts[: len(train)])
        chosen = np.random.default_rng(0).permutation(border)[:MAX_FRAMES]
        split = (chosen, np.arange(border, len(flat)))
        scores += score_layers("units", name, [np.concatenate(x) for x in zip(*rows, strict=True)], flat, [split])
    return scores


def transcribed(folders: list[Path]) -> list[tuple[Tensor, Tensor]]:
    """(waveform [num_samples], letters [S], 0 is CTC's blank) of LibriSpeech folders."""
    pairs = []
    for folder in folders:
        for utterance in read_split(folder)[0]:
            letters = [1 + LETTERS.index(letter) for letter in utterance.text.upper() if letter in LETTERS]
            pairs.append((read_audio(utterance.path), torch.tensor(letters)))
    return pairs


def probe_letters(systems: dict[str, Encoder], train: list[Path], test: list[Path]) -> list[Score]:
    """Letters by CTC from one matrix per layer, all layers trained side by side: 1 - character error rate, greedy decoding.

    train, test: folders of LibriSpeech's form. `fbank` gets first and second differences too.
    """
    heard, unheard = transcribed(train), transcribed(test)
    scores = []
    for name, encoder in systems.items():
        states = [_all_layers(encoder(wav), name == "fbank") for wav, _ in [*heard, *unheard]]
        mean, scale = _mean_and_scale(states[: len(heard)])
        states = [(state - mean) / scale for state in states]
        weight, bias = _fit_ctc(states[: len(heard)], [letters for _, letters in heard])
        rates = _error_rates(states[len(heard) :], [letters for _, letters in unheard], weight, bias)
        scores += [Score("letters", name, layer, 1 - rate, float("nan")) for layer, rate in enumerate(rates)]
    return scores


def _all_layers(layers: list[Tensor], differences: bool) -> Tensor:
    """N x [T, D] -> [N, T, D]."""
    return torch.stack([with_differences(layer) if differences else layer.float() for layer in layers])


def _mean_and_scale(states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[N, 1, D] each, over all frames."""
    frames = torch.cat(states, dim=1)
    return frames.mean(1, keepdim=True), frames.std(1, keepdim=True) + 1e-5


def _fit_ctc(states: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One linear CTC model per layer; the layers share nothing. states: [N, T, D] each -> [N, D, V], [N, 1, V]."""
    layers, _, dim = states[0].shape
    weight = torch.zeros(layers, dim, 1 + len(LETTERS), requires_grad=True)
    bias = torch.zeros(layers, 1, 1 + len(LETTERS), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * math.ceil(len(states) / BATCH))
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(states), generator=generator).split(BATCH):
            frames = torch.tensor([states[i].size(1) for i in chosen])
            lengths = torch.tensor([len(targets[i]) for i in chosen])
            padded = pad_sequence([states[i].transpose(0, 1) for i in chosen], batch_first=True).transpose(1, 2)  # [B, N, T, D]
            labels = pad_sequence([targets[i] for i in chosen], batch_first=True)
            log_probs = (padded @ weight + bias).log_softmax(-1)
            nll = layerwise_ctc(log_probs, labels, frames, lengths, blank=0, zero_infinity=True)
            (nll / frames[:, None]).mean(0).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return weight.detach(), bias.detach()


def _error_rates(states: list[Tensor], targets: list[Tensor], weight: Tensor, bias: Tensor) -> list[float]:
    """Character error rate of each layer over all utterances."""
    import editdistance

    errors = [0] * len(weight)
    for state, letters in zip(states, targets, strict=True):
        guesses, counts = greedy_labels(state @ weight + bias, torch.full((len(weight),), state.size(1)), blank=0)
        for layer, (guess, count) in enumerate(zip(guesses, counts, strict=True)):
            errors[layer] += editdistance.eval(guess[:count].tolist(), letters.tolist())
    return [error / sum(len(letters) for letters in targets) for error in errors]
