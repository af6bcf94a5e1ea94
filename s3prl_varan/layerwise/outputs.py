"""What heads give and what becomes of it: outputs of every layer, one prediction of L."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass
class LayerOutputs:
    """The heads' outputs for a batch, a layer each."""

    values: (
        Tensor  # [B, L, C] for utterances, [B, L, T, V] for frames; logits, masks, embeddings...
    )
    lengths: Tensor  # [B] valid frames of T

    @cached_property
    def log_probs(self) -> Tensor:
        """log_softmax over the last axis, float32; taken once, for the loss and the prediction."""
        return self.values.float().log_softmax(dim=-1)


@dataclass(frozen=True)
class Prediction:
    """One prediction out of L.

    Log-probabilities up to a constant over the last axis, or what the task says.
    """

    values: Tensor  # [B, C] or [B, T, V]
    lengths: Tensor  # [B] valid frames of T
