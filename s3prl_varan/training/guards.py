"""Numbers that are not finite and memory that does not suffice: said with the clips' names."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.layerwise.outputs import Prediction
from s3prl_varan.model import SpeechModel
from s3prl_varan.upstream.wrapper import Upstream, rng_untouched

SHOWN = 32  # names in one message
LONG = 60  # seconds; shorter clips are not looked at
PROBES = (2 * SAMPLE_RATE, 4 * SAMPLE_RATE)  # samples


def listed(clips: Sequence[str]) -> str:
    """Names of clips for a message."""
    rest = len(clips) - SHOWN
    return ", ".join(clips[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# ---- numbers


def require_finite_weights(model: SpeechModel) -> None:
    """UserError that names the weights that hold NaN or infinity."""
    bad = [name for name, each in model.named_parameters() if not each.isfinite().all()]
    if bad:
        raise UserError(
            f"The model's weights are not finite (NaN or infinity): {listed(bad)}. Use another "
            "checkpoint, or train again with a lower learning rate."
        )


def require_finite(
    model: SpeechModel, prediction: Prediction, clips: Sequence[str], loss: Tensor | None = None
) -> None:
    """UserError that names the clips whose prediction is no good, or all where only the loss is.

    -inf is allowed in a prediction: a class that is ruled out.
    """
    good = (prediction.values < math.inf).flatten(1).all(dim=1)
    if loss is not None and bool(good.all()):
        good = good & loss.isfinite()
    if bool(good.all()):
        return
    require_finite_weights(model)
    bad = [clip for clip, fine in zip(clips, good.tolist(), strict=True) if not fine]
    raise UserError(
        f"The model's output is not finite (NaN or infinity) for {listed(bad)}. Listen to the "
        "recordings; if they are sound, set runner.precision: fp32."
    )


# ---- memory


@contextmanager
def naming_clips(clips: Sequence[str], wavs: Sequence[Tensor]) -> Iterator[None]:
    """Memory that runs out meanwhile becomes a UserError with the batch that was too much."""
    try:
        yield
    except RuntimeError as error:
        on_cpu = "DefaultCPUAllocator" in str(error)
        if not (on_cpu or isinstance(error, torch.OutOfMemoryError)):
            raise
        seconds = max(map(len, wavs)) / SAMPLE_RATE
        raise UserError(
            f"Out of memory on a batch of {len(wavs)} clips of up to {seconds:.1f} s: "
            f"{listed(clips)}. Lower the batch size (train_batch_size or batch_size, "
            "eval_batch_size), set runner.batch_by_length with runner.batch_seconds, or, where the "
            "upstream is trained, upstream.gradient_checkpointing."
        ) from error


def check_longest(
    upstream: Upstream, clips: Iterable[tuple[str, int]], device: torch.device
) -> None:
    """UserError that lists the clips (name, samples at 16 kHz) that `device` cannot ever hold.

    The upstream's need is a lower bound, and all memory counts as free: what fits is not refused.
    """
    long = sorted((size, name) for name, size in clips if size > LONG * SAMPLE_RATE)
    memory = total_memory(device)
    if not long or memory is None:
        return
    need = bytes_needed(upstream, device)
    problems = [
        f"{name}: {size / SAMPLE_RATE:.0f} s, at least {need(size) / 1e9:.0f} GB"
        for size, name in reversed(long)
        if need(size) > memory
    ]
    if problems:
        rest = len(problems) - SHOWN
        more = [f"and {rest} more"] if rest > 0 else []
        raise problems_error(
            f"Clips that upstream '{upstream.name}' needs more memory for than the "
            f"{memory / 1e9:.0f} GB there are, even one at a time:",
            problems[:SHOWN] + more,
            "Cut them into shorter recordings, or take them out of the corpus.",
        )


def bytes_needed(upstream: Upstream, device: torch.device) -> Callable[[int], float]:
    """A lower bound of the memory for one clip of so many samples (16 kHz).

    All hidden states, and the largest tensor that grows with the square of the length: attention's,
    where its kernel keeps one. That is seen in the operations on two clips, one twice as long.
    """
    upstream.eval()
    runs = []
    with torch.no_grad(), rng_untouched():
        for size in PROBES:
            with _Sizes() as seen:
                upstream([torch.zeros(size, device=device)])
            runs.append(seen.sizes)
    same = len(runs[0]) == len(runs[1])
    squares = [large for small, large in zip(*runs, strict=same) if large > 3 * small]
    square = max(squares, default=0) / PROBES[1] ** 2 if same else 0.0
    states = 4 * upstream.num_hidden * upstream.dim / upstream.downsample_rate
    return lambda size: square * size**2 + states * size


class _Sizes(TorchDispatchMode):
    """Bytes of what each operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        self.sizes.append(max((each.untyped_storage().nbytes() for each in tensors), default=0))
        return result


def total_memory(device: torch.device) -> int | None:
    """Bytes in all; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
