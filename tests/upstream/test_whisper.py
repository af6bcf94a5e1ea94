"""`whisper`: equal to transformers on 30 s, independent of padding, trainable; its refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s3prl_varan.errors import UserError
from s3prl_varan.upstream.whisper import LogMel, whisper
from s3prl_varan.upstream.wrapper import build_upstream

TINY = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 16,
    "vocab_size": 60,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@pytest.fixture(scope="module")
def tiny_dirs(tmp_path_factory) -> dict[str, Path]:
    """The same weights as a whole model, sharded, a WhisperModel, .bin, a bare encoder in fp16."""
    from safetensors.torch import save_file
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    root = tmp_path_factory.mktemp("whisper")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(WhisperConfig(**TINY)).half().float()
    encoder = model.model.encoder.state_dict()
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "sharded", max_shard_size="10KB")
    model.model.save_pretrained(root / "model")
    for name in ("encoder", "bin"):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(TINY))
    save_file(
        {key: value.half() for key, value in encoder.items()},
        root / "encoder" / "model.safetensors",
    )
    torch.save(model.model.state_dict(), root / "bin" / "pytorch_model.bin")
    return {path.name: path for path in root.iterdir()}


def clips(*seconds: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [0.1 * torch.randn(round(16000 * each), generator=generator) for each in seconds]


def assert_same_alone(expert: nn.Module, wavs: list[Tensor], tolerance: float) -> None:
    with torch.no_grad():
        batch = expert(wavs)["hidden_states"]
        for index, wav in enumerate(wavs):
            alone = expert([wav])["hidden_states"]
            frames = -(-len(wav) // 320)
            assert all(layer.shape[1] == frames for layer in alone)
            for many, one in zip(batch, alone, strict=True):
                torch.testing.assert_close(many[index, :frames], one[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_mel", [80, 128])
def test_log_mel_equals_transformers(num_mel):
    from transformers import WhisperFeatureExtractor

    wavs = clips(2.0, 1.1)
    mel, frames = LogMel(num_mel)(wavs)
    assert frames.tolist() == [200, 110] and (mel[1, :, 110:] == 0).all()
    extractor = WhisperFeatureExtractor(feature_size=num_mel)
    theirs = torch.tensor(
        extractor([wav.numpy() for wav in wavs], sampling_rate=16000)["input_features"]
    )
    for index, count in enumerate(frames):
        torch.testing.assert_close(
            mel[index, :, :count], theirs[index, :, :count], rtol=0, atol=1e-5
        )


def test_hidden_states_equal_transformers_on_thirty_seconds(tiny_dirs):
    expert = whisper(str(tiny_dirs["encoder"]))
    mel = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = expert.model(mel, output_hidden_states=True).hidden_states
        ours = expert.encode(mel, torch.tensor([3000, 3000]))
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_every_form_of_checkpoint_gives_the_same(tiny_dirs):
    assert len(list(tiny_dirs["sharded"].glob("model-*.safetensors"))) > 1
    wavs = clips(0.7, 0.4)
    with torch.no_grad():
        states = {
            name: whisper(str(path))(wavs)["hidden_states"][-1] for name, path in tiny_dirs.items()
        }
    assert states["encoder"].dtype == torch.float32
    assert all(torch.equal(each, states["encoder"]) for each in states.values()), states.keys()


def test_result_does_not_depend_on_the_batch(tiny_dirs):
    expert = whisper(str(tiny_dirs["encoder"]))
    assert_same_alone(expert, [*clips(1.0, 0.33, 0.001), torch.zeros(5000), clips(0.0321)[0]], 1e-5)


def test_clips_beyond_thirty_seconds_go_window_by_window(tiny_dirs):
    expert = whisper(str(tiny_dirs["encoder"]))
    long, short = clips(60.5, 0.5)
    assert_same_alone(expert, [long, short], 1e-5)
    with torch.no_grad():
        mel, frames = expert.log_mel([long])
        windows = [mel[:, :, :3000], mel[:, :, 3000:6000], mel[:, :, 6000:]]
        apart = [expert.encode(each, torch.tensor([each.size(-1)]))[-1] for each in windows]
        torch.testing.assert_close(
            expert.encode(mel, frames)[-1], torch.cat(apart, 1), rtol=0, atol=1e-5
        )


def test_as_upstream(tiny_dirs):
    upstream = build_upstream("whisper", str(tiny_dirs["whole"]))
    assert (upstream.num_hidden, upstream.dim, upstream.downsample_rate) == (4, 16, 320)
    hidden = upstream([*clips(1.0, 0.3), torch.zeros(0), torch.zeros(9000)])
    assert hidden.lengths.tolist() == [50, 15, 1, 28] and all(
        layer.isfinite().all() for layer in hidden.layers
    )


class Low(nn.Module):
    """A low-rank addition to a weight, as LoRA's."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.down = nn.Parameter(torch.full((2, weight.size(1)), 0.01))
        self.up = nn.Parameter(torch.zeros(weight.size(0), 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def test_every_weight_of_a_layer_can_be_parametrized_and_trained(tiny_dirs):
    upstream = build_upstream("whisper", str(tiny_dirs["encoder"])).requires_grad_(False).train()
    plain = upstream(clips(0.5))
    for name in ("fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj"):
        for module in [
            module for key, module in upstream.named_modules() if key.endswith(f".{name}")
        ]:
            parametrize.register_parametrization(module, "weight", Low(module.weight))
    adapted = upstream(clips(0.5))
    assert torch.equal(plain.layers[-1], adapted.layers[-1])
    weight = torch.randn(adapted.layers[-1].shape, generator=torch.Generator().manual_seed(0))
    (adapted.layers[-1] * weight).sum().backward()
    ups = {key: value.grad for key, value in upstream.named_parameters() if key.endswith(".up")}
    assert len(ups) == 18 and all(
        grad is not None and grad.abs().sum() > 0 for grad in ups.values()
    )


def test_gradient_checkpointing_of_layers_changes_no_gradient(tiny_dirs):
    gradients = []
    for checkpointing in (False, True):
        expert = whisper(str(tiny_dirs["encoder"])).train()
        if checkpointing:
            expert.model.gradient_checkpointing_enable()
            assert any(
                getattr(layer, "gradient_checkpointing", False) for layer in expert.model.layers
            )
        expert(clips(0.5))["hidden_states"][-1].square().sum().backward()
        gradients.append(expert.model.layers[0].fc1.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        build_upstream("whisper", *args, **kwargs)
    return str(caught.value)


def test_what_is_refused(tiny_dirs, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    assert "needs -k: a folder with" in refusal() and "openai/whisper-base" in refusal()
    assert "there is no folder ./gone" in refusal("./gone")
    said = refusal("openai/whisper-none")
    assert (
        "as a hub id it could not be downloaded (ZeroDivisionError" in said
        and "give the folder" in said
    )
    assert "is a file" in refusal(str(tiny_dirs["encoder"] / "config.json"))
    assert "has no config.json" in refusal(str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "wavlm"}')
    assert "expected model_type 'whisper', found 'wavlm'" in refusal(str(tmp_path))
    config.write_text("{")
    assert "is not valid JSON" in refusal(str(tmp_path))
    config.write_text(json.dumps({**TINY, "encoder_layers": 4, "d_model": 32}))
    assert "has no weights, expected model.safetensors" in refusal(str(tmp_path))
    shutil.copy(tiny_dirs["encoder"] / "model.safetensors", tmp_path)
    said = refusal(str(tmp_path))
    assert (
        "do not fit its config.json" in said
        and "'layers.3.self_attn" in said
        and len(said.splitlines()) == 6
    )
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    assert "cannot be read as weights" in refusal(str(tmp_path))


def test_real_encoder(whisper_dir):
    """The shared tiny.en encoder: as transformers on 30 s, and a batch as its clips one by one."""
    expert = whisper(str(whisper_dir))
    assert_same_alone(expert, clips(0.9, 0.5), 2e-4)
    mel, frames = expert.log_mel(clips(0.8))
    full = torch.nn.functional.pad(mel, (0, 3000 - mel.size(-1)), value=float(mel[:, :, :80].min()))
    with torch.no_grad():
        theirs = expert.model(full, output_hidden_states=True).hidden_states
        ours = expert.encode(full, torch.tensor([3000]))
    assert len(ours) == 5
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
