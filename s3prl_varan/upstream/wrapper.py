"""Any s3prl-style upstream behind one face: waveforms in, hidden states with lengths out.

The hidden states have one size and one frame rate. An expert is an nn.Module as in s3prl's
upstream/example/expert.py: forward(wavs) -> {"hidden_states": N x [B, T, D], ...} and
get_downsample_rates(key). It may also offer frame_lengths([num_samples]) -> [frames it makes of
such a clip alone]; else that is learned by probing, so that lengths never depend on the padding.
"""

import bisect
import hashlib
import itertools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError
from s3prl_varan.names import short_name
from s3prl_varan.upstream.construct import construct
from s3prl_varan.upstream.hub import find_factory, missing_package

TOLERABLE_FRAMES = 5  # s3prl's TOLERABLE_SEQLEN_DIFF: frame counts may differ by less than this
CLIP_LENGTHS = (400, 800, 1600, 3200, 6400, 12800, SAMPLE_RATE)  # shortest clips to try, in samples
# What experts raise where a clip is too short for their convolutions.
TOO_SHORT = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError)


class MixedShapesError(UserError):
    """Hidden states that cannot be stacked; each by itself can be read."""


@dataclass(frozen=True)
class HiddenStates:
    """All hidden states of a batch; index 0 is the encoder's input."""

    layers: list[Tensor]  # N x [B, T, D], same T and D
    lengths: Tensor  # [B] int64 valid frames, 1 <= length <= T


class Upstream(nn.Module):
    """An expert, probed once so that what does not fit is refused before any training.

    Attributes: num_hidden (N), dim (D), downsample_rate (samples per frame), min_samples (shorter
    clips are zero-padded to this, the expert cannot digest less), idle (names of modules no part
    of which runs, as a decoder of pre-training). `layer` keeps one hidden state only, for experts
    whose sizes differ.
    """

    def __init__(
        self,
        expert: nn.Module,
        *,
        name: str,
        ckpt: str | None = None,
        model_config: str | None = None,
        feature_selection: str = "hidden_states",
        layer: int | None = None,
    ):
        super().__init__()
        self.expert: Any = expert
        self.name, self.ckpt, self.model_config = name, ckpt, model_config
        self.feature_selection, self.layer = feature_selection, layer
        self.min_samples = CLIP_LENGTHS[0]
        self.num_hidden, self.dim, self.downsample_rate = 0, 0, 0
        self.idle: set[str] = set()
        self._num_given: int | None = None  # what the expert gives, before `layer` picks one
        self._frame_rule: Callable[[list[int]], list[int]] | None = None
        self._fingerprint: str | None = None
        self.eval()
        with torch.no_grad(), rng_untouched():
            self._probe()

    def forward(self, wavs: Sequence[Tensor]) -> HiddenStates:
        """16 kHz waveforms B x [num_samples], float32 in [-1, 1] -> HiddenStates on their device.

        lengths: SUPERB's round(num_samples / downsample_rate), but no more than the clip makes
        alone, within 1..T. UserError where the expert's output has another form than when it was
        probed.
        """
        assert len(wavs) > 0 and all(wav.dim() == 1 for wav in wavs), "expected B x [num_samples]"
        wavs = [F.pad(wav, (0, max(0, self.min_samples - len(wav)))) for wav in wavs]
        layers = self._hidden(wavs)
        self._check_rate(layers[0].size(1), max(len(wav) for wav in wavs))
        return HiddenStates(layers, self._lengths([len(wav) for wav in wavs], layers[0]))

    def fingerprint(self) -> str:
        """Hex digest of name, options and weights, so that "the same upstream" can be checked.

        Cached: ask before anything trains or re-parametrizes the weights.
        """
        if self._fingerprint is None:
            # short_name: an expert of the user's may lie in another folder than it did.
            options = (short_name(self.name), self.feature_selection, self.layer)
            digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
            if self.model_config is not None and Path(self.model_config).is_file():
                digest.update(Path(self.model_config).read_bytes())
            hash_tensors(digest, self.expert.state_dict())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _lengths(self, num_samples: list[int], hidden: Tensor) -> Tensor:
        frames = [round(samples / self.downsample_rate) for samples in num_samples]
        exact = getattr(self.expert, "frame_lengths", self._frame_rule)
        if exact is not None:
            frames = [min(pair) for pair in zip(frames, exact(num_samples), strict=True)]
        return torch.tensor(frames, device=hidden.device).clamp(1, hidden.size(1))

    def _probe(self) -> None:
        """Learn sizes, frame rate, the shortest clip and what runs, from clips of low noise."""
        noise = 0.01 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
        self.min_samples = next(each for each in CLIP_LENGTHS if self._digests(noise[:each]))
        called: set[nn.Module] = set()
        watch = register_module_forward_pre_hook(lambda module, _: called.add(module))
        try:
            layers = self._hidden([noise, noise[: max(self.min_samples, SAMPLE_RATE * 3 // 5)]])
        finally:
            watch.remove()
        self.idle = {
            name for name, each in self.named_modules() if called.isdisjoint(each.modules())
        }
        if not all(layer.isfinite().all() for layer in layers):
            raise UserError(
                f"Upstream '{self.name}' gives NaN or infinity for 1 s of low noise: its weights "
                "are damaged."
            )
        self.num_hidden, self.dim = len(layers), layers[0].size(-1)
        if hasattr(self.expert, "get_downsample_rates"):
            self.downsample_rate = round(self.expert.get_downsample_rates(self.feature_selection))
        else:  # as s3prl's Featurizer does
            self.downsample_rate = round(SAMPLE_RATE / layers[0].size(1))
        if self.downsample_rate < 1:
            raise UserError(
                f"Upstream '{self.name}': get_downsample_rates gave {self.downsample_rate}, "
                "expected samples per frame."
            )
        self._check_rate(layers[0].size(1), SAMPLE_RATE)
        if not hasattr(self.expert, "frame_lengths"):
            self._frame_rule = self._learn_frame_rule(noise)

    def _learn_frame_rule(self, noise: Tensor) -> Callable[[list[int]], list[int]] | None:
        """How many frames a clip makes by itself, as a function of its samples.

        Strided convolutions give one more every downsample_rate samples, up to a constant that is
        found here by bisection on short clips; None where it is otherwise. SUPERB's rounding may
        count a frame more, which in a padded batch is one of the padding's.
        """
        count = lambda samples: self._hidden([noise[:samples]])[0].size(1)  # noqa: E731
        high = max(self.min_samples, SAMPLE_RATE // 10) + self.downsample_rate
        if high > SAMPLE_RATE:
            return None
        frames = count(high)
        low = max(self.min_samples, high - self.downsample_rate)
        start = high - bisect.bisect_left(
            range(high - low), True, key=lambda back: count(high - back - 1) < frames
        )

        def rule(num_samples: list[int]) -> list[int]:
            return [frames + (samples - start) // self.downsample_rate for samples in num_samples]

        checks = [SAMPLE_RATE, SAMPLE_RATE * 3 // 5 + self.downsample_rate // 3]
        return rule if rule(checks) == [count(samples) for samples in checks] else None

    def _digests(self, wav: Tensor) -> bool:
        if len(wav) == SAMPLE_RATE:
            return True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layers = self._hidden([wav])
            return all(layer.size(1) > 0 and bool(layer.isfinite().all()) for layer in layers)
        except TOO_SHORT:
            return False

    def _hidden(self, wavs: list[Tensor]) -> list[Tensor]:
        """The expert's hidden states, N x [B, T, D], checked and cut to one T."""
        layers = _select(self.expert(wavs), self.feature_selection, self.name)
        if self._num_given not in (None, len(layers)):
            raise UserError(
                f"Upstream '{self.name}' gave {len(layers)} hidden states, {self._num_given} "
                "before: it skips layers at random while training. Its layer drop must be off "
                "(e.g. `encoder.layerdrop = 0` in the expert)."
            )
        self._num_given = len(layers)
        if self.layer is not None:
            if not -len(layers) <= self.layer < len(layers):
                raise UserError(
                    f"-l {self.layer}: upstream '{self.name}' has hidden states 0 to "
                    f"{len(layers) - 1}."
                )
            layers = [layers[self.layer]]
        return _one_shape(layers, len(wavs), self.name, self.feature_selection)

    def _check_rate(self, frames: int, num_samples: int) -> None:
        expected = round(num_samples / self.downsample_rate)
        if abs(frames - expected) >= TOLERABLE_FRAMES:
            raise UserError(
                f"Upstream '{self.name}' made {frames} frames of {num_samples} samples, but by its "
                f"downsample rate of {self.downsample_rate} there should be {expected}. Its "
                f"get_downsample_rates('{self.feature_selection}') must give the samples per frame."
            )


def build_upstream(
    name: str,
    ckpt: str | None = None,
    model_config: str | None = None,
    feature_selection: str = "hidden_states",
    refresh: bool = False,
    layer: int | None = None,
) -> Upstream:
    """The upstream `-u name -k ckpt -g model_config -s feature_selection`, probed.

    It is on the CPU and in eval mode. name: one of s3prl.hub's, our own (`whisper`,
    `micro_wavlm`), or `path/to/expert.py:callable` / `package.module:callable`. `layer` keeps that
    hidden state only. UserError where any of it does not fit.
    """
    factory = find_factory(name)
    expert = construct(factory, ckpt, model_config, refresh)
    try:
        return Upstream(
            expert,
            name=name,
            ckpt=ckpt,
            model_config=model_config,
            feature_selection=feature_selection,
            layer=layer,
        )
    except ImportError as error:  # imported where it is used, by s3prl's vggish
        if factory.origin == "user":
            raise
        raise missing_package(name, error) from error


def hash_tensors(digest: Any, state: Mapping[str, Any]) -> None:
    """Feed names, shapes, types and values of the tensors in a state dict to a hashlib digest."""
    for key, tensor in sorted(state.items()):
        if not isinstance(tensor, Tensor):  # get_extra_state may give anything
            continue
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().data if data.numel() else b"")


def _select(result: object, key: str, name: str) -> list[Tensor]:
    """What `-s key` names in an expert's output, as a list of tensors."""
    if not isinstance(result, Mapping):
        raise UserError(
            f"Upstream '{name}': forward(wavs) must return a dict of features, it gave "
            f"{type(result).__name__}."
        )
    value = result.get(key)
    if value is None:
        # s3prl's experts also give every hidden state by itself, hidden_state_0 and so on.
        keys = [
            str(each)
            for each, value in result.items()
            if value is not None and not str(each).startswith(("_", "hidden_state_"))
        ]
        raise UserError(
            f"-s: upstream '{name}' has no feature '{key}'. It gives: "
            f"{', '.join(keys) or 'nothing'}."
        )
    value = list(value.values()) if isinstance(value, Mapping) else value
    layers = list(value) if isinstance(value, list | tuple) else [value]
    if not layers or not all(isinstance(layer, Tensor) for layer in layers):
        found = ", ".join(sorted({type(layer).__name__ for layer in layers})) or "an empty list"
        raise UserError(
            f"-s: feature '{key}' of upstream '{name}' must be one or more tensors [B, T, D]; "
            f"found {found}."
        )
    return layers


def _one_shape(layers: list[Tensor], batch: int, name: str, key: str) -> list[Tensor]:
    """Check that all are [B, T, D] with one D and, but for a small tail that is cut off, one T."""
    wrong = next((layer for layer in layers if layer.dim() != 3 or layer.size(0) != batch), None)
    if wrong is not None:
        raise UserError(
            f"-s: feature '{key}' of upstream '{name}' must be [B, T, D], {batch} clips gave "
            f"{list(wrong.shape)}. Choose another feature with -s."
        )
    remedy = (
        "Read one of them with `-f layer -l N` or `-f last_layer`, or choose another feature "
        "with -s."
    )
    sizes = [layer.size(-1) for layer in layers]
    if len(set(sizes)) > 1:
        raise MixedShapesError(
            f"The hidden states of upstream '{name}' differ in size: {_by_layer(sizes)}. {remedy}"
        )
    frames = [layer.size(1) for layer in layers]
    if max(frames) - min(frames) >= TOLERABLE_FRAMES:
        raise MixedShapesError(
            f"The hidden states of upstream '{name}' differ in frame rate: {_by_layer(frames)} "
            f"frames. {remedy}"
        )
    return [layer[:, : min(frames)] for layer in layers]


def _by_layer(values: list[int]) -> str:
    """Runs of equal values: [64, 64, 80] -> 'layers 0-1: 64, layer 2: 80'."""
    parts, first = [], 0
    for value, run in itertools.groupby(values):
        last = first + len(list(run)) - 1
        which = f"layer {first}" if first == last else f"layers {first}-{last}"
        parts.append(f"{which}: {value}")
        first = last + 1
    return ", ".join(parts)


@contextmanager
def rng_untouched() -> Iterator[None]:
    """Leave the global generators as they were; s3prl's WavLM draws from numpy's even in eval."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
