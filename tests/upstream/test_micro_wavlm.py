"""`micro_wavlm` against s3prl's own WavLM, its weights, independence of the batch."""

import itertools

import pytest
import torch
from tiny_families import SMALL, noise

from s3prl_varan.errors import UserError
from s3prl_varan.upstream import micro_wavlm as micro
from s3prl_varan.upstream.wrapper import Upstream, build_upstream


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
