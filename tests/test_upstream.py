"""Upstreams: names, what is refused and how, lengths, padding; `micro_wavlm` against s3prl's own WavLM."""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_varan.errors import UserError
from s3prl_varan.upstream import micro_wavlm as micro
from s3prl_varan.upstream.hub import hub_modules, known_names
from s3prl_varan.upstream.wrapper import Upstream, build_upstream

SMALL = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
    "conv_pos": 16,
    "extractor_mode": "layer_norm",
    "normalize": True,
}
EXPERT = '''
import helper_beside_it
from torch import nn
from torch.nn.utils.rnn import pad_sequence


class Expert(nn.Module):
    """Frames of 160 samples, as two hidden states."""

    def __init__(self, ckpt=None):
        super().__init__()
        self.ckpt = ckpt
        self.linear = nn.Linear(160, helper_beside_it.SIZE)

    def forward(self, wavs):
        wavs = pad_sequence(wavs, batch_first=True)
        frames = self.linear(wavs[:, : wavs.size(1) // 160 * 160].unflatten(1, (-1, 160)))
        return {"hidden_states": [frames, frames.relu()], "mean": frames.mean(1)}

    def get_downsample_rates(self, key):
        return 160.0


number = 3
'''


class Frames(nn.Module):
    """An expert whose output a test chooses: `make` maps [B, T] frames of 160 samples to the output."""

    def __init__(self, make, rate: int | None = 160):
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.ones(3))
        if rate is not None:
            self.get_downsample_rates = lambda key: rate

    def forward(self, wavs: Sequence[Tensor]) -> object:
        wavs = pad_sequence(list(wavs), batch_first=True)
        return self.make(wavs[:, ::160, None] * self.weight)


@pytest.fixture(autouse=True)
def own_import_path(monkeypatch):
    """-u adds folders to sys.path; each test gets its own."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture
def expert_file(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside_it.py").write_text("SIZE = 5\n")
    path = tmp_path / "expert.py"
    path.write_text(EXPERT)
    sys.modules.pop("helper_beside_it", None)
    return path


@pytest.fixture
def wavlm_file(tmp_path: Path) -> Path:
    path = tmp_path / "wavlm.pt"
    micro.build_wavlm(SMALL).export(path)
    return path


def noise(*lengths: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        build_upstream(*args, **kwargs)
    return str(caught.value)


@pytest.mark.slow
def test_all_names_of_the_hub_are_known():
    """The table is read from the sources; s3prl.hub itself takes seconds to import, hence a process of its own."""
    code = "import s3prl.hub as hub; print('NAMES', *(n + '=' + getattr(hub, n).__module__ for n in hub.options()))"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    listed = dict(pair.split("=") for pair in said.split("NAMES ")[1].split())
    not_upstreams = {
        "Path",
        "FileLock",
        "load_and_convert_fairseq_ckpt",
    }  # imports that options() counts too
    assert set(listed) - set(hub_modules()) == not_upstreams
    assert set(hub_modules()) <= set(listed)
    defined = {
        name: module
        for name, module in listed.items()
        if name in hub_modules() and name != "vq_apc_url"
    }
    assert {name: hub_modules()[name] for name in defined} == defined


def test_names_cost_no_import_of_the_hub():
    code = (
        "import sys; from s3prl_varan.upstream.wrapper import build_upstream; build_upstream('micro_wavlm');"
        "build_upstream('mel');"
        "sys.exit('s3prl.hub' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert known_names()[:2] == ["whisper", "micro_wavlm"] and len(known_names()) > 180


@pytest.mark.parametrize(
    "name, rate, dim",
    [("fbank", 160, 240), ("mfcc", 160, 39), ("mel", 160, 80), ("linear", 160, 201)],
)
def test_spectral_features(name, rate, dim):
    upstream = build_upstream(name)
    assert (upstream.num_hidden, upstream.dim, upstream.downsample_rate) == (1, dim, rate)
    hidden = upstream([torch.zeros(9000), torch.zeros(3), *noise(5000)])
    assert hidden.layers[0].isfinite().all()
    alone = [
        upstream([clip]).lengths[0]
        for clip in (torch.zeros(9000), torch.zeros(3), torch.zeros(5000))
    ]
    assert hidden.lengths.tolist() == alone
    rounded = [
        round(9000 / 160),
        round(upstream.min_samples / 160),
        round(5000 / 160),
    ]  # SUPERB's rule, an upper bound
    assert all(one <= most <= one + 2 for one, most in zip(alone, rounded, strict=True))


def test_global_random_generators_stay_as_they_are():
    torch.manual_seed(7)
    np.random.seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = build_upstream("micro_wavlm"), build_upstream("micro_wavlm")
    assert (
        torch.equal(torch.get_rng_state(), before)
        and (np.random.get_state()[1] == numpy_before).all()
    )
    assert first.fingerprint() == second.fingerprint()


def test_fingerprint_tells_weights_and_options_apart():
    def fingerprint(weight: float, **options) -> str:
        expert = Frames(lambda x: {"hidden_states": [x, x], "other": x})
        nn.init.constant_(expert.weight, weight)
        return Upstream(expert, **{"name": "a", **options}).fingerprint()

    same = fingerprint(1.0)
    others = [
        fingerprint(2.0),
        fingerprint(1.0, name="b"),
        fingerprint(1.0, layer=0),
        fingerprint(1.0, feature_selection="other"),
    ]
    assert fingerprint(1.0) == same and len({same, *others}) == 5
    upstream = Upstream(Frames(lambda x: {"hidden_states": x}), name="a")
    before = upstream.fingerprint()
    nn.init.zeros_(upstream.expert.weight)
    assert upstream.fingerprint() == before, (
        "cached: training does not change which upstream it was"
    )
    assert fingerprint(1.0, name="here/e.py:E") == fingerprint(1.0, name="/there/e.py:E")


# --- micro_wavlm -----------------------------------------------------------------------------------------------------


def test_micro_wavlm_result_does_not_depend_on_the_batch():
    upstream = build_upstream("micro_wavlm")
    assert (upstream.num_hidden, upstream.dim, upstream.downsample_rate) == (13, 128, 320)
    wavs = noise(16000, 400, 7777, 12345, 33)
    with torch.no_grad():
        batch = upstream(wavs)
        for index, wav in enumerate(wavs):
            alone = upstream([wav])
            frames = alone.lengths.item()
            assert frames == batch.lengths[index].item() == alone.layers[0].size(1)
            for one, many in zip(alone.layers, batch.layers, strict=True):
                torch.testing.assert_close(many[index, :frames], one[0], rtol=0, atol=2e-5)
    assert upstream([torch.zeros(16000)]).layers[-1].isfinite().all()


def test_micro_wavlm_export_equals_s3prls_wavlm_local(tmp_path):
    expert = micro.micro_wavlm()
    expert.export(tmp_path / "micro.pt")
    theirs, ours = (
        build_upstream("wavlm_local", str(tmp_path / "micro.pt")),
        Upstream(expert, name="micro_wavlm"),
    )
    with torch.no_grad():
        for wavs in (noise(16000), noise(9000, 9000)):
            for a, b in zip(theirs(wavs).layers, ours(wavs).layers, strict=True):
                assert torch.equal(a, b)
    assert theirs.fingerprint() != ours.fingerprint()


def test_micro_wavlm_trains():
    upstream = Upstream(micro.build_wavlm(SMALL), name="micro_wavlm").train()
    upstream(noise(8000, 5000)).layers[-1].square().mean().backward()
    layers = upstream.expert.model.encoder.layers
    assert all(layer.fc1.weight.grad.abs().sum() > 0 for layer in layers)
    assert all(each.grad is None for each in upstream.expert.model.feature_extractor.parameters())


def test_build_wavlm_takes_half_precision_weights_and_names_unknown_fields():
    state = {
        key: value.half()
        for key, value in micro.build_wavlm(SMALL, seed=1).model.state_dict().items()
    }
    expert = micro.build_wavlm(SMALL, state)
    assert all(
        torch.equal(value, state[key].float()) for key, value in expert.model.state_dict().items()
    )
    with pytest.raises(
        UserError, match="'encoder_layer' is no field of WavLMConfig. Did you mean 'encoder_layers'"
    ):
        micro.build_wavlm({"encoder_layer": 2})


def test_shipped_weights_are_there_small_and_give_layers_that_differ():
    assert micro.WEIGHTS.stat().st_size < 12e6
    shipped, drawn = (
        build_upstream("micro_wavlm"),
        build_upstream("micro_wavlm", model_config=str(micro.CONFIG)),
    )
    assert shipped.num_hidden == 13 and shipped.fingerprint() != drawn.fingerprint()
    layers = shipped(noise(16000)).layers
    for below, above in itertools.pairwise(layers):
        assert torch.cosine_similarity(below, above, dim=-1).mean() < 0.99


def test_shipped_weights_are_checked(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setattr(micro, "WEIGHTS", tmp_path / "micro_wavlm.safetensors")
    trained = {key: value + 1 for key, value in micro.micro_wavlm().model.state_dict().items()}
    save_file(trained, micro.WEIGHTS)
    with pytest.raises(UserError, match="is damaged: sha256 .* Install the package again"):
        micro.micro_wavlm()
    expert = micro.micro_wavlm(ckpt=str(micro.WEIGHTS))
    assert torch.equal(expert.model.mask_emb, trained["mask_emb"])
    with pytest.raises(UserError, match="is not a safetensors file"):
        micro.micro_wavlm(ckpt=str(micro.CONFIG))


# --- experts of the user's own --------------------------------------------------------------------------------------


def test_expert_from_a_file_and_from_a_module(expert_file, monkeypatch):
    upstream = build_upstream(f"{expert_file}:Expert")
    assert (upstream.num_hidden, upstream.dim, upstream.downsample_rate) == (2, 5, 160)
    hidden = upstream(noise(1600, 800, 10))
    assert hidden.lengths.tolist() == [10, 5, 2] and hidden.layers[0].shape == (
        3,
        10,
        5,
    )  # 10 samples: padded to 400
    assert build_upstream(f"{expert_file}:Expert", "any").expert.ckpt == "any"
    shutil.copy(expert_file, expert_file.with_name("users_module.py"))
    monkeypatch.chdir(expert_file.parent)
    assert build_upstream("users_module:Expert").dim == 5


def test_mistakes_with_an_expert_of_ones_own(expert_file, tmp_path):
    assert "no 'Exprt'. Did you mean 'Expert'?" in refusal(f"{expert_file}:Exprt")
    assert "'number' in" in refusal(f"{expert_file}:number")
    assert f"there is no file {tmp_path}/gone.py" in refusal(f"{tmp_path}/gone.py:Expert")
    assert "there is no module 'no_such_package'" in refusal("no_such_package.expert:Expert")
    assert "write path/to/expert.py:callable" in refusal(str(expert_file))
    assert "-g " in refusal(f"{expert_file}:Expert", model_config=str(expert_file))
    broken = tmp_path / "broken.py"
    broken.write_text("\n1 / 0\n")
    assert "ZeroDivisionError: division by zero (line 2 of" in refusal(f"{broken}:Expert")
    assert "expected a torch.nn.Module, it made a dict" in refusal("builtins:dict")


def test_error_inside_the_users_code_is_shown_whole(tmp_path):
    path = tmp_path / "expert.py"
    path.write_text("def make():\n    return {}['gone'] + 1\n")
    with pytest.raises(KeyError):
        build_upstream(f"{path}:make")


# --- outputs that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda x: {"hidden_states": [x, x, x[..., :2]]},
            "differ in size: layers 0-1: 3, layer 2: 2. .*-f layer -l N",
        ),
        (
            lambda x: {"hidden_states": [x, x[:, ::2]]},
            "differ in frame rate: layer 0: 100, layer 1: 50 frames",
        ),
        (
            lambda x: {"feats": x, "more": x, "none": None},
            "no feature 'hidden_states'. It gives: feats, more",
        ),
        (lambda x: {"hidden_states": [x.mean(1)]}, r"must be \[B, T, D\], 2 clips gave \[2, 3\]"),
        (lambda x: {"hidden_states": []}, "found an empty list"),
        (lambda x: {"hidden_states": "text"}, "found str"),
        (lambda x: [x], "must return a dict of features, it gave list"),
        (lambda x: {"hidden_states": x * float("nan")}, "gives NaN or infinity"),
    ],
)
def test_outputs_that_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        Upstream(Frames(make), name="mine")


def test_wrong_downsample_rate_is_refused():
    with pytest.raises(
        UserError,
        match="made 100 frames of 16000 samples, but by its downsample rate of 320 there should be 50",
    ):
        Upstream(Frames(lambda x: {"hidden_states": x}, rate=320), name="mine")


def test_outputs_that_are_mended():
    tail = Upstream(Frames(lambda x: {"hidden_states": (x, x[:, :-4])}), name="mine")
    assert {layer.size(1) for layer in tail(noise(16000)).layers} == {96}
    named = Upstream(Frames(lambda x: {"hidden_states": {"a": x, "b": x}}, rate=None), name="mine")
    assert named.num_hidden == 2 and named.downsample_rate == 160
    one = Upstream(Frames(lambda x: {"hidden_states": [x, x[:, ::2, :2]]}), name="mine", layer=0)
    assert (one.num_hidden, one.dim) == (1, 3)
    last = Upstream(Frames(lambda x: {"hidden_states": [x[..., :2], x]}), name="mine", layer=-1)
    assert last.dim == 3
    with pytest.raises(UserError, match="-l 2: upstream 'mine' has hidden states 0 to 1"):
        Upstream(Frames(lambda x: {"hidden_states": [x, x]}), name="mine", layer=2)


def test_layer_drop_is_named():
    expert = Frames(lambda x: {"hidden_states": [x, x, x]})
    upstream = Upstream(expert, name="mine")
    expert.make = lambda x: {"hidden_states": [x, x]}
    with pytest.raises(
        UserError, match="'mine' gave 2 hidden states, 3 before.*layer drop must be off"
    ):
        upstream(noise(16000))


def test_short_clips_are_padded_to_what_the_expert_digests():
    def at_least_ten_frames(x: Tensor) -> dict:
        if x.size(1) < 10:
            raise RuntimeError("kernel size can't be greater than input size")
        return {"hidden_states": x}

    upstream = Upstream(Frames(at_least_ten_frames), name="mine")
    assert upstream.min_samples == 1600 and upstream(noise(5)).lengths.tolist() == [10]


# --- names and checkpoints of s3prl -----------------------------------------------------------------------------------


def test_flags_that_do_not_fit_the_name(tmp_path):
    assert (
        "no upstream 'wavlmm'. Did you mean 'wavlm'? Known are whisper, micro_wavlm and 19"
        in refusal("wavlmm")
    )
    assert "-k is missing" in refusal("wavlm_local")
    assert "-g is missing" in refusal("baseline_local")
    both = refusal("pase_local", model_config=f"{tmp_path}/no.yaml")
    assert "-k is missing" in both and f"-g: there is no file {tmp_path}/no.yaml" in both
    assert f"-k: there is no file {tmp_path}/no.pt" in refusal("hubert_local", f"{tmp_path}/no.pt")
    assert "-k would be ignored" in refusal(
        "wavlm", "any.pt"
    ) and "`-u wavlm_local -k FILE`" in refusal("wavlm", "any.pt")
    assert "must be a URL here" in refusal("wavlm_url", "any.pt")


def test_checkpoints_that_do_not_fit(wavlm_file, tmp_path):
    state = torch.load(wavlm_file, weights_only=True)
    del state["model"]["mask_emb"]
    state["model"] |= {"new": torch.zeros(1), "layer_norm.weight": torch.zeros(3)}
    torch.save(state, wavlm_file)
    said = refusal("wavlm_local", str(wavlm_file))
    assert "1 missing: mask_emb" in said and "1 unexpected: new" in said
    assert (
        "layer_norm.weight: [3] in the checkpoint, [16] in the model" in said
        and len(said.splitlines()) < 8
    )
    other = tmp_path / "other.pt"
    torch.save({"x": 1}, other)
    assert "it has no 'cfg'" in refusal("wavlm_local", str(other))
    assert "it has no 'task_cfg'" in refusal("hubert_local", str(other))
    for content in (b"", b"no checkpoint at all", wavlm_file.read_bytes()[:3000]):
        other.write_bytes(content)
        assert "is no checkpoint, or damaged" in refusal("wavlm_local", str(other))


class Payload:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "name", ["wavlm_local", "distiller_local", "mockingjay_local"]
)  # two ask for full unpickling
def test_checkpoints_run_no_code(name, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    torch.save({"Config": Payload(tmp_path / "ran"), "cfg": {}, "model": {}}, tmp_path / "evil.pt")
    said = refusal(name, str(tmp_path / "evil.pt"))
    assert "could run code" in said and "convert it" in said and "mkdir" in said
    assert not (tmp_path / "ran").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.save(
        {"cfg": argparse.Namespace(a=1), "Config": argparse.Namespace(a=1)}, tmp_path / "names.pt"
    )
    assert "(argparse.Namespace)" in refusal(name, str(tmp_path / "names.pt"))


def test_families_that_load_a_local_checkpoint(wavlm_file, tmp_path):
    from s3prl.upstream.data2vec.data2vec_model import Data2VecAudioConfig, Data2VecAudioModel
    from s3prl.upstream.wav2vec2.wav2vec2_model import (
        AudioPretrainingConfig,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    task = vars(AudioPretrainingConfig(normalize=True))
    small = {key: value for key, value in SMALL.items() if key != "normalize"}
    config = Wav2Vec2Config(**small)
    wav2vec2 = {
        "task_cfg": task,
        "model_cfg": vars(config),
        "model_weight": Wav2Vec2Model(config).state_dict(),
    }
    torch.save(wav2vec2, tmp_path / "wav2vec2.pt")
    config = Data2VecAudioConfig(**small)
    model = Data2VecAudioModel(config)
    model.remove_pretraining_modules()
    data2vec = {
        "task_cfg": task,
        "model_cfg": vars(config),
        "model_weight": {**model.state_dict(), "_ema": {}},
    }
    torch.save(data2vec, tmp_path / "data2vec.pt")
    shutil.copy(wavlm_file, tmp_path / "unispeech_sat.pt")
    for family in ("wavlm", "wav2vec2", "data2vec", "unispeech_sat"):
        upstream = build_upstream(f"{family}_local", str(tmp_path / f"{family}.pt"))
        assert (upstream.num_hidden, upstream.dim, upstream.downsample_rate) == (3, 32, 320)
        hidden = upstream.train()(noise(16000, 4000, 3))
        assert hidden.lengths.tolist() == [49, 12, 1]
        sum(layer.square().mean() for layer in hidden.layers).backward()
        assert upstream.expert.model.encoder.layers[0].fc1.weight.grad.abs().sum() > 0


def test_failed_download_is_explained_and_leaves_nothing(tmp_path, monkeypatch):
    from s3prl.util import download

    monkeypatch.setattr(download, "_download_dir", tmp_path)

    def no_network(*args, **kwargs):
        raise OSError("Temporary failure in name resolution")

    for way in ("_download_url_to_file", "_download_url_to_file_requests"):
        monkeypatch.setattr(download, way, no_network)
    said = refusal("wavlm_base")
    assert (
        "could not be downloaded from https://" in said
        and "name resolution" in said
        and "`-u wavlm_local -k FILE`" in said
    )

    served = {"content": b""}
    monkeypatch.setattr(
        download,
        "_download_url_to_file",
        lambda url, path, *_: Path(path).write_bytes(served["content"]),
    )
    for content, message in [
        (b"", "empty file"),
        (b"<!DOCTYPE html>", "web page"),
        (b"Entry not found", "try again"),
    ]:
        served["content"] = content
        assert message in refusal("wavlm_base")
        assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_good_download_after_a_broken_one(tmp_path, monkeypatch, wavlm_file):
    from s3prl.util import download

    monkeypatch.setattr(download, "_download_dir", tmp_path / "cache")
    monkeypatch.setattr(
        download, "_download_url_to_file", lambda url, path, *_: shutil.copy(wavlm_file, path)
    )
    url = "https://huggingface.co/s3prl/converted_ckpts/resolve/main/wavlm_base.pt"
    Path(
        download.urls_to_filepaths(url, download=False)
    ).touch()  # empty, as an interrupted download leaves it
    assert build_upstream("wavlm_base").num_hidden == 3
