"""What is trained and on what: tones in RAVDESS's layout, two upstreams of a few thousand weights.

`fixed` draws nothing; `wavlm` is s3prl's own WavLM with dropout, layer drop and masking, which draw
from torch's and numpy's generators.
"""

from pathlib import Path

import numpy as np
import soundfile
import torch

from s3prl_varan.corpora.ravdess import prepare_ravdess

FIXED = '''
"""An s3prl-style upstream: random layers over log spectra, frames of 20 ms."""
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

HOP = 320


class Expert(nn.Module):
    def __init__(self, **_):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Linear(HOP // 2 + 1, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        for each in self.parameters():
            each.data = 0.3 * torch.randn(each.shape, generator=generator)

    def get_downsample_rates(self, key):
        return HOP

    def forward(self, wavs):
        frames = [wav[: len(wav) // HOP * HOP].view(-1, HOP) for wav in wavs]
        spectra = [torch.log(torch.fft.rfft(each).abs() + 1e-3) for each in frames]
        states = [self.embed(pad_sequence(spectra, batch_first=True))]
        for layer in self.layers:
            states.append(states[-1] + torch.tanh(layer(states[-1])))
        return {"hidden_states": states}
'''
WAVLM = {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2",
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "dropout_input": 0.1,
    "encoder_layerdrop": 0.1,
    "mask_prob": 0.5,
    "mask_length": 2,
    "extractor_mode": "layer_norm",
}
ACTORS, LABELS, RATE = 8, 8, 16000


def write_corpus(root: Path) -> Path:
    """64 clips of 0.2 to 0.3 s, a pitch for each class."""
    generator = np.random.default_rng(0)
    for actor in range(1, ACTORS + 1):
        folder = root / f"Actor_{actor:02d}"
        folder.mkdir(parents=True)
        for label in range(1, LABELS + 1):
            time = np.arange(int(RATE * generator.uniform(0.2, 0.3))) / RATE
            wave = 0.3 * np.sin(2 * np.pi * (200 + 150 * label) * time)
            wave += 0.1 * generator.standard_normal(len(time))
            name = f"03-01-{label:02d}-01-01-01-{actor:02d}.wav"
            soundfile.write(folder / name, wave.astype("float32"), RATE)
    prepare_ravdess(root)
    return root


def write_fixed(path: Path) -> str:
    """The upstream as a file of Python; what -u calls it."""
    path.write_text(FIXED.lstrip())
    return f"{path}:Expert"


def write_wavlm(path: Path) -> str:
    """A checkpoint as `-u wavlm_local -k PATH` reads it; its path."""
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    torch.manual_seed(0)
    config = WavLMConfig(WAVLM)
    torch.save({"cfg": vars(config), "model": WavLM(config).state_dict()}, path)
    return str(path)
