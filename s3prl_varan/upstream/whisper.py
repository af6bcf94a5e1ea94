"""`-u whisper -k DIR_OR_HUB_ID`: the encoder of any Hugging Face Whisper checkpoint.

Whisper was trained on clips padded to 30 s; padding costs a 3 s clip ten times the work and fills
its frames with silence. Here each clip is only as long as it is: log-mel of its own frames,
cropped position embeddings, padding masked, so that a clip's hidden states do not depend on the
batch. Clips beyond 30 s are encoded in consecutive windows of 30 s.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.features.pooling import frames_inside
from s3prl_varan.upstream.hugging_face import find_folder

N_FFT, HOP, STRIDE = 400, 160, 2  # samples, samples, mel frames per hidden frame
SAMPLES_PER_FRAME = HOP * STRIDE
# Of the encoder's tensors in ...ForConditionalGeneration, WhisperModel and WhisperEncoder.
PREFIXES = ("model.encoder.", "encoder.", "")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram (Radford et al. 2022, arXiv 2212.04356, section 2.2).

    x = log10(max(mel, 1e-10));  x = (max(x, max over the clip - 8) + 4) / 4.  Over each clip's own
    frames; beyond its end a clip is silent.
    """

    filters: Tensor  # [M, N_FFT / 2 + 1]
    window: Tensor  # [N_FFT]

    def __init__(self, num_mel: int):
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            1 + N_FFT // 2, num_mel, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        matrix = torch.from_numpy(filters).float().T.contiguous()
        self.register_buffer("filters", matrix, persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """B x [num_samples] -> log-mel [B, M, F], zero beyond a clip's end, and its frames [B].

        Frames are even: 2 * ceil(samples / 320).
        """
        device = wavs[0].device
        hidden = [max(1, -(-len(wav) // SAMPLES_PER_FRAME)) for wav in wavs]
        frames = torch.tensor([STRIDE * count for count in hidden], device=device)
        total = STRIDE * max(hidden)
        padded = pad_sequence([wav.float() for wav in wavs], batch_first=True)
        # Long enough that no frame which is kept sees the end that stft reflects.
        padded = F.pad(padded, (0, total * HOP + N_FFT - padded.size(1)))
        with torch.autocast(device.type, enabled=False):
            spectrum = torch.stft(padded, N_FFT, HOP, window=self.window, return_complex=True)
            power = spectrum[..., :total].abs().square()
            mel = (self.filters @ power).clamp_min(1e-10).log10()
        beyond = ~frames_inside(frames, total, frames.device)[:, None]
        loudest = mel.masked_fill(beyond, -10.0).amax(dim=(1, 2), keepdim=True)
        return ((mel.maximum(loudest - 8.0) + 4.0) / 4.0).masked_fill(beyond, 0.0), frames


class UpstreamExpert(nn.Module):
    """Hidden states of a transformers WhisperEncoder.

    Embeddings, then every layer's output, the last one normalised.
    """

    def __init__(self, encoder: Any):
        super().__init__()
        self.model: Any = encoder
        self.log_mel = LogMel(encoder.config.num_mel_bins)
        self.window: int = encoder.config.max_source_positions  # hidden frames in 30 s

    def get_downsample_rates(self, key: str) -> int:
        """Samples per hidden frame."""
        return SAMPLES_PER_FRAME

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """16 kHz waveforms B x [num_samples] -> "hidden_states" N x [B, T, D], and the last one."""
        mel, frames = self.log_mel(wavs)
        hidden_states = self.encode(mel, frames)
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}

    def encode(self, mel: Tensor, frames: Tensor) -> list[Tensor]:
        """Log-mel [B, M, F], frames [B] (even) -> hidden states N x [B, F / 2, D], by windows."""
        size = STRIDE * self.window
        batch, _, total = mel.shape
        if total <= size:
            return self._encode_window(mel, frames)
        count = -(-total // size)
        windows = F.pad(mel, (0, count * size - total)).unflatten(-1, (count, size))
        windows = windows.transpose(1, 2).flatten(0, 1)  # [B * count, M, size]
        starts = size * torch.arange(count, device=mel.device)
        left = (frames[:, None] - starts).clamp(0, size).flatten()  # [B * count]
        filled = left.nonzero()[:, 0]  # a window without a frame would attend to nothing
        hidden_states = []
        for hidden in self._encode_window(windows[filled], left[filled]):
            whole = hidden.new_zeros(batch * count, *hidden.shape[1:]).index_copy(0, filled, hidden)
            joined = whole.unflatten(0, (batch, count)).flatten(1, 2)  # [B, frames of all, D]
            hidden_states.append(joined[:, : total // STRIDE])
        return hidden_states

    def _encode_window(self, mel: Tensor, frames: Tensor) -> list[Tensor]:
        encoder = self.model
        inside = frames_inside(frames, mel.size(-1), frames.device)
        # Frames beyond the end are zero before each convolution, as its own zero padding would be.
        x = F.gelu(encoder.conv1(mel)) * inside[:, None]
        x = F.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.size(1)]
        x = F.dropout(x, p=encoder.dropout, training=self.training)
        inside = inside[:, ::STRIDE]
        attends = None if inside.all() else inside[:, None, None]  # [B, 1, 1, T]
        hidden_states = [x]
        for layer in encoder.layers:
            x = layer(x, attends)
            x = x[0] if isinstance(x, tuple) else x  # transformers 4 returns a tuple
            hidden_states.append(x)
        hidden_states[-1] = encoder.layer_norm(x)
        return hidden_states


def whisper(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False
) -> UpstreamExpert:
    """The expert.

    ckpt: a hub id, or a checkpoint folder with config.json and safetensors (or a
    pytorch_model.bin) of a whole Whisper model or of its encoder. model_config: another
    config.json. refresh: download again.
    """
    if not ckpt:
        raise UserError(
            "Upstream 'whisper' needs -k: a folder with a Hugging Face Whisper checkpoint, or a "
            "hub id such as openai/whisper-base (which is downloaded)."
        )
    folder = find_folder(ckpt, refresh=refresh)
    config = _read_config(Path(model_config) if model_config else folder / "config.json")
    return UpstreamExpert(_load_encoder(config, _read_weights(folder), str(folder)))


def _read_config(path: Path) -> Any:
    from transformers import WhisperConfig

    if not path.is_file():
        raise UserError(
            f"-k: {path.parent} has no {path.name}, so it is not a Hugging Face Whisper checkpoint "
            "folder."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    found = values.get("model_type") if isinstance(values, dict) else None
    if found != "whisper":
        raise UserError(
            f"{path}: expected model_type 'whisper', found {found!r}. For other models use their "
            "own upstream."
        )
    config = WhisperConfig(**values)
    config._attn_implementation = "sdpa"
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The encoder's tensors, under the names of a bare WhisperEncoder.

    Nothing in the files can run code.
    """
    from safetensors import SafetensorError, safe_open

    names = [name for name in WEIGHTS if (folder / name).is_file()]
    if not names:
        raise UserError(f"-k: {folder} has no weights, expected {' or '.join(WEIGHTS)}.")
    path = folder / names[0]
    try:
        if path.suffix == ".bin":
            return _encoder_part(torch.load(path, map_location="cpu", weights_only=True))
        parts = [path.name]
        if path.suffix == ".json":  # the index of a checkpoint in several files
            parts = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        state: dict[str, Tensor] = {}
        for path in (folder / name for name in parts):
            with safe_open(path, framework="pt") as file:
                # The decoder, most of the file, is not even read.
                state |= {key: file.get_tensor(key) for key in file.keys() if _of_encoder(key)}
        return _encoder_part(state)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read as weights, is it damaged? ({type(error).__name__}: {error})"
        ) from error
    except Exception as error:  # pickle's own
        raise UserError(
            f"{path} holds more than tensors and is refused; convert it to safetensors."
        ) from error


def _of_encoder(key: str) -> bool:
    return "decoder." not in key and not key.startswith("proj_out")


def _encoder_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = next((each for each in PREFIXES if f"{each}conv1.weight" in state), "")
    return {
        key.removeprefix(prefix): value.float()
        for key, value in state.items()
        if key.startswith(prefix) and _of_encoder(key)
    }


def _load_encoder(config: Any, state: dict[str, Tensor], source: str) -> Any:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    with torch.device("meta"):  # no random weights to draw, they are all in the file
        encoder = WhisperEncoder(config)
    wanted = encoder.state_dict()
    problems = [f"'{key}' is missing" for key in wanted if key not in state]
    problems += [f"'{key}' is not in the model" for key in state if key not in wanted]
    problems += [
        f"'{key}' is {list(state[key].shape)} in the checkpoint, {list(wanted[key].shape)} by "
        "config.json"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if problems:
        raise problems_error(
            f"The weights in {source} do not fit its config.json ({len(problems)} tensors, the "
            "first ones:)",
            problems[:4],
            "Are both from the same Whisper model?",
        )
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()
