"""A tiny s3prl-style upstream for tests: five hidden states of 24, frames of 20 ms."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

HOP = 320


class UpstreamExpert(nn.Module):
    """Log-spectra through random layers. Padding never leaks in: a frame is computed by itself."""

    def __init__(self, num_layers: int = 4, dim: int = 24):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Linear(HOP // 2 + 1, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def get_downsample_rates(self, key: str) -> int:
        return HOP

    def frame_lengths(self, num_samples):
        return [samples // HOP for samples in num_samples]

    def forward(self, wavs):
        frames = [wav[: len(wav) // HOP * HOP].view(-1, HOP) for wav in wavs]
        hidden = self.embed(
            pad_sequence(
                [torch.log(torch.fft.rfft(f).abs() + 1e-3) for f in frames], batch_first=True
            )
        )
        states = [hidden]
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
            states.append(hidden)
        return {"hidden_states": states, "last_hidden_state": states[-1]}


def tiny(**kwargs):
    return UpstreamExpert()


def one_layer(**kwargs):
    return UpstreamExpert(num_layers=0)


class _Mixed(UpstreamExpert):
    def forward(self, wavs):
        states = super().forward(wavs)["hidden_states"]
        return {"hidden_states": [*states[:-1], torch.cat([states[-1], states[-1]], dim=-1)]}


def mixed_sizes(**kwargs):
    return _Mixed()
