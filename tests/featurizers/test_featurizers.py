"""Featurizers: parity with s3prl's own weighted sum, padding and batch order, and the registry a user extends."""

import pytest
import torch
from conftest import TINY

from s3prl_varan import UserError, build_featurizer, build_upstream, register_featurizer
from s3prl_varan.config.options import FEATURIZER_OPTIONS, HeadOptions
from s3prl_varan.features.stack import LayerStack, stack_layers
from s3prl_varan.featurizers.registry import FEATURIZERS, SingleLayer, featurizer_class


@pytest.mark.parametrize("normalize", [False, True])
def test_weighted_sum_equals_s3prls(normalize):
    from s3prl.upstream.interfaces import Featurizer

    upstream = build_upstream(TINY)
    theirs = Featurizer(upstream.expert, upstream_device="cpu", normalize=normalize)
    ours = build_featurizer("weighted_sum", upstream.num_hidden, upstream.dim, HeadOptions())
    weights = torch.randn(upstream.num_hidden)
    theirs.weights.data, ours.weights.data = weights, weights.clone()
    wavs = [torch.randn(6400), torch.randn(9600)]
    expected = theirs(wavs, upstream.expert(wavs))
    hidden = upstream(wavs)
    features = ours(stack_layers(hidden.layers, hidden.lengths, normalize=normalize))
    for index, length in enumerate(features.lengths):
        torch.testing.assert_close(
            features.hidden[index, 0, :length], expected[index], atol=1e-5, rtol=1e-5
        )
    pooled = ours(stack_layers(hidden.layers, hidden.lengths, normalize=normalize, pool=True))
    torch.testing.assert_close(
        pooled.hidden[:, 0, 0],
        torch.stack([each.mean(dim=0) for each in expected]),
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(features.layer_weights[0], weights.softmax(0))


@pytest.mark.parametrize("name", ["varan", "weighted_sum", "last_layer"])
@pytest.mark.parametrize("pool", [False, True])
def test_padding_and_batch_order_change_nothing(name, pool):
    upstream = build_upstream(TINY)
    featurizer = build_featurizer(
        name, upstream.num_hidden, upstream.dim, FEATURIZER_OPTIONS[name]()
    ).eval()

    def features(wavs):
        hidden = upstream(wavs)
        layers = [hidden.layers[index] for index in featurizer.layers]
        return featurizer(stack_layers(layers, hidden.lengths, pool=pool))

    wavs = [torch.randn(length) for length in (5000, 16000, 900)]
    together = features(wavs)
    backwards = features(wavs[::-1])
    for index, wav in enumerate(wavs):
        alone = features([wav])
        frames = alone.lengths[0]
        for other, at in ((together, index), (backwards, 2 - index)):
            assert other.lengths[at] == frames
            torch.testing.assert_close(
                other.hidden[at, :, :frames], alone.hidden[0], atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                other.posterior_logits[at], alone.posterior_logits[0], atol=1e-5, rtol=1e-5
            )


def test_frames_of_a_clip_do_not_depend_on_its_batch():
    upstream = build_upstream("fbank")  # says nothing of its frames; they are learned by probing
    short, long = torch.randn(12345), torch.randn(33333)
    assert upstream([short, long]).lengths[0] == upstream([short]).lengths[0]


def test_layers_of_varan_can_be_chosen():
    options = FEATURIZER_OPTIONS["varan"]
    assert build_featurizer("varan", 5, 8, options()).layers == [1, 2, 3, 4]
    assert build_featurizer("varan", 5, 8, options(layers="all")).layers == [0, 1, 2, 3, 4]
    assert build_featurizer("varan", 5, 8, options(layers=[0, -1])).layers == [0, 4]
    with pytest.raises(UserError, match="varan.layers: expected hidden states in 0..4"):
        build_featurizer("varan", 5, 8, options(layers=[5]))
    with pytest.raises(UserError, match="named twice"):
        build_featurizer("varan", 5, 8, options(layers=[4, -1]))


def test_a_users_own_featurizer_joins_the_registry():
    @register_featurizer("first_layer")
    class FirstLayer(SingleLayer):
        @classmethod
        def build(cls, num_hidden, dim, options, layer):
            return cls(0)

    try:
        featurizer = build_featurizer("first_layer", 5, 8, HeadOptions())
        stack = LayerStack(torch.randn(2, 1, 3, 8), torch.tensor([3, 2]))
        assert featurizer.layers == [0] and featurizer(stack).hidden is stack.hidden
        with pytest.raises(UserError, match="Did you mean 'first_layer'"):
            featurizer_class("first_laier")
    finally:
        del FEATURIZERS["first_layer"], FEATURIZER_OPTIONS["first_layer"]
