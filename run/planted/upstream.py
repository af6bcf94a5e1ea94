"""-u run/planted/upstream.py:planted: hands on, as hidden states, what a planted clip holds."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

NUM_HIDDEN, DIM = 5, 16  # hidden states, of which 0 is the encoder input
HOP = 320  # samples of a frame; the first NUM_HIDDEN * DIM of them are its hidden states
SCALE = 8.0  # a sample of 1 is this much


class UpstreamExpert(nn.Module):
    """s3prl's interface; nothing is learned and nothing computed."""

    def get_downsample_rates(self, key: str) -> int:
        """Samples of a frame."""
        return HOP

    def forward(self, wavs: list[Tensor]) -> dict[str, Any]:
        """Waveforms B x [num_samples] -> hidden states NUM_HIDDEN x [B, T, DIM]."""
        frames = [wav[: len(wav) // HOP * HOP].view(-1, HOP) for wav in wavs]
        padded = pad_sequence(frames, batch_first=True)[..., : NUM_HIDDEN * DIM]
        states = list((SCALE * padded).unflatten(-1, (NUM_HIDDEN, DIM)).unbind(dim=2))
        return {"hidden_states": states, "last_hidden_state": states[-1]}


def planted(**kwargs: Any) -> UpstreamExpert:
    """As an entry of s3prl's hub."""
    return UpstreamExpert()
