"""From -u, -k and -g to an expert: names, experts of one's own, checkpoints, downloads."""

import argparse
import os
import pickle
import shutil
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny_families import SMALL, noise

from s3prl_varan.errors import UserError
from s3prl_varan.upstream import downloads
from s3prl_varan.upstream import micro_wavlm as micro
from s3prl_varan.upstream.hub import hub_modules, known_names
from s3prl_varan.upstream.wrapper import build_upstream

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


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        build_upstream(*args, **kwargs)
    return str(caught.value)


class Payload:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_all_names_of_the_hub_are_known():
    """The table is read from the sources; s3prl.hub itself, slow, is asked in another process."""
    code = (
        "import s3prl.hub as hub; "
        "print('NAMES', *(n + '=' + getattr(hub, n).__module__ for n in hub.options()))"
    )
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
        "import sys; from s3prl_varan.upstream.wrapper import build_upstream;"
        "build_upstream('micro_wavlm');"
        "build_upstream('mel');"
        "sys.exit('s3prl.hub' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert known_names()[:2] == ["whisper", "micro_wavlm"] and len(known_names()) > 180


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


@pytest.fixture
def served(tmp_path, monkeypatch):
    """What s3prl downloads, made here: by the end of its name."""
    from s3prl.util import download

    monkeypatch.setattr(download, "_download_dir", tmp_path / "served")
    files = {}

    def fetch(url, path, *_):
        torch.save(next((files[end] for end in files if url.endswith(end)), {}), path)

    monkeypatch.setattr(download, "_download_url_to_file", fetch)
    return files


@pytest.mark.parametrize("name", ["ast", "ssast_frame_base", "ssast_patch_base"])
def test_s3prls_exit_is_an_error_like_any_other(name, served, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "needs a package that is missing: import of timm" in refusal(name)


def test_a_package_missing_where_the_model_runs(served, monkeypatch):
    from s3prl.upstream.byol_s.serab_byols import serab

    config = serab.load_yaml_config(Path(serab.__file__).parent / "config.yaml")
    served["6373-e100-bs256-lr0003-rs42.pth"] = serab.get_model("cvt", config).state_dict()
    served |= vggish_weights()
    for name, package in (("byol_s_cvt", "einops"), ("vggish", "resampy")):
        monkeypatch.setitem(sys.modules, package, None)
        said = refusal(name)
        assert f"'{name}' needs a package that is missing: import of {package}" in said


def test_an_upstream_that_needs_a_whole_second(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "resampy", types.ModuleType("resampy"))  # 16 kHz: not called
    served |= vggish_weights()
    upstream = build_upstream("vggish")
    assert (upstream.min_samples, upstream.dim, upstream.downsample_rate) == (16000, 128, 16000)
    assert upstream(noise(33000, 400)).lengths.tolist() == [2, 1]


def vggish_weights() -> dict[str, dict]:
    from s3prl.upstream.vggish.vggish import VGG, make_layers

    pca = {"pca_eigen_vectors": torch.eye(128), "pca_means": torch.zeros(128, 1)}
    return {"vggish-10086976.pth": VGG(make_layers()).state_dict(), "970ea276.pth": pca}


@pytest.mark.parametrize("proxied", [False, True])
def test_a_server_that_never_answers(proxied, tmp_path, monkeypatch, capfd):
    from s3prl.util import download

    monkeypatch.setattr(download, "_download_dir", tmp_path)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        if proxied:
            monkeypatch.setenv("http_proxy", url)
            url = "http://models.invalid"
        said = refusal("wavlm_url", f"{url}/wavlm.pt")
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):  # and it was not tried a second time
            server.accept()
    assert f"downloading wavlm_url from {url}/wavlm.pt\n" in capfd.readouterr().err
    assert "timed out" in said and "`-u wavlm_local -k FILE`" in said
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_s3prls_second_way_to_download(tmp_path, monkeypatch):
    """It stays, for servers that turn the first one down, and does not wait for ever either."""
    from s3prl.util import download

    monkeypatch.setattr(download, "_download_dir", tmp_path)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    monkeypatch.setattr(download, "_download_url_to_file", lambda *_: 1 / 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/wavlm.pt"
        assert "ReadTimeout" in refusal("wavlm_url", url)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_download_url_to_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_upstream("wavlm_url", "http://127.0.0.1:9/wavlm.pt")


def test_downloads_lie_where_cache_dir_says(tmp_path, monkeypatch, wavlm_file):
    from s3prl.util import download

    monkeypatch.setattr(download, "_download_dir", Path("elsewhere"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("HF_HOME", "kept")
    downloads.use_cache_dir(str(tmp_path / "cache"))
    monkeypatch.setattr(
        download, "_download_url_to_file", lambda url, path, *_: shutil.copy(wavlm_file, path)
    )
    build_upstream("wavlm_base")
    assert [path.name[-14:] for path in (tmp_path / "cache").glob("*.pt")] == [".wavlm_base.pt"]
    assert torch.hub.get_dir() == str(tmp_path / "cache") and os.environ["HF_HOME"] == "kept"


ADVICE = ("weights_only", "TORCH_FORCE", "FORCE_NO", "trusted source")


@pytest.mark.parametrize(
    "name",
    ["wavlm_local", "mockingjay_local", "hf_hubert_custom", "hf_wav2vec2_custom", "whisper"],
)
def test_no_refusal_advises_to_switch_the_guard_off(name, tmp_path, monkeypatch):
    """Objects, protocols that torch's unpickler does not know, in s3prl's and torch's own form."""
    from transformers import HubertConfig, Wav2Vec2FeatureExtractor, WhisperConfig

    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    ckpt = path = tmp_path / "evil.pt"
    if name in ("hf_hubert_custom", "whisper"):
        ckpt, path = tmp_path, tmp_path / "pytorch_model.bin"
        (HubertConfig if name.startswith("hf") else WhisperConfig)().save_pretrained(tmp_path)
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    for protocol in (2, 4):
        for content in ({"Config": Payload(tmp_path / "ran")}, {"a": 1}, {"cfg": {"a", "b"}}):
            path.write_bytes(pickle.dumps(content, protocol=protocol))
            said = refusal(name, str(ckpt))
            assert not any(word in said for word in ADVICE), said
            torch.save(content, path, pickle_protocol=protocol)
            said = refusal(name, str(ckpt))
            assert not any(word in said for word in ADVICE), said
    assert not (tmp_path / "ran").exists()
