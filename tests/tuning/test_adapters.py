"""Adapters and merged upstreams on disk: PEFT reads ours, we PEFT's, s3prl what merging wrote."""

import importlib.util
import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, make_checkpoint, noise, tiny_upstream

from s3prl_varan.errors import UserError
from s3prl_varan.training.checkpoint import save_checkpoint
from s3prl_varan.tuning.adapters import (
    check_upstream,
    is_adapter,
    load_adapter,
    read_adapter,
    write_adapter,
)
from s3prl_varan.tuning.lora import LoraDelta, LoraOptions, apply_lora, lora_report, lora_state_dict
from s3prl_varan.tuning.merging import export_merged
from s3prl_varan.tuning.targets import describe_targets, find_targets
from s3prl_varan.upstream.wrapper import build_upstream

ON_DISK = [family for family in FAMILIES if family != "torch"]
HUGGING_FACE = ["whisper", "hf_hubert_custom", "hf_wav2vec2_custom"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


def adapted(family, folder, **options):
    """A tiny upstream with adapters of random content."""
    upstream = tiny_upstream(family, folder)
    upstream.fingerprint()
    apply_lora(upstream, LoraOptions(**{"rank": 2, "alpha": 3, "targets": "all", **options}))
    generator = torch.Generator().manual_seed(5)
    for module in upstream.modules():
        if isinstance(module, LoraDelta):
            module.lora_B.data = 0.2 * torch.randn(module.lora_B.shape, generator=generator)
            module.lora_A.data = torch.randn(module.lora_A.shape, generator=generator)
    return upstream


def start_from(adapter, upstream, **changes):
    """As a run does: LoRA with its own options (here the adapter's, with changes), then -i."""
    upstream.fingerprint()
    options = asdict(read_adapter(adapter, upstream).options)
    apply_lora(upstream, LoraOptions(**{**options, **changes}))
    load_adapter(upstream, adapter)
    return upstream


def info(upstream):
    return {"name": upstream.name, "ckpt": upstream.ckpt, "fingerprint": upstream.fingerprint()}


def hidden_states(upstream):
    with torch.no_grad():
        return torch.stack(upstream(noise(8000, 6000)).layers)


def assert_same(one, other):
    """But for rounding; these adapters move the hidden states by about 1."""
    torch.testing.assert_close(hidden_states(one), hidden_states(other), rtol=1e-3, atol=2e-4)


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", ["wavlm_local", "distiller_local", "hf_hubert_custom"])
def test_own_format_comes_back(family, folder, tmp_path):
    upstream = adapted(family, folder, train_norms=True)
    for name in lora_report(upstream).extras:
        upstream.get_parameter(name).data.add_(0.1)
    write_adapter(tmp_path / "a", upstream, info(upstream))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["adapter.safetensors"]
    with safe_open(tmp_path / "a" / "adapter.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "s3prl_varan.lora.1"  # of every adapter there is
    other = tiny_upstream(family, folder)
    read = read_adapter(tmp_path / "a", other)
    assert read.options == lora_report(upstream).options and read.upstream == info(upstream)
    start_from(tmp_path / "a", other)
    assert torch.equal(hidden_states(upstream), hidden_states(other))
    assert is_adapter(tmp_path / "a") and not is_adapter(tmp_path)


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_peft_format_comes_back(family, folder, tmp_path):
    upstream = adapted(family, folder, layers=[0, 2])
    write_adapter(tmp_path, upstream, info(upstream))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert is_adapter(tmp_path)
    other = tiny_upstream(family, folder)
    options = read_adapter(tmp_path, other).options
    assert options == lora_report(upstream).options  # said as it was said: `all` of two layers
    start_from(tmp_path, other)
    ours, theirs = lora_state_dict(upstream), lora_state_dict(other)
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(hidden_states(upstream), hidden_states(other))


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_peft_reads_ours(family, folder, tmp_path):
    peft = pytest.importorskip("peft")
    upstream, other = adapted(family, folder), tiny_upstream(family, folder)
    write_adapter(tmp_path, upstream, info(upstream), fmt="peft")
    model = other.expert.model
    outer = whole_whisper(model) if family == "whisper" else model
    wrapped = peft.PeftModel.from_pretrained(outer, tmp_path)
    assert sum(".lora_" in name for name, _ in wrapped.named_parameters()) == len(
        lora_state_dict(upstream)
    )
    assert_same(upstream, other)


@pytest.mark.parametrize("family", HUGGING_FACE)
@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_pefts(family, rslora, folder, tmp_path):
    peft = pytest.importorskip("peft")
    theirs, ours = tiny_upstream(family, folder), tiny_upstream(family, folder)
    names = (
        ["fc1", "fc2", "q_proj"]
        if family == "whisper"
        else ["intermediate_dense", "output_dense", "q_proj"]
    )
    exclude = r"decoder\..*" if family == "whisper" else None
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=names,
        exclude_modules=exclude,
        init_lora_weights=False,
        use_rslora=rslora,
    )
    outer = whole_whisper(theirs.expert.model) if family == "whisper" else theirs.expert.model
    peft.get_peft_model(outer, config).save_pretrained(tmp_path)
    start_from(tmp_path, ours)
    assert len(lora_report(ours).modules) == 9
    assert lora_report(ours).options.targets == sorted(names)
    assert_same(theirs, ours)
    assert (
        hidden_states(ours)[-1] - hidden_states(tiny_upstream(family, folder))[-1]
    ).abs().max() > 0.01


@pytest.mark.parametrize("family", ["wavlm_local", "whisper"])  # our format, PEFT's
def test_a_run_of_another_form_is_told_what_to_set(family, folder, tmp_path):
    upstream = adapted(family, folder, layers=[0, 2])
    write_adapter(tmp_path, upstream, info(upstream))
    other = tiny_upstream(family, folder)
    other.fingerprint()
    apply_lora(other, LoraOptions())
    before = lora_state_dict(other)
    with pytest.raises(UserError) as caught:
        load_adapter(other, tmp_path)
    lines = str(caught.value).splitlines()
    assert "adapter of another form" in lines[0] and lines[1:] == [
        "  - lora.rank: 2 (here 16)",
        "  - lora.alpha: 3 (here null)",
        '  - lora.targets: "all" (here "ffn")',
        "  - lora.layers: [0, 2] (here null)",
    ]
    after = lora_state_dict(other)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match=r"lora.train_biases: false \(here true\)$"):
        start_from(tmp_path, tiny_upstream(family, folder), train_biases=True)


def test_what_means_the_same_is_taken(folder, tmp_path):
    upstream = adapted("hubert_local", folder, targets="ffn", rank=3, alpha=None)
    write_adapter(tmp_path, upstream, info(upstream))
    words = {"targets": ["fc1", "fc2"], "alpha": 3, "dropout": 0.1, "layers": [0, 1, 2]}
    other = start_from(tmp_path, tiny_upstream("hubert_local", folder), **words)
    assert torch.equal(hidden_states(upstream), hidden_states(other))


@pytest.mark.parametrize("wanted", [{"targets": "all"}, {"targets": ["fc1"], "layers": [1]}])
def test_matrices_are_described_briefly(wanted, folder):
    upstream = tiny_upstream("hubert_local", folder)
    options = LoraOptions(**wanted)
    names = [target.name for target in find_targets(upstream, options)]
    assert describe_targets(upstream, names) == options
    odd = sorted(
        names[1:-1] or ["expert.model.encoder.layers.0.fc1", "expert.model.post_extract_proj"]
    )
    found = [target.name for target in find_targets(upstream, describe_targets(upstream, odd))]
    assert sorted(found) == odd


def whole_whisper(encoder):
    """What AutoModel makes of a Whisper checkpoint, around this encoder."""
    from transformers import WhisperModel

    (
        encoder.config.decoder_layers,
        encoder.config.decoder_attention_heads,
        encoder.config.vocab_size,
    ) = 1, 4, 100
    encoder.config.pad_token_id = encoder.config.bos_token_id = encoder.config.eos_token_id = 1
    model = WhisperModel(encoder.config).eval()
    model.encoder = encoder
    return model


def test_what_pefts_format_cannot_hold(folder, tmp_path):
    with pytest.raises(UserError, match="the upstream is no Hugging Face model"):
        write_adapter(tmp_path, adapted("wavlm_local", folder), {}, fmt="peft")
    with pytest.raises(UserError, match="norms or biases were trained too"):
        write_adapter(tmp_path, adapted("whisper", folder, train_biases=True), {}, fmt="peft")
    assert not list(tmp_path.iterdir())
    write_adapter(tmp_path, adapted("whisper", folder, train_biases=True), {})
    assert (tmp_path / "adapter.safetensors").is_file()


def test_adapters_that_cannot_be_read(folder, tmp_path):
    upstream = adapted("whisper", folder)
    write_adapter(tmp_path, upstream, info(upstream))
    with pytest.raises(UserError, match="for Hugging Face models, but the upstream is none"):
        load_adapter(tiny_upstream("wavlm_local", folder), tmp_path)
    with pytest.raises(UserError, match="these tensors have no place in it"):
        load_adapter(tiny_upstream("hf_hubert_custom", folder), tmp_path)
    change_json(tmp_path / "adapter_config.json", use_dora=True, rank_pattern={"fc1": 4})
    with pytest.raises(UserError, match=r"(?s)use_dora: True is not supported.*rank_pattern"):
        load_adapter(tiny_upstream("whisper", folder), tmp_path)
    change_json(tmp_path / "adapter_config.json", peft_type="IA3")
    with pytest.raises(UserError, match="expected an adapter with peft_type LORA"):
        load_adapter(tiny_upstream("whisper", folder), tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(
        UserError, match="holds no adapter: expected adapter.safetensors, or adapter_config.json"
    ):
        load_adapter(tiny_upstream("whisper", folder), tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"not a tensor in it")
    with pytest.raises(UserError, match="cannot be read as safetensors, is it damaged"):
        load_adapter(tiny_upstream("whisper", folder), tmp_path)


@pytest.mark.parametrize("fmt", ["safetensors", "peft"])
def test_any_flipped_bit_is_noticed(fmt, folder, tmp_path):
    upstream = adapted("whisper", folder)
    write_adapter(tmp_path, upstream, info(upstream), fmt=fmt)
    path = next(tmp_path.glob("*.safetensors"))
    whole, draw = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    key = whole.index(b'"digest"')
    bits = [draw.randrange(8 * len(whole)) for _ in range(50)]  # most of them among the tensors
    bits += [draw.randrange(8 * header) for _ in range(50)]
    bits += range(8 * (key + 1), 8 * (key + 7)) if fmt == "safetensors" else []
    other, unnoticed = tiny_upstream("whisper", folder), []
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read_adapter(tmp_path, other)
        except UserError:
            continue
        unnoticed.append(bit // 8)
    # Of PEFT's format every reader passes over header keys that it does not know.
    assert [each for each in unnoticed if fmt != "peft" or not key < each < key + 7] == []
    path.write_bytes(whole)
    read_adapter(tmp_path, other)


def test_adapters_without_a_digest_are_read(folder, tmp_path):
    """As older ones are written, and PEFT's."""
    upstream = adapted("whisper", folder)
    for fmt in ("safetensors", "peft"):
        write_adapter(tmp_path / fmt, upstream, info(upstream), fmt=fmt)
        path = next((tmp_path / fmt).glob("*.safetensors"))
        with safe_open(path, framework="pt") as file:
            header = {key: value for key, value in file.metadata().items() if key != "digest"}
            assert len(header) + 1 == len(file.metadata())
        save_file(load_file(path), path, header)
        read_adapter(tmp_path / fmt, tiny_upstream("whisper", folder))


def test_another_upstream_is_refused_with_both_names(folder, tmp_path):
    upstream = adapted("hubert_local", folder)
    write_adapter(tmp_path, upstream, info(upstream))
    with pytest.raises(
        UserError,
        match=r"(?s)was trained on upstream 'hubert_local' .* this one is 'wav2vec2_local'",
    ):
        load_adapter(tiny_upstream("wav2vec2_local", folder), tmp_path)
    check_upstream(info(upstream), tiny_upstream("hubert_local", folder), "it")
    with pytest.raises(UserError, match="holds LoRA adapters: add --lora"):
        load_adapter(tiny_upstream("hubert_local", folder), tmp_path)


@pytest.mark.parametrize("family", ON_DISK)
def test_merged_upstream_loads_like_any_other(family, folder, tmp_path):
    upstream, base = adapted(family, folder), make_checkpoint(family, folder)
    before = hidden_states(upstream)
    out = export_merged(upstream, str(base), tmp_path / "merged")
    assert torch.equal(before, hidden_states(upstream)) and len(list(tmp_path.iterdir())) == 1
    assert_same(upstream, build_upstream(family.split()[0], str(out)))
    if out.is_file():
        assert set(torch.load(out, weights_only=True)) == set(torch.load(base, weights_only=True))


def test_merged_micro_wavlm_becomes_a_wavlm_checkpoint(tmp_path):
    upstream = build_upstream("micro_wavlm")
    apply_lora(upstream, LoraOptions(rank=2))
    upstream.expert.model.encoder.layers[0].fc1.parametrizations.weight[0].lora_B.data.fill_(0.1)
    out = export_merged(upstream, None, tmp_path / "merged.pt")
    other = build_upstream("wavlm_local", str(out))
    with torch.no_grad():
        one, two = upstream(noise(16000)).layers[-1], other(noise(16000)).layers[-1]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_merging_needs_the_right_base(folder, tmp_path):
    upstream = adapted("hubert_local", folder)
    with pytest.raises(UserError, match="Give it with --base_ckpt"):
        export_merged(upstream, None, tmp_path / "out.pt")
    with pytest.raises(UserError, match="is not the checkpoint of this upstream"):
        export_merged(upstream, str(make_checkpoint("wavlm_local", folder)), tmp_path / "out.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded without running code"):
        export_merged(upstream, str(tmp_path / "bad.pt"), tmp_path / "out.pt")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UserError, match="a Hugging Face model becomes a folder, name a new one"):
        export_merged(adapted("whisper", folder), None, tmp_path / "there")


@pytest.fixture
def cli():
    path = Path(__file__).resolve().parents[2] / "run" / "export_adapter.py"
    spec = importlib.util.spec_from_file_location("export_adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def experiment(family, folder, expdir, lora=True):
    """A run's best checkpoint, with what an export reads of it."""
    upstream = adapted(family, folder)
    expdir.mkdir()
    options, state = asdict(lora_report(upstream).options), lora_state_dict(upstream)
    payload = {
        "Version": 2,
        "Args": {
            "upstream": upstream.name,
            "upstream_ckpt": upstream.ckpt,
            "upstream_model_config": None,
        },
        "Config": {},
        "upstream": info(upstream),
        "lora": {"options": options, "state": state} if lora else None,
        "Upstream": None,
        "Featurizer": {},
        "Downstream": {},
        "Step": 0,
        "Best": {},
        "Outputs": None,
    }
    save_checkpoint(expdir / "dev-best.ckpt", payload)
    return upstream


@pytest.mark.parametrize(
    "family, written", [("whisper", "adapter_config.json"), ("hubert_local", "adapter.safetensors")]
)
def test_cli_writes_adapters_and_merged(cli, family, written, folder, tmp_path, capsys):
    upstream = experiment(family, folder, tmp_path / "exp")
    assert cli([str(tmp_path / "exp"), str(tmp_path / "adapter")]) == 0
    assert (tmp_path / "adapter" / written).is_file()
    other = tiny_upstream(family, folder)
    start_from(tmp_path / "adapter", other)
    assert torch.equal(hidden_states(upstream), hidden_states(other))
    assert cli([str(tmp_path / "exp"), str(tmp_path / "merged"), "--merge"]) == 0
    assert_same(upstream, build_upstream(family, str(tmp_path / "merged")))
    assert f"wrote {tmp_path / 'merged'}" in capsys.readouterr().out


def test_cli_refuses(cli, folder, tmp_path, capsys):
    experiment("hubert_local", folder, tmp_path / "frozen", lora=False)
    assert cli([str(tmp_path / "frozen"), str(tmp_path / "out")]) == 2
    assert "trained no LoRA adapters (--lora)" in capsys.readouterr().err
    upstream = experiment("wav2vec2_local", folder, tmp_path / "exp")
    payload = torch.load(tmp_path / "exp" / "dev-best.ckpt")
    payload["upstream"]["fingerprint"] = "0" * 32
    save_checkpoint(tmp_path / "exp" / "dev-best.ckpt", payload)
    assert cli([str(tmp_path / "exp"), str(tmp_path / "out")]) == 2
    assert f"this one is '{upstream.name}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
