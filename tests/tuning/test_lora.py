"""LoRA on a tiny model of every family: what trains, what stays equal, what is refused."""

import copy
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_families import FAMILIES, HUGGING, TorchExpert, noise
from torch import nn

from s3prl_varan.errors import UserError
from s3prl_varan.options import read_options
from s3prl_varan.tuning import targets
from s3prl_varan.tuning.lora import (
    LoraDelta,
    LoraOptions,
    apply_lora,
    check_lora_gradients,
    load_lora_state_dict,
    lora_state_dict,
    merge_lora,
    merged_state_dict,
)
from s3prl_varan.tuning.modes import (
    disable_layerdrop,
    enable_gradient_checkpointing,
    set_train_modes,
)
from s3prl_varan.tuning.targets import find_targets, name_patterns, transformer_layers
from s3prl_varan.upstream.wrapper import build_upstream
from tests.tuning.training_steps import hidden_states, loss_of, snapshot, steps

PER_LAYER = {"ffn": 2, "attention": 4, "all": 6}
PER_LAYER_OF = {
    "torch": {"ffn": 2, "attention": 2, "all": 4},
    "wav2vec2_local conformer": {"ffn": 4, "attention": 4, "all": 8},
}


def trained(upstream, **options):
    apply_lora(upstream, LoraOptions(**{"rank": 2, "targets": "all", **options}))
    disable_layerdrop(upstream)
    set_train_modes(upstream.train(), dropout=False, masking=False)
    steps(upstream)
    return upstream.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", PER_LAYER)
def test_exactly_the_lora_tensors_move(bases, family, preset):
    upstream = bases(family)
    upstream.requires_grad_(
        False
    )  # torch chooses its attention kernel by this too, and they differ in the last bit
    layers, base = transformer_layers(upstream), hidden_states(upstream)
    report = apply_lora(upstream, LoraOptions(rank=2, targets=preset))
    assert (
        len(layers) == 3 and len(report.modules) == 3 * PER_LAYER_OF.get(family, PER_LAYER)[preset]
    )
    assert all(name.startswith(tuple(f"{layer}." for layer in layers)) for name in report.modules)
    assert all(
        torch.equal(one, other) for one, other in zip(base, hidden_states(upstream), strict=True)
    )

    disable_layerdrop(upstream)
    set_train_modes(upstream.train(), dropout=True, masking=False)
    before = snapshot(upstream)
    steps(upstream)
    moved = {
        name for name, value in snapshot(upstream).items() if not torch.equal(value, before[name])
    }
    assert moved == {name for name in before if name.endswith((".lora_A", ".lora_B"))}
    assert len(moved) == 2 * len(report.modules)
    after = hidden_states(upstream.eval())
    assert not torch.allclose(base[-1], after[-1], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_keeps_the_outputs(bases, family):
    upstream = trained(bases(family))
    plain_names = set(snapshot(bases(family)))
    adapted, state = hidden_states(upstream), merged_state_dict(upstream)
    assert set(state) == plain_names
    merge_lora(upstream)
    assert set(snapshot(upstream)) == plain_names
    for name, value in snapshot(upstream).items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    for one, other in zip(adapted, hidden_states(upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_forward_and_weight_tell_the_same():
    linear = nn.Sequential(nn.Linear(6, 5)).double()
    x = torch.randn(4, 6, dtype=torch.double)
    base = linear(x)
    apply_lora(linear, LoraOptions(rank=3, alpha=6, targets=["0"]))
    assert torch.equal(base, linear(x))
    delta = linear[0].parametrizations.weight[0]
    delta.lora_B.data.normal_()
    expected = base + 2.0 * x @ (delta.lora_B @ delta.lora_A).double().T
    torch.testing.assert_close(linear(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        nn.functional.linear(x, linear[0].weight, linear[0].bias), expected, rtol=1e-6, atol=1e-6
    )


def test_adapters_are_small_and_load_where_they_fit(bases):
    upstream = trained(bases("wavlm_local"), train_norms=True, train_biases=True)
    state = lora_state_dict(upstream)
    trainable = sum(
        parameter.numel() for parameter in upstream.parameters() if parameter.requires_grad
    )
    assert sum(value.numel() for value in state.values()) == trainable
    assert any(name.endswith("layer_norm.weight") for name in state) and any(
        name.endswith("fc1.bias") for name in state
    )
    assert not any("feature_extractor" in name or "pos_conv" in name for name in state)

    other = bases("wavlm_local")
    apply_lora(other, LoraOptions(rank=2, targets="all", train_norms=True, train_biases=True))
    load_lora_state_dict(other, state)
    assert all(
        torch.equal(one, two)
        for one, two in zip(hidden_states(upstream), hidden_states(other), strict=True)
    )

    wrong = bases("wavlm_local")
    with pytest.raises(UserError, match="LoRA is not switched on"):
        load_lora_state_dict(wrong, state)
    apply_lora(wrong, LoraOptions(rank=4, targets="ffn"))
    with pytest.raises(UserError, match=r"fc1\.lora_A' is \[2, 32\] there, \[4, 32\] here"):
        load_lora_state_dict(wrong, state)
    other = bases("wavlm_local")
    apply_lora(other, LoraOptions(rank=2))
    with pytest.raises(UserError) as caught:
        load_lora_state_dict(other, state)
    assert "layers.*.self_attn.k_proj.lora_A' has no place in this upstream" in str(caught.value)


def test_layers_and_names_choose_the_targets(bases):
    upstream = bases("hubert_local")

    def chosen(**options):
        return [
            target.name.removeprefix("expert.model.")
            for target in find_targets(upstream, LoraOptions(**options))
        ]

    assert chosen(layers=[2]) == ["encoder.layers.2.fc1", "encoder.layers.2.fc2"]
    assert chosen(targets=["q_proj"], layers=[0, 1]) == [
        f"encoder.layers.{index}.self_attn.q_proj" for index in (0, 1)
    ]
    assert chosen(targets=[r".*layers\.1\..*_proj"]) == [
        f"encoder.layers.1.self_attn.{name}_proj" for name in ("k", "v", "q", "out")
    ]
    assert chosen(targets=["ffn", "v_proj"], layers=[0]) == [
        f"encoder.layers.0.{name}" for name in ("self_attn.v_proj", "fc1", "fc2")
    ]
    assert chosen(targets=["post_extract_proj"]) == ["post_extract_proj"]
    with pytest.raises(
        UserError,
        match=r"lora.layers: \[7\] is not there, the upstream has transformer layers 0 to 2",
    ):
        chosen(layers=[0, 7])


def test_only_the_norms_and_biases_of_chosen_layers_train(bases):
    upstream = bases("hf_hubert_custom")
    report = apply_lora(upstream, LoraOptions(rank=2, layers=[1], train_norms=True))
    assert {name.rsplit(".", 2)[-2] for name in report.extras} == {"layer_norm", "final_layer_norm"}
    assert len(report.extras) == 4 and all(".layers.1." in name for name in report.extras)
    trainable = {name for name, parameter in upstream.named_parameters() if parameter.requires_grad}
    assert trainable - set(report.extras) == {
        name for name in snapshot(upstream) if ".lora_" in name
    }


@pytest.mark.parametrize("family", ["wavlm_local", "hf_wav2vec2_custom"])
def test_the_cnn_stays_out_of_the_graph(bases, family):
    upstream, outputs = bases(family), []
    apply_lora(upstream, LoraOptions(rank=2))
    disable_layerdrop(upstream)
    upstream.expert.model.feature_extractor.register_forward_hook(
        lambda module, args, output: outputs.append(output)
    )
    upstream.train()(noise(8000))
    assert not outputs[0].requires_grad


def test_nothing_matched_lists_what_there_is(bases, monkeypatch):
    with pytest.raises(UserError) as caught:
        apply_lora(
            bases("hubert_local"), LoraOptions(targets=["fc1", "intermediate_dense", "qproj"])
        )
    message = str(caught.value)
    assert (
        "'qproj': no module of that name. Did you mean 'q_proj'?" in message
        and "'fc1'" not in message
    )
    assert "expert.model.encoder.layers.*.fc1" in message and "layers.0" not in message
    two = nn.ModuleDict({"0": nn.Linear(2, 2), "1": nn.ModuleDict({"weights": nn.Linear(2, 2)})})
    with pytest.raises(UserError, match=r"'ffn': this preset .*\n.*these matrices: 0, 1\.weights"):
        apply_lora(two, LoraOptions())
    with pytest.raises(UserError, match=r"'weigts': no module .* Did you mean 'weights'"):
        apply_lora(two, LoraOptions(targets=["weigts"]))


def test_an_upstream_without_matrices_says_what_it_is_made_of():
    recurrent = nn.ModuleDict({"conv": nn.Conv1d(1, 1, 1), "rnn": nn.LSTM(2, 2)})
    with pytest.raises(UserError, match=r"no matrices that LoRA can adapt .*Conv1d, LSTM\)"):
        apply_lora(recurrent, LoraOptions(targets=["rnn"]))
    with pytest.raises(UserError, match=r"LoRA can adapt .*other modules\). Keep it frozen"):
        apply_lora(nn.Identity(), LoraOptions())


def test_upstreams_without_transformer_layers_say_so():
    from s3prl.upstream.apc.apc import APC
    from s3prl.upstream.npc.npc import NPC

    parts = {"input_size": 24, "hidden_size": 16, "dropout": 0.0, "residual": True}
    codes = {"codebook_size": [8], "code_dim": [16], "gumbel_temperature": 1}
    gru = APC(num_layers=2, vq=codes, **parts)
    cnn = NPC(n_blocks=2, kernel_size=15, mask_size=5, vq=codes, **parts)
    for upstream, made_of in ((gru, "GRU"), (cnn, "Conv1d")):
        for preset in PER_LAYER:
            with pytest.raises(
                UserError,
                match=f"(this upstream has none .*|no matrices .*)it is made of .*{made_of}",
            ):
                apply_lora(upstream, LoraOptions(targets=preset))


def test_a_decoder_that_never_runs_is_left_out(tmp_path):
    """MAE-AST keeps the decoder of its pre-training, beside the encoder."""
    from s3prl.upstream.mae_ast.mae_ast import MAE_AST, MAE_AST_Config

    small = {
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in {"layers": 2, "embed_dim": 32}.items()
    }
    model = {
        **asdict(MAE_AST_Config()),
        **small,
        "encoder_ffn_embed_dim": 64,
        "encoder_attention_heads": 4,
    }
    model |= {
        "enc_sine_pos": True,
        "dec_sine_pos": True,
        "max_token_length": 2000,
        "mask_selection": "static",
    }
    task = {
        "feature_dim": 128,
        "mask_type": "random_mask",
        "feature_type": "fbank",
        "sample_rate": 16000,
        "feature_rate": 100,
    }
    weights = MAE_AST(SimpleNamespace(**model), SimpleNamespace(**task)).state_dict()
    torch.save({"cfg": {"model": model, "task": task}, "model": weights}, tmp_path / "mae.pt")
    upstream = build_upstream("mae_ast_local", str(tmp_path / "mae.pt"))
    layers = [f"expert.model.encoder.layers.{index}" for index in (0, 1)]
    assert transformer_layers(upstream) == layers
    report = apply_lora(upstream, LoraOptions(rank=2, targets="all"))
    assert len(report.modules) == 12 and not any("decoder" in each for each in report.modules)
    steps(upstream)  # asks for a gradient of every adapter


# Of each family of transformers: its config beside HUGGING, the matrices of a layer (attention,
# ffn), and what is in its layers and no preset means.
SEW = {"conv_dim": (16,) * 3, "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)}
NO_CONV = {"conv_dim": None}
KINDS = {
    "Wav2Vec2": ({}, 4, 2, []),
    "Hubert": ({}, 4, 2, []),
    "WavLM": ({}, 4, 2, ["encoder.layers.*.attention.gru_rel_pos_linear"]),
    "UniSpeech": ({}, 4, 2, []),
    "UniSpeechSat": ({}, 4, 2, []),
    "Data2VecAudio": ({}, 4, 2, []),
    "SEW": (SEW, 4, 2, []),
    "SEWD": (SEW, 4, 2, []),
    "Wav2Vec2Conformer": ({}, 4, 4, ["encoder.layers.*.self_attn.linear_pos"]),
    "Wav2Vec2Bert": (NO_CONV, 4, 4, []),
    "AST": (NO_CONV, 4, 2, []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_presets_find_every_matrix_or_name_what_they_leave(kind):
    options, attention, ffn, unknown = KINDS[kind]
    config = getattr(transformers, f"{kind}Config")(**{**HUGGING, **options})
    for preset, count in (("attention", attention), ("ffn", ffn), ("all", attention + ffn)):
        model = getattr(transformers, f"{kind}Model")(config)
        report = apply_lora(model, LoraOptions(rank=2, targets=preset))
        assert len(report.modules) == count * config.num_hidden_layers
        assert name_patterns(report.unknown) == unknown
        for name in unknown:
            assert f"No preset adapts {name}: name them in lora.targets" in str(report)
    assert "No preset" not in str(
        apply_lora(getattr(transformers, f"{kind}Model")(config), LoraOptions(targets=["all"]))
    )


def test_a_matrix_that_the_presets_do_not_know_is_named(monkeypatch):
    known = [name for name in targets.ATTENTION if name != "key_proj"]
    monkeypatch.setattr(targets, "ATTENTION", known)
    model = transformers.SEWDModel(transformers.SEWDConfig(**{**HUGGING, **SEW}))
    said = str(apply_lora(model, LoraOptions(targets="attention", layers=[1])))
    assert "No preset adapts encoder.encoder.layer.*.attention.self.key_proj: name" in said


def test_options_name_all_their_problems():
    wrong = {"rank": 0, "alpha": -1, "dropout": 1.0, "targets": "atention", "layers": [-1]}
    problems: list[str] = []
    assert read_options(LoraOptions, wrong, "lora", problems) is None
    for key, problem in zip(wrong, problems, strict=True):
        assert problem.startswith(f"lora.{key}: expected")
    assert "Did you mean 'attention'?" in problems[3]
    for key in ("targets", "layers"):
        with pytest.raises(UserError, match=f"{key}: the list is empty"):
            LoraOptions(**{key: []})
    with pytest.raises(UserError, match=r"'fc\(1' is neither a name nor a regular expression"):
        LoraOptions(targets=["fc(1"])
    assert LoraOptions(rank=4).scale == 1 and LoraOptions(rank=4, alpha=8).scale == 2


def test_a_tensor_without_gradient_is_an_error_a_zero_gradient_is_not(bases):
    upstream = bases("wavlm_local")
    apply_lora(upstream, LoraOptions(rank=2))
    upstream.train()
    upstream(noise(8000)).layers[
        2
    ].square().sum().backward()  # layer 2 (from 0) only makes hidden state 3
    with pytest.raises(UserError) as caught:
        check_lora_gradients(upstream)
    assert (
        "2 LoRA tensors" in str(caught.value)
        and "layers.2.fc1" in str(caught.value)
        and "layers.1.fc1," not in str(caught.value)
    )
    assert "expert.model.encoder.layers.*.self_attn.q_proj" in str(caught.value)

    upstream.zero_grad()
    (0 * upstream(noise(8000)).layers[3]).sum().backward()
    assert len(check_lora_gradients(upstream)) == 6


def test_a_wrapper_that_replaces_forward_would_be_dead_here(bases):
    """The trap that the parametrization avoids: s3prl's attention never calls q_proj."""
    upstream, calls = bases("wavlm_local"), []
    upstream.expert.model.encoder.layers[0].self_attn.q_proj.register_forward_hook(
        lambda *_: calls.append("q_proj")
    )
    upstream.expert.model.encoder.layers[0].fc1.register_forward_hook(
        lambda *_: calls.append("fc1")
    )
    hidden_states(upstream)
    assert calls == ["fc1"]


def test_dropout_on_the_input_is_honoured_or_refused(bases):
    upstream = bases("wavlm_local")
    with pytest.raises(
        UserError,
        match=r"lora.dropout: 0.5 acts on .* reads only the weights of .*self_attn.k_proj",
    ):
        apply_lora(upstream, LoraOptions(rank=2, dropout=0.5, targets="all"))
    assert all(
        parameter.requires_grad for parameter in upstream.expert.model.encoder.layers.parameters()
    )  # left as it was
    apply_lora(upstream, LoraOptions(rank=2, dropout=0.5))
    for module in upstream.modules():
        if isinstance(module, LoraDelta):
            module.lora_B.data.normal_()
    set_train_modes(upstream, dropout=False, masking=False)
    one, other = hidden_states(upstream), hidden_states(upstream)
    assert torch.equal(one[-1], other[-1])  # eval
    upstream.train()
    assert not torch.equal(hidden_states(upstream)[-1], hidden_states(upstream)[-1])
    apply_lora(
        bases("whisper"), LoraOptions(rank=2, dropout=0.5, targets="all")
    )  # every matrix is called as a module


@pytest.mark.parametrize("family", ["wavlm_local", "whisper", "hf_wav2vec2_custom", "torch"])
def test_bf16_autocast_trains_float32_adapters(bases, family):
    upstream = bases(family)
    apply_lora(upstream, LoraOptions(rank=2, targets="all"))
    disable_layerdrop(upstream)
    set_train_modes(upstream.train(), dropout=False, masking=False)
    optimizer = torch.optim.Adam(
        [parameter for parameter in upstream.parameters() if parameter.requires_grad], lr=0.01
    )
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(upstream)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for module in upstream.modules():
        if isinstance(module, LoraDelta):
            assert (
                module.lora_A.dtype
                == module.lora_B.dtype
                == module.lora_B.grad.dtype
                == module.delta().dtype
                == torch.float32
            )
            assert module.lora_A.isfinite().all() and module.lora_B.isfinite().all()


@pytest.mark.slow
def test_a_wavlm_base_takes_a_lora_step_within_memory():
    """12 x 768, random weights: a step stays well below gradients and moments of fine-tuning."""
    import resource

    from s3prl_varan.upstream.micro_wavlm import build_wavlm

    upstream = build_wavlm(
        {"relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800}
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = apply_lora(upstream, LoraOptions(targets="all"))
    assert report.adapter_parameters == 12 * 16 * (4 * (768 + 768) + 2 * (768 + 3072))
    set_train_modes(upstream.train(), dropout=True, masking=False)
    enable_gradient_checkpointing(upstream)
    optimizer = torch.optim.AdamW(
        parameter for parameter in upstream.parameters() if parameter.requires_grad
    )
    sum(
        layer.square().mean() for layer in upstream(noise(32000, 32000))["hidden_states"]
    ).backward()
    assert check_lora_gradients(upstream) == []
    optimizer.step()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert grown < 1.0, f"peak memory grew by {grown:.2f} GiB"


def test_an_adapted_upstream_can_be_copied():
    expert = TorchExpert().eval()
    apply_lora(expert, LoraOptions(rank=2, targets="all"))
    enable_gradient_checkpointing(expert)
    twin = copy.deepcopy(expert)
    for module in twin.modules():
        if isinstance(module, LoraDelta):
            module.lora_B.data.normal_()
    with torch.no_grad():
        one, other = (model(noise(8000))["hidden_states"][-1] for model in (expert, twin))
    assert not torch.allclose(one, other)
    assert twin.encoder.layers[0].forward.__self__ is twin.encoder.layers[0]


def test_name_patterns():
    assert name_patterns(["a.0.b", "a.10.b", "c2.0", "d"]) == ["a.*.b", "c2.*", "d"]
