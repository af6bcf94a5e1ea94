"""Folders of Hugging Face models: what fills s3prl's model is taken, what does not is refused."""

import shutil
import socket
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_families import HUGGING, noise

from s3prl_varan.errors import UserError
from s3prl_varan.upstream import hugging_face
from s3prl_varan.upstream.wrapper import build_upstream

CUSTOM = ["hf_wav2vec2_custom", "hf_hubert_custom"]
SEW = {"conv_dim": (16,) * 3, "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)}
AST = {"conv_dim": None, "frequency_stride": 32, "time_stride": 32, "max_length": 64}
OTHERS = {
    "WavLM": {},
    "UniSpeechForPreTraining": {},
    "SEW": SEW,
    "SEWD": SEW,
    "Wav2Vec2Conformer": {},
    "Data2VecAudio": {},
    "AST": AST,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a tiny model of transformers, by its class without "Model"."""

    def make(kind: str, **options) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        config = getattr(transformers, f"{kind.partition('For')[0]}Config")
        model = getattr(transformers, kind if "For" in kind else f"{kind}Model")
        model(config(**{**HUGGING, **options})).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        return folder

    return make


def refusal(name: str, folder: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        build_upstream(name, str(folder))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hf_wav2vec2_custom", "Wav2Vec2"),
        ("hf_wav2vec2_custom", "Wav2Vec2ForPreTraining"),  # quantizer, project_q, ...
        ("hf_wav2vec2_custom", "Wav2Vec2ForCTC"),  # lm_head
        ("hf_hubert_custom", "Hubert"),
        ("hf_hubert_custom", "HubertForSequenceClassification"),
    ],
)
def test_the_name_that_fits_loads_every_tensor(folder_of, name, kind, capfd):
    folder = folder_of(kind)
    stored = load_file(folder / "model.safetensors")
    own = build_upstream(name, str(folder)).expert.model.state_dict()
    prefix = f"{kind.partition('For')[0].lower()}." if "For" in kind else ""
    for key, value in own.items():
        assert torch.equal(value, stored[f"{prefix}{key}"])
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", CUSTOM)
@pytest.mark.parametrize("kind", OTHERS)
def test_another_family_is_refused(folder_of, name, kind, capfd):
    said = refusal(name, folder_of(kind, **OTHERS[kind]))
    listed = " missing: " in said or " unexpected: " in said
    assert listed or "cannot be made: " in said
    assert "which none of s3prl's upstreams reads" in said and len(said.splitlines()) < 6
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_the_refusal_counts_and_names_what_fits(folder_of):
    folder = folder_of("HubertForCTC")
    said = refusal("hf_wav2vec2_custom", folder)
    count = len(load_file(folder / "model.safetensors")) - 2 - 1  # lm_head and the mask aside
    assert f"{count} missing: encoder.layer_norm.bias, encoder.layer_norm.weight, " in said
    assert f"model_type 'hubert': use `-u hf_hubert_custom -k {folder}`" in said
    build_upstream("hf_hubert_custom", str(folder))
    weights = folder / "model.safetensors"
    state = load_file(weights)
    del state["hubert.encoder.layers.1.attention.q_proj.weight"]
    state["hubert.encoder.layer_norm.bias"] = torch.zeros(3)
    state["hubert.encoder.more"] = torch.zeros(3)
    save_file(state, weights, {"format": "pt"})
    said = refusal("hf_hubert_custom", folder)
    assert "1 missing: encoder.layers.1.attention.q_proj.weight\n" in said
    assert "1 unexpected: hubert.encoder.more\n" in said
    assert "1 of another size: encoder.layer_norm.bias\n" in said
    assert "is a part missing?" in said


def test_older_checkpoints_fill_the_model_too(folder_of):
    """Names of the weight norm as they were until 2023, and no vector for masking."""
    folder = folder_of("Wav2Vec2ForCTC")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    conv = "wav2vec2.encoder.pos_conv_embed.conv."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        state[conv + old] = state.pop(f"{conv}parametrizations.weight.{new}")
    del state["wav2vec2.masked_spec_embed"]
    torch.save(state, folder / "pytorch_model.bin")
    weights.unlink()
    own = build_upstream("hf_wav2vec2_custom", str(folder)).expert.model.state_dict()
    loaded = own["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    assert torch.equal(loaded, state[f"{conv}weight_v"])


@pytest.fixture
def silent_hub(monkeypatch):
    """A server that takes every connection and never answers, in the place of the hub."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "".join(template[1:]))
        monkeypatch.setattr(hugging_face, "TIMEOUT", 0.2)
        yield url, server


@pytest.mark.parametrize("name", ["whisper", "hf_hubert_custom"])
def test_a_hub_that_never_answers(silent_hub, name, capfd):
    url, _ = silent_hub
    said = refusal(name, "someone/model-none")
    assert f"downloading someone/model-none from {url}" in capfd.readouterr().err
    assert "timed out" in said and "hf download someone/model-none" in said


def test_a_folder_is_read_without_the_network(silent_hub, folder_of):
    _, server = silent_hub
    folder = folder_of("Hubert")
    upstream = build_upstream("hf_hubert_custom", str(folder))
    assert upstream(noise(8000)).layers[-1].isfinite().all()
    (folder / "preprocessor_config.json").unlink()
    said = refusal("hf_hubert_custom", folder)
    assert "has no preprocessor_config.json" in said and "save_pretrained(FOLDER)" in said
    server.setblocking(False)
    with pytest.raises(BlockingIOError):  # nobody knocked
        server.accept()
    assert "is a file" in refusal("hf_hubert_custom", folder / "config.json")
    assert "there is no folder ./gone" in refusal("hf_hubert_custom", "./gone")


def test_a_model_that_was_downloaded_before_is_found_without_the_hub(
    silent_hub, folder_of, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--someone--model"
    shutil.copytree(folder_of("Hubert"), cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    assert build_upstream("hf_hubert_custom", "someone/model").num_hidden == 4
