"""Modes of an upstream in training: layer drop, dropout, masking, its CNN, checkpointing."""

import pytest
import torch
from tiny_families import FAMILIES, noise
from torch import nn

from s3prl_varan.errors import UserError
from s3prl_varan.tuning.lora import (
    LoraDelta,
    LoraOptions,
    apply_lora,
)
from s3prl_varan.tuning.modes import (
    disable_layerdrop,
    enable_gradient_checkpointing,
    set_cnn_training,
    set_train_modes,
)
from s3prl_varan.tuning.targets import transformer_layers
from tests.tuning.training_steps import hidden_states, loss_of, steps


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_without_dropout_and_layerdrop_is_evaluation(bases, family):
    upstream = bases(family)
    evaluated = hidden_states(upstream)
    disable_layerdrop(upstream)
    set_train_modes(upstream, dropout=False, masking=False)
    upstream.train()
    for one, other in zip(evaluated, hidden_states(upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_layerdrop_is_found_and_told(bases):
    assert disable_layerdrop(bases("distiller_local")) == [
        "expert.model.model.encoder.layerdrop 0.5 -> 0"
    ]
    upstream = bases("hf_hubert_custom")
    assert disable_layerdrop(upstream) == [
        "expert.model.config.layerdrop 0.5 -> 0"
    ]  # all modules share the config
    upstream.train()
    assert all(len(hidden_states(upstream)) == 4 for _ in range(5))
    assert disable_layerdrop(upstream) == []


def test_dropout_stays_where_asked(bases):
    upstream = bases("wavlm_local")
    set_train_modes(upstream.train(), dropout=True, masking=False)
    assert not torch.equal(hidden_states(upstream)[-1], hidden_states(upstream)[-1])


@pytest.mark.parametrize(
    "family",
    ["wavlm_local", "hubert_local", "wav2vec2_local", "data2vec_local", "hf_hubert_custom"],
)
def test_masking_happens_in_training_only_where_asked(bases, family):
    upstream = bases(family)
    evaluated = hidden_states(upstream, noise(16000))
    disable_layerdrop(upstream)
    notes = set_train_modes(upstream, dropout=False, masking=True)
    assert any("masks frames with probability 0." in note for note in notes)
    assert torch.equal(evaluated[0], hidden_states(upstream, noise(16000))[0])
    upstream.train()
    masked = hidden_states(upstream, noise(16000))
    assert not torch.allclose(evaluated[0], masked[0], atol=1e-3)
    apply_lora(upstream, LoraOptions(rank=2))
    steps(upstream, count=1)


def test_masking_is_refused_where_there_is_none(bases):
    with pytest.raises(UserError, match="no masking of its own"):
        set_train_modes(bases("whisper"), dropout=True, masking=True)


def test_cnn_trains_only_when_asked(bases):
    for family in ("wav2vec2_local", "hf_hubert_custom", "whisper"):
        upstream = bases(family)
        disable_layerdrop(upstream)
        set_train_modes(upstream.train().requires_grad_(True), dropout=False, masking=False)
        for train in (False, True):
            names = set_cnn_training(upstream, train)
            assert names
            upstream.zero_grad(set_to_none=True)
            loss_of(upstream).backward()
            grads = [
                parameter.grad is not None
                for name in names
                for parameter in upstream.get_submodule(name).parameters()
            ]
            assert all(grads) if train else not any(grads)
            fc1 = upstream.get_submodule(f"{transformer_layers(upstream)[0]}").parameters()
            assert all(parameter.grad is not None for parameter in fc1)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(bases, family):
    upstream = bases(family)
    apply_lora(upstream, LoraOptions(rank=2, targets="all"))
    for module in upstream.modules():
        if isinstance(module, LoraDelta):
            module.lora_B.data.normal_(std=0.1)
    disable_layerdrop(upstream)
    set_train_modes(upstream.train(), dropout=True, masking=False)

    def gradients():
        torch.manual_seed(3)
        upstream.zero_grad(set_to_none=True)
        loss = loss_of(upstream)
        loss.backward()
        return loss.item(), {
            name: parameter.grad
            for name, parameter in upstream.named_parameters()
            if parameter.requires_grad
        }

    plain_loss, plain = gradients()
    ran = []
    handle = upstream.get_submodule(transformer_layers(upstream)[0]).register_forward_hook(
        lambda *_: ran.append(1)
    )
    assert enable_gradient_checkpointing(upstream) == enable_gradient_checkpointing(upstream) == 3
    loss, checkpointed = gradients()
    handle.remove()
    assert loss == plain_loss and len(ran) == 1  # the hooks around a layer see it once
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-7)


def test_gradient_checkpointing_recomputes_the_layers(bases):
    upstream, ran = bases("wavlm_local"), []
    apply_lora(upstream, LoraOptions(rank=2))
    upstream.expert.model.encoder.layers[1].fc1.register_forward_hook(lambda *_: ran.append(1))
    enable_gradient_checkpointing(upstream)
    loss_of(upstream.train()).backward()
    assert len(ran) == 2
    hidden_states(upstream.eval())
    assert len(ran) == 3
    with pytest.raises(UserError, match="no transformer layers"):
        enable_gradient_checkpointing(nn.Linear(2, 2))
