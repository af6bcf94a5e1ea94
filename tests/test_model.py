"""The path from waveforms to loss: one layer is the head itself, and nothing depends on padding."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.app.build import build_model
from s3prl_varan.app.cli import parse_args
from s3prl_varan.config.resolve import resolve
from s3prl_varan.features.stack import LayerFeatures
from s3prl_varan.layerwise.heads import HeadOptions, LinearHeads
from s3prl_varan.layerwise.objective import Objective, elbo
from s3prl_varan.model import LayerwiseDownstream, SpeechModel
from tests.conftest import TINY
from tests.tiny_families import noise

TARGETS = torch.tensor([0, 3, 5])
DIM = 12


@pytest.fixture
def build(tone_corpus):
    """Call with -f and overrides: the model of that command line, on the tiny upstream."""

    def model(featurizer: str, *flags: str, **overrides: object) -> SpeechModel:
        place = "config.downstream_expert.datarc."
        settings = {f"{place}root": tone_corpus, f"{place}meta_data": tone_corpus / "meta_data"}
        settings |= {f"config.{key}": value for key, value in overrides.items()}
        override = ",,".join(f"{key}={value}" for key, value in settings.items())
        args = ["-u", TINY, "-d", "emotion", "-f", featurizer, "-o", override, *flags]
        return build_model(resolve(parse_args(args)))

    return model


def features(num_layers: int, frames: int = 5) -> LayerFeatures:
    prior = torch.full((num_layers,), 1 / num_layers)
    logits = torch.randn(3, num_layers)
    hidden = torch.randn(3, num_layers, frames, DIM)
    return LayerFeatures(hidden, torch.tensor([frames, 2, 1]), logits, prior, logits.softmax(-1))


def downstream(build, num_layers: int, beta: float, **options: object) -> LayerwiseDownstream:
    """The emotion task's heads on `features`, in evaluation mode."""
    task = build("last_layer").downstream.task
    heads = task.build_heads(DIM, num_layers, 320, HeadOptions(**options))
    return LayerwiseDownstream(task, heads, Objective(beta=beta)).eval()


@pytest.mark.parametrize("kind", ["expert", "linear"])
def test_one_layer_is_the_head_of_s3prl_itself(kind, build):
    from s3prl.downstream.model import UtteranceLevel

    ours = downstream(build, 1, beta=0.5, kind=kind)
    heads = ours.heads
    assert isinstance(heads, LinearHeads)
    projector, model = nn.Linear(DIM, 256), UtteranceLevel(256, 7)
    for part, linear in ((heads.projector, projector), (heads.classifier, model.post_net.linear)):
        linear.weight.data, linear.bias.data = part.weight.data[0], part.bias.data[0]
    feats = features(1)
    sequences = [row[0, :n] for row, n in zip(feats.hidden, feats.lengths, strict=True)]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    logits, _ = model(projector(padded), feats.lengths)
    terms, prediction = ours(feats, TARGETS)
    torch.testing.assert_close(terms.loss, F.cross_entropy(logits, TARGETS))
    assert torch.equal(terms.loss, terms.nll) and terms.kl == 0
    torch.testing.assert_close(prediction.values, logits.log_softmax(-1))


def test_the_loss_is_the_elbo_of_the_layers_losses(build):
    ours = downstream(build, 4, beta=0.5)
    feats = features(4)
    terms, _ = ours(feats, TARGETS)
    logits, _ = ours.heads(feats.hidden, feats.lengths)
    rows = [F.cross_entropy(logits[:, layer], TARGETS, reduction="none") for layer in range(4)]
    log_q = feats.posterior_logits.log_softmax(-1)
    nll = (log_q.exp() * torch.stack(rows, dim=1)).sum(-1).mean()
    kl = (log_q.exp() * (log_q - feats.prior.log())).sum(-1).mean()
    torch.testing.assert_close(terms.nll, nll)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.loss, nll + 0.5 * kl)


def test_pooled_features_give_what_all_frames_give(build):
    ours = downstream(build, 4, beta=0.0)
    assert ours.pooled
    feats = features(4)
    lengths = feats.lengths[:, None, None]
    mean = (
        feats.hidden.cumsum(dim=2).gather(
            2, (lengths - 1).clamp_min(0)[..., None].expand(3, 4, 1, DIM)
        )
        / lengths[..., None]
    )
    pooled = LayerFeatures(
        mean,
        torch.ones(3, dtype=torch.long),
        feats.posterior_logits,
        feats.prior,
        feats.layer_weights,
    )
    one, other = ours(pooled, TARGETS), ours(feats, TARGETS)
    torch.testing.assert_close(one[0].loss, other[0].loss)
    torch.testing.assert_close(one[1].values, other[1].values)


# ---- the whole model


@pytest.mark.parametrize("featurizer", ["varan", "weighted_sum", "last_layer"])
@pytest.mark.parametrize("select", ["UtteranceLevel", "DeepModel"])
def test_prediction_without_targets_is_that_of_the_training_path(featurizer, select, build):
    key = "downstream_expert.modelrc.select"
    model = build(featurizer, **{key: select, "heads.dropout": 0}).eval()
    wavs = noise(9600, 16000, 6400)
    step = model(wavs, TARGETS)
    prediction, feats = model.predict(wavs)
    torch.testing.assert_close(prediction.values, step.prediction.values)
    torch.testing.assert_close(feats.layer_weights, step.layer_weights)
    shares = step.layer_weights.sum(dim=-1)
    torch.testing.assert_close(shares, torch.ones(3))
    assert step.layer_weights.shape == (3, len(model.featurizer.layers))


@pytest.mark.parametrize("select", ["UtteranceLevel", "DeepModel"])
def test_neither_padding_nor_order_changes_a_prediction(select, build):
    key = "downstream_expert.modelrc.select"
    model = build("varan", **{key: select, "heads.dropout": 0}).eval()
    wavs = noise(9600, 16000, 6400)
    together, _ = model.predict(wavs)
    backwards, _ = model.predict(wavs[::-1])
    torch.testing.assert_close(together.values, backwards.values.flip(0), atol=1e-5, rtol=1e-5)
    if select == "DeepModel":  # its convolutions look at the zeros past the end
        return
    for index, wav in enumerate(wavs):
        alone, _ = model.predict([wav])
        torch.testing.assert_close(together.values[index], alone.values[0], atol=1e-5, rtol=1e-5)


def test_a_frozen_upstream_is_outside_the_graph(build):
    model = build("varan")
    model(noise(9600, 6400, 6400), TARGETS).terms.loss.backward()
    assert all(each.grad is None for each in model.upstream.parameters())
    trained = [*model.featurizer.parameters(), *model.downstream.parameters()]
    assert trained and all((each.grad != 0).any() for each in trained)


@pytest.mark.parametrize("flags", [[], ["--upstream_trainable"]])
@pytest.mark.parametrize("featurizer", ["varan", "weighted_sum"])
def test_no_tensor_outlives_its_step(featurizer, flags, build):
    """Memory does not grow from step to step, and no part of the model remembers a batch."""
    model = build(featurizer, *flags)
    alive = []
    for _ in range(4):
        wavs = noise(9600, 6400, 6400)
        held = [weakref.ref(wav) for wav in wavs]
        step = model(wavs, TARGETS)
        held += [weakref.ref(each) for each in (step.terms.loss, step.layer_weights)]
        step.terms.loss.backward()
        del wavs, step
        gc.collect()
        assert not any(each() is not None for each in held)
        alive.append(sum(isinstance(each, Tensor) for each in gc.get_objects()))
    assert alive[1] == alive[2] == alive[3]


def test_draws_of_heads_and_featurizer_are_the_seeds(build):
    one, same, other = build("varan"), build("varan"), build("varan", "--seed", "3")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    changed = [
        name
        for name, tensor in one.named_parameters()
        if not torch.equal(tensor, other.get_parameter(name))
    ]
    parts = {name.split(".")[0] for name in changed}
    assert parts == {"featurizer", "downstream"}
    # The heads' draws do not depend on the featurizer's.
    weighted = build("weighted_sum", **{"heads.shared": True})
    varan = build("varan", **{"heads.shared": True})
    for name, tensor in weighted.downstream.state_dict().items():
        assert torch.equal(tensor, varan.downstream.state_dict()[name]), name


def test_elbo_is_what_a_user_imports():
    import s3prl_varan

    assert s3prl_varan.elbo is elbo
    for name in s3prl_varan.__all__:
        assert callable(getattr(s3prl_varan, name)), name
