"""`-u micro_wavlm`: a tiny WavLM in s3prl's own code, with the weights shipped beside this file.

Without them it has fixed random ones. Unlike s3prl's expert it tells the exact number of frames of
each clip, so padding in a batch changes no hidden state. -g takes another config of the form of
micro_wavlm.yaml, -k other weights (safetensors, names of s3prl's WavLM).
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from s3prl.upstream.interfaces import UpstreamBase
from s3prl.upstream.wavlm import expert as s3prl_expert
from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.files import atomic_path

CONFIG = Path(__file__).with_suffix(".yaml")
WEIGHTS = Path(__file__).with_suffix(".safetensors")


class UpstreamExpert(s3prl_expert.UpstreamExpert):
    """s3prl's WavLM expert around a model in memory.

    Hidden states: the input of every layer, then the encoder's output.
    """

    def __init__(self, model: WavLM):
        # Past s3prl's own __init__, which does no more than load a file and set what follows.
        UpstreamBase.__init__(self)
        self.cfg, self.model = model.cfg, model
        self.model.feature_grad_mult = 0.0  # the convolutions are not trained
        self.model.encoder.layerdrop = self._init_layerdrop = 0.0
        for index in range(len(model.encoder.layers)):
            layer = f"self.model.encoder.layers[{index}]"
            self.add_hook(layer, lambda args, output: args[0].transpose(0, 1))
        self.add_hook("self.model.encoder", lambda args, output: output[0])

    def frame_lengths(self, num_samples: Sequence[int]) -> list[int]:
        """Frames that the convolutions, which pad nothing, make of clips of these many samples."""
        lengths = list(num_samples)
        for layer in self.model.feature_extractor.conv_layers:
            kernel, stride = layer[0].kernel_size[0], layer[0].stride[0]
            lengths = [(length - kernel) // stride + 1 for length in lengths]
        return lengths

    def forward(self, wavs: Sequence[Tensor]) -> None:
        """16 kHz waveforms B x [num_samples]; hooks collect (layers + 1) x [B, T, D]."""
        if self.cfg.normalize:
            wavs = [F.layer_norm(wav, wav.shape) for wav in wavs]
        frames = self.frame_lengths([len(wav) for wav in wavs])
        padded = pad_sequence(list(wavs), batch_first=True)
        # WavLM cuts the sample mask into T equal chunks, and a frame is padding where its chunk is:
        # mark whole chunks.
        chunk = padded.size(1) // max(frames)
        ends = torch.tensor(frames, device=padded.device)[:, None] * chunk
        padding = torch.arange(padded.size(1), device=padded.device) >= ends
        self.model.extract_features(padded, padding_mask=padding)

    def export(self, path: str | Path) -> None:
        """Write a checkpoint for s3prl's `wavlm_local -k path`.

        For a clip by itself it gives the same hidden states.
        """
        with atomic_path(Path(path)) as temporary:
            torch.save({"cfg": dict(vars(self.cfg)), "model": self.model.state_dict()}, temporary)


def build_wavlm(
    config: dict[str, Any], state: dict[str, Tensor] | None = None, *, seed: int = 0
) -> UpstreamExpert:
    """An expert from WavLMConfig fields; float32 weights from `state` (any type) or from `seed`.

    The global random generators stay as they were. UserError where a field is unknown.
    """
    known = vars(WavLMConfig())
    unknown = [
        f"'{key}' is no field of WavLMConfig.{did_you_mean(key, known)}"
        for key in config
        if key not in known
    ]
    if unknown:
        raise problems_error("This WavLM config cannot be built:", unknown)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # s3prl builds with torch's old weight_norm
        torch.manual_seed(seed)
        model = WavLM(WavLMConfig(config))
    if state is not None:
        model.load_state_dict({key: value.float() for key, value in state.items()})
    return UpstreamExpert(model).eval()


def micro_wavlm(ckpt: str | None = None, model_config: str | None = None) -> UpstreamExpert:
    """The expert `-u micro_wavlm`."""
    options = yaml.safe_load(Path(model_config or CONFIG).read_text(encoding="utf-8"))
    if not isinstance(options, dict) or not isinstance(options.get("model"), dict):
        raise UserError(
            f"-g {model_config}: expected a section `model:` with fields of WavLMConfig, as in "
            f"{CONFIG.name}."
        )
    state = None
    if ckpt is not None:
        state = _read_state(Path(ckpt))
    elif model_config is None and WEIGHTS.is_file():
        state = _read_state(WEIGHTS, options.get("sha256"))
    return build_wavlm(options["model"], state, seed=options.get("seed", 0))


def _read_state(path: Path, sha256: str | None = "") -> dict[str, Tensor]:
    """A safetensors file; with `sha256` other than "" its content must have this digest."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise UserError(f"-k: there is no file {path}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in ("", found):
        raise UserError(
            f"{path} is damaged: sha256 {found}, {CONFIG.name} says {sha256}. Install the package "
            "again."
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}).") from error
