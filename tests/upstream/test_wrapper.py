"""What an expert gives, behind one face: lengths, fingerprints, outputs refused or mended."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_families import noise
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_varan.errors import UserError
from s3prl_varan.upstream.wrapper import Upstream, build_upstream


class Frames(nn.Module):
    """An expert whose output a test chooses: `make` is given frames of 160 samples, [B, T, 3]."""

    def __init__(self, make, rate: int | None = 160):
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.ones(3))
        if rate is not None:
            self.get_downsample_rates = lambda key: rate

    def forward(self, wavs: Sequence[Tensor]) -> object:
        wavs = pad_sequence(list(wavs), batch_first=True)
        return self.make(wavs[:, ::160, None] * self.weight)


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
        match="made 100 frames of 16000 samples, but by its downsample rate of 320 there should "
        "be 50",
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
