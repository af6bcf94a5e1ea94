"""Feature cache of a frozen upstream: every clip goes through it once, whichever expert, featurizer, seed or fold asks.

A clip is known by a hash of its samples, so nothing is asked of the expert that loads it. All hidden states are kept: their
means over time (float32, a few tens of KB per clip) where the heads need no more, else all frames (half precision). Clips are
run through the upstream one by one and in float32: an entry depends on its clip alone, not on the batch it came in.
"""

import hashlib
import inspect
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_varan.errors import UserError
from s3prl_varan.features.clip_keys import ClipKeys
from s3prl_varan.features.stack import LayerStack, stack_layers
from s3prl_varan.features.store import ABOUT, HEADER_BYTES, SegmentStore, readable_bytes, used_bytes
from s3prl_varan.upstream.wrapper import Upstream

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when what is stored changes its meaning
GB = 1e9


class FeatureCache:
    """The hidden states of clips under one upstream, in the folder `root` (which may hold other upstreams' as well).

    pooled: keep means over time only. budget_gb: what all of `root` may take; beyond it clips are computed each time.
    """

    def __init__(
        self,
        root: str | Path,
        upstream: Upstream,
        *,
        pooled: bool,
        normalize: bool = False,
        budget_gb: float = 20.0,
    ):
        self.root, self.upstream = Path(root), upstream
        self.pooled, self.normalize, self.budget = pooled, normalize, budget_gb * GB
        self.hits = self.misses = 0
        self.most_clips: int | None = (
            None  # more different clips than this are a sign of random audio
        )
        about = _about(upstream, pooled, normalize)
        try:
            self.store = SegmentStore(self.root / _store_name(about))
            _write_about(self.store.folder / ABOUT, about)
        except OSError as error:
            raise UserError(
                f"--cache {root}: cannot be written ({error.strerror}). Give another folder."
            ) from error
        self.key = ClipKeys()
        self._stored, self._stopped = 0, False
        self._used, self._used_at = 0, -1.0

    def encode(self, wavs: Sequence[Tensor], layers: Sequence[int]) -> LayerStack:
        """Waveforms B x [num_samples] -> the hidden states `layers`, on the upstream's device, float32, without gradient.

        pooled: hidden [B, N, 1, D], lengths 1; else [B, N, T, D], zero past each clip's own frames, lengths as the
        upstream gives them for the clip alone.
        """
        keys = [self.key(wav) for wav in wavs]
        if any(key not in self.store.records for key in keys):
            self.store.refresh()
        found: dict[bytes, tuple[np.ndarray, int]] = {}
        for key, wav in zip(keys, wavs, strict=True):
            if key not in found:
                stored = self.store.get(key)
                self.misses += stored is None
                self.hits += stored is not None
                found[key] = stored or self._compute(key, wav)
        return self._collate([found[key] for key in keys], _as_slice(layers))

    def _collate(
        self, entries: list[tuple[np.ndarray, int]], layers: slice | list[int]
    ) -> LayerStack:
        device = next(self.upstream.parameters(), torch.empty(0)).device
        if self.pooled:
            hidden = torch.from_numpy(np.stack([array[layers] for array, _ in entries]))
            return LayerStack(
                hidden.to(device), torch.ones(len(entries), dtype=torch.long, device=device)
            )
        chosen = [array[layers] for array, _ in entries]
        count, _, dim = chosen[0].shape
        frames = max(array.shape[1] for array in chosen)
        hidden = torch.zeros(
            count, len(entries), frames, dim
        )  # laid out [N, B, T, D], as stack_layers does
        target = hidden.numpy()
        for index, array in enumerate(chosen):
            target[:, index, : array.shape[1]] = array
        lengths = torch.tensor([length for _, length in entries], device=device)
        return LayerStack(hidden.to(device).transpose(0, 1), lengths)

    @torch.no_grad()
    def _compute(self, key: bytes, wav: Tensor) -> tuple[np.ndarray, int]:
        """All hidden states of one clip [N, T or 1, D] and its valid frames; stored where there is room."""
        device = next(self.upstream.parameters(), wav).device
        with torch.autocast(device.type, enabled=False):
            states = self.upstream([wav.to(device, torch.float32)])
            stack = stack_layers(
                states.layers, states.lengths, pool=self.pooled, normalize=self.normalize
            )
        array = stack.hidden[0].float().cpu().numpy()
        length = int(stack.lengths[0])
        if not self.pooled and np.abs(array).max() < np.finfo(np.float16).max:
            array = array.astype(np.float16)
        self._keep(key, array, length)
        return array, length

    def _keep(self, key: bytes, array: np.ndarray, length: int) -> None:
        if self._stopped:
            return
        size = array.nbytes + HEADER_BYTES + 64
        if self._fill(size) > self.budget:
            return self._stop(f"is full ({self.budget / GB:g} GB, see --cache_gb)")
        if self.most_clips is not None and self._stored >= self.most_clips:
            return self._stop(
                f"gets more than the {self.most_clips} clips there are: the audio is cropped or changed at random"
            )
        try:
            self.store.put(key, array, length)
        except OSError as error:
            return self._stop(f"cannot be written ({error.strerror})")
        self._stored += 1

    def _stop(self, why: str) -> None:
        self._stopped = True
        logger.warning(
            "cache: %s %s; nothing more is stored, what is missing is computed each time",
            self.root,
            why,
        )

    def _fill(self, size: int) -> float:
        """Bytes in the cache with `size` more; other processes' growth is looked up once a second."""
        if time.monotonic() - self._used_at > 1.0:
            self._used, self._used_at = used_bytes(self.root), time.monotonic()
        self._used += size
        return self._used

    def forecast(self, num_samples: Sequence[int] | None, clips: int) -> str:
        """One line on what is stored and what will fit. num_samples: of every clip, where known; clips: how many there are."""
        self.most_clips = None if num_samples is None else clips
        kind = "means over time" if self.pooled else "all frames"
        head = f"cache: {self.store.folder}, {kind}, {len(self.store)} clips stored; "
        if num_samples is None and not self.pooled:
            return f"{head}{clips} clips of unknown length, the budget is {self.budget / GB:g} GB."
        needed = sum(self.entry_bytes(samples) for samples in num_samples or [0] * clips)
        own = used_bytes(self.store.folder)
        others = used_bytes(self.root) - own
        free = shutil.disk_usage(self.root).free
        room = max(0, min(self.budget - others, own + free))  # what this store may grow to
        head += (
            f"{clips} clips need {readable_bytes(needed)}, there is room for {readable_bytes(room)}"
        )
        if needed <= room:
            return f"{head}."
        disk = own + free < self.budget - others
        wanted = math.ceil((others + needed) * 1.02 / GB * 100) / 100  # two digits
        remedy = (
            f"The disk has {readable_bytes(free)} left."
            if disk
            else f"For all, give --cache_gb {wanted:g}."
        )
        return f"{head}: about {room / needed:.0%} of them fit, the others are computed at every step. {remedy}"

    def entry_bytes(self, num_samples: int) -> int:
        """Size of a stored clip of so many samples."""
        if self.pooled:
            return HEADER_BYTES + 4 * self.upstream.num_hidden * self.upstream.dim
        frames = max(1, round(num_samples / self.upstream.downsample_rate))
        return HEADER_BYTES + 2 * self.upstream.num_hidden * self.upstream.dim * frames


def _as_slice(layers: Sequence[int]) -> slice | list[int]:
    """Consecutive indices as a slice, which is a view."""
    first, last = layers[0], layers[-1]
    return slice(first, last + 1) if list(layers) == list(range(first, last + 1)) else list(layers)


def _about(upstream: Upstream, pooled: bool, normalize: bool) -> dict:
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


def _store_name(about: dict) -> str:
    content = {
        name: value for name, value in about.items() if name not in ("upstream", "checkpoint")
    }
    digest = hashlib.blake2b(
        json.dumps(content, sort_keys=True).encode(), digest_size=8
    ).hexdigest()
    name = "".join(
        char if char.isalnum() or char in "-_" else "_" for char in Path(about["upstream"]).name
    )
    return f"{name[:40]}-{about['kept']}-{digest}"


def _write_about(path: Path, about: dict) -> None:
    if not path.is_file():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
