"""Feature cache of a frozen upstream: every clip goes through it once, whoever asks.

A clip is known by a hash of its samples, so any task, featurizer, seed or fold finds it again. All
hidden states are kept: their means over time (float32, a few tens of KB per clip) where the heads
need no more, else all frames (half precision). Clips are run through the upstream one by one and
in float32: an entry depends on its clip alone, not on the batch it came in.
"""

import hashlib
import inspect
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from s3prl_varan.errors import UserError
from s3prl_varan.features.clip_keys import ClipKeys
from s3prl_varan.features.stack import LayerStack, stack_layers
from s3prl_varan.features.store import ABOUT, HEADER_BYTES, ArrayStore, readable_bytes, used_bytes
from s3prl_varan.files import write_atomic
from s3prl_varan.names import file_name, short_name

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when what is stored changes its meaning
GB = 1e9


class FrozenUpstream(Protocol):
    """What the cache asks of an upstream: that of upstream/wrapper.py has it."""

    expert: Any
    name: str
    ckpt: str | None
    feature_selection: str
    num_hidden: int
    dim: int
    downsample_rate: int

    def __call__(self, wavs: list[Tensor]) -> Any:
        """Waveforms B x [num_samples] -> .layers N x [B, T, D], .lengths [B]."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights, which tell its device."""

    def fingerprint(self) -> str:
        """Digest of name, options and weights."""


def cached_encoder(
    upstream: FrozenUpstream,
    layers: Callable[[], Sequence[int]],
    root: str | Path,
    num_samples: Sequence[int] | None,
    *,
    pooled: bool,
    normalize: bool,
    trains_upstream: bool,
    budget_gb: float,
) -> tuple[Callable[[list[Tensor]], LayerStack], str]:
    """What takes a frozen upstream's place (waveforms -> LayerStack), and a line on what will fit.

    layers: tells the hidden states to give. num_samples: of each clip that will be asked for, at
    16 kHz; None where it is not known. pooled, normalize: as of stack_layers. UserError where
    caching would be wrong or `root` cannot be written.
    """
    if trains_upstream:
        raise UserError(
            "--cache keeps a frozen upstream's features; with --lora or --upstream_trainable they "
            "change every step."
        )
    if budget_gb <= 0:
        raise UserError(f"--cache_gb: expected a size above 0, found {budget_gb:g}.")
    cache = FeatureCache(root, upstream, pooled=pooled, normalize=normalize, budget_gb=budget_gb)
    return lambda wavs: cache.encode(wavs, layers()), cache.forecast(num_samples)


class FeatureCache:
    """The hidden states of clips under one upstream, in the folder `root`.

    The folder may hold other upstreams' as well. pooled: keep means over time only. budget_gb:
    what all of `root` may take; beyond it clips are computed each time.
    """

    def __init__(
        self,
        root: str | Path,
        upstream: FrozenUpstream,
        *,
        pooled: bool,
        normalize: bool = False,
        budget_gb: float = 20.0,
    ):
        self.root, self.upstream = Path(root), upstream
        self.pooled, self.normalize, self.budget = pooled, normalize, budget_gb * GB
        self.misses = 0  # clips that were computed
        self.most_clips: int | None = None  # more different ones are a sign of random audio
        about = _about(upstream, pooled, normalize)
        try:
            self.store = ArrayStore(self.root / _store_name(about))
            if not (self.store.folder / ABOUT).is_file():
                write_atomic(self.store.folder / ABOUT, json.dumps(about, indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"--cache {root}: cannot be written ({error.strerror}). Give another folder."
            ) from error
        self.key = ClipKeys()
        self._stored, self._stopped = 0, False
        self._used, self._used_at = 0, -1.0

    def encode(self, wavs: Sequence[Tensor], layers: Sequence[int]) -> LayerStack:
        """Waveforms B x [num_samples] -> the hidden states `layers`, as the upstream gives them.

        On the upstream's device, float32, without gradient. pooled: hidden [B, N, 1, D], lengths
        1; else [B, N, T, D], zero past each clip's own frames, lengths as the upstream gives them
        for the clip alone.
        """
        keys = [self.key(wav) for wav in wavs]
        if any(key not in self.store.records for key in keys):
            self.store.refresh()
        found: dict[bytes, tuple[np.ndarray, int]] = {}
        for key, wav in zip(keys, wavs, strict=True):
            if key not in found:
                stored = self.store.get(key)
                self.misses += stored is None
                found[key] = stored or self._compute(key, wav)
        return self._collate([found[key] for key in keys], _as_slice(layers))

    @property
    def _device(self) -> torch.device:
        return next(self.upstream.parameters(), torch.empty(0)).device

    def _collate(
        self, entries: list[tuple[np.ndarray, int]], layers: slice | list[int]
    ) -> LayerStack:
        chosen = [array[layers] for array, _ in entries]  # B x [N, T or 1, D]
        if self.pooled:
            hidden = torch.from_numpy(np.stack(chosen)).to(self._device)
            return LayerStack(
                hidden, torch.ones(len(chosen), dtype=torch.long, device=hidden.device)
            )
        count, _, dim = chosen[0].shape
        frames = max(array.shape[1] for array in chosen)
        # Laid out [N, B, T, D], as stack_layers does: what follows reads layer by layer.
        hidden = torch.zeros(count, len(entries), frames, dim)
        for index, array in enumerate(chosen):
            hidden.numpy()[:, index, : array.shape[1]] = array
        lengths = torch.tensor([length for _, length in entries], device=self._device)
        return LayerStack(hidden.to(self._device).transpose(0, 1), lengths)

    @torch.no_grad()
    def _compute(self, key: bytes, wav: Tensor) -> tuple[np.ndarray, int]:
        """All hidden states of one clip [N, T or 1, D] and its valid frames; stored if it fits."""
        device = self._device
        with torch.autocast(device.type, enabled=False):
            states = self.upstream([wav.to(device, torch.float32)])
            stack = stack_layers(
                states.layers, states.lengths, pool=self.pooled, normalize=self.normalize
            )
        array = stack.hidden[0].float().cpu().numpy()
        length = int(stack.lengths[0])
        if not self.pooled and np.abs(array).max() < np.finfo(np.float16).max:
            array = array.astype(np.float16)
        if not self._stopped:
            self._keep(key, array, length)
        return array, length

    def _keep(self, key: bytes, array: np.ndarray, length: int) -> None:
        """Store an entry, or stop storing for good where something is in the way."""
        why = None
        if self._fill(array.nbytes + HEADER_BYTES + 64) > self.budget:
            why = f"is full ({self.budget / GB:g} GB, see --cache_gb)"
        elif self.most_clips is not None and self._stored >= self.most_clips:
            why = (
                f"gets more than the {self.most_clips} clips there are: the audio is cropped or "
                "changed at random"
            )
        else:
            try:
                self.store.put(key, array, length)
                self._stored += 1
            except OSError as error:
                why = f"cannot be written ({error.strerror})"
        if why is not None:
            self._stopped = True
            logger.warning(
                "cache: %s %s; nothing more is stored, what is missing is computed each time",
                self.root,
                why,
            )

    def _fill(self, size: int) -> float:
        """Bytes in the cache with `size` more; others' growth is looked up once a second."""
        if time.monotonic() - self._used_at > 1.0:
            self._used, self._used_at = used_bytes(self.root), time.monotonic()
        self._used += size
        return self._used

    def forecast(self, num_samples: Sequence[int] | None) -> str:
        """One line on what is stored and what will fit. num_samples: of every clip, if known."""
        kind = "means over time" if self.pooled else "all frames"
        head = f"cache: {self.store.folder}, {kind}, {len(self.store)} clips stored; "
        if num_samples is None:
            return f"{head}clips of unknown length, the budget is {self.budget / GB:g} GB."
        self.most_clips = len(num_samples)
        needed = sum(self.entry_bytes(samples) for samples in num_samples)
        own = used_bytes(self.store.folder)
        elsewhere = used_bytes(self.root) - own  # other upstreams' stores
        free = shutil.disk_usage(self.root).free
        room = max(0, min(self.budget - elsewhere, own + free))  # what this store may grow to
        head += (
            f"{self.most_clips} clips need {readable_bytes(needed)}, there is room for "
            f"{readable_bytes(room)}"
        )
        if needed <= room:
            return f"{head}."
        wanted = math.ceil((elsewhere + needed) * 1.02 / GB * 100) / 100  # two digits
        remedy = f"For all, give --cache_gb {wanted:g}."
        if own + free < self.budget - elsewhere:
            remedy = f"The disk has {readable_bytes(free)} left."
        return (
            f"{head}: about {room / needed:.0%} of them fit, the others are computed at every "
            f"step. {remedy}"
        )

    def entry_bytes(self, num_samples: int) -> int:
        """Size of a stored clip of so many samples."""
        values = self.upstream.num_hidden * self.upstream.dim
        if self.pooled:
            return HEADER_BYTES + 4 * values
        return HEADER_BYTES + 2 * values * max(
            1, round(num_samples / self.upstream.downsample_rate)
        )


def _as_slice(layers: Sequence[int]) -> slice | list[int]:
    """Consecutive indices as a slice, which is a view."""
    first, last = layers[0], layers[-1]
    return slice(first, last + 1) if list(layers) == list(range(first, last + 1)) else list(layers)


def _about(upstream: FrozenUpstream, pooled: bool, normalize: bool) -> dict[str, Any]:
    """What the features of a store depend on besides the clip, in readable form."""
    source = inspect.getsourcefile(type(upstream.expert))
    code = hashlib.blake2b(Path(source).read_bytes() if source else b"", digest_size=8).hexdigest()
    return {
        "format": FORMAT,
        "upstream": upstream.name,
        "checkpoint": upstream.ckpt,
        "fingerprint": upstream.fingerprint(),
        "expert_code": code,
        "feature_selection": upstream.feature_selection,
        "normalize": normalize,
        "kept": "means" if pooled else "frames",
        "num_hidden": upstream.num_hidden,
        "dim": upstream.dim,
    }


def _store_name(about: dict[str, Any]) -> str:
    """Readable, and another one where the features would be others."""
    # Name and checkpoint may move; the fingerprint says what they are.
    content = {key: about[key] for key in about if key not in ("upstream", "checkpoint")}
    text = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.blake2b(text, digest_size=8).hexdigest()
    return f"{file_name(short_name(about['upstream']))[:40]}-{about['kept']}-{digest}"
