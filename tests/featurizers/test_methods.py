"""What each featurizer computes: options of q, how q is spent, figures of the authors' modules."""

import math

import pytest
import torch
from torch import Tensor

from s3prl_varan import elbo
from s3prl_varan.app.build import build_model
from s3prl_varan.app.cli import parse_args
from s3prl_varan.config.resolve import resolve
from s3prl_varan.config.settings import RunSettings
from s3prl_varan.features.stack import LayerStack
from s3prl_varan.featurizers import find_featurizer
from s3prl_varan.featurizers.hconv import HierarchicalConvolution
from s3prl_varan.featurizers.lap import LayerAttentivePooling
from s3prl_varan.layerwise.objective import Objective
from s3prl_varan.model import SpeechModel
from tests.conftest import TINY
from tests.featurizers.test_featurizers import ROWS, build
from tests.tiny_families import noise

TARGETS = torch.tensor([0, 3, 5])


def settings_of(featurizer: str, upstream: str = "wavlm", **overrides: object) -> RunSettings:
    args = ["-u", upstream, "-d", "emotion", "-f", featurizer]
    override = ",,".join(f"config.{key}={value}" for key, value in overrides.items())
    return resolve(parse_args([*args, *(["-o", override] if override else [])]))


def model_of(featurizer: str, tone_corpus, **overrides: object) -> SpeechModel:
    place = "downstream_expert.datarc."
    overrides |= {f"{place}root": tone_corpus, f"{place}meta_data": tone_corpus / "meta_data"}
    return build_model(settings_of(featurizer, TINY, **{"heads.dropout": 0, **overrides}))


def stack_of(num_hidden: int, dim: int = 12, frames: int = 4) -> LayerStack:
    return LayerStack(torch.randn(3, num_hidden, frames, dim), torch.tensor([frames, 2, 1]))


# ---- size

BASE = {  # 13 hidden states of 768
    "varan": 7 * 768**2 + 5 * 768 + 1,
    "varan, static": 12,
    "varan, prior": 0,
    "ensemble": 0,
    "dynamic_sum": 7 * 768**2 + 5 * 768 + 1,
    "dynamic_sum, static": 12,
    "weighted_sum": 13,
    "hconv": 4_424_832,
    "lap": 1_187_056,
    "last_layer": 0,
}


@pytest.mark.parametrize(("name", "options"), ROWS, ids=str)
def test_parameters_of_a_base_upstream(name, options):
    featurizer = build(name, 13, 768, **options)
    count = sum(each.numel() for each in featurizer.parameters())
    assert count == BASE[", ".join([name, *options.values()])]
    assert (count > 0) == type(featurizer).Options(**options).learns()


# ---- options of q


def test_the_released_recipe_averages_as_the_released_code_of_the_task_does():
    options = find_featurizer("varan").Options
    released = options(recipe="released")
    assert released.objective("batch_mean").nll == "batch_mean"
    assert released.objective("per_example").nll == "per_example"
    assert released.objective("batch_mean").kl == "prior_posterior"
    mixed = options(recipe="released", nll="per_example", kl="posterior_prior")
    assert mixed.objective("batch_mean") == options().objective("batch_mean")


@pytest.mark.parametrize("name", ["varan", "dynamic_sum"])
def test_only_the_options_that_are_read_decide(name):
    options = find_featurizer(name).Options
    chi2, geometric = ["chi2_df", "chi2_nc"], ["geometric_p"]
    assert options(prior="chi2_reversed").idle() == geometric
    assert options(prior="geometric").idle() == chi2
    assert options(prior="uniform").idle() == chi2 + geometric
    assert options(posterior="static").idle() == [*geometric, "posterior_heads"]
    recipe = ["recipe", "nll", "kl"] if name == "varan" else []
    assert options(posterior="prior").idle() == [*geometric, "posterior_heads", "kl_beta", *recipe]


@pytest.mark.parametrize("name", ["varan", "dynamic_sum"])
def test_where_q_is_the_prior_the_objective_reads_no_idle_key(name):
    options = find_featurizer(name).Options
    keys = {"recipe": "released", "kl": "prior_posterior"} if name == "varan" else {}
    given = options(posterior="prior", kl_beta=3, **keys).objective("batch_mean")
    assert given == Objective(beta=0) == options(posterior="prior").objective("per_example")
    assert options(posterior="static", kl_beta=3).objective("batch_mean").beta == 3


def test_the_identity_of_a_run_knows_what_is_idle():
    def run_id(**overrides: object) -> str:
        return settings_of("varan", **overrides).id

    prior, static = {"varan.posterior": "prior"}, {"varan.posterior": "static"}
    assert run_id(**{"varan.posterior": "input"}) == run_id()
    assert len({run_id(), run_id(**prior), run_id(**static)}) == 3
    unread = {"varan.kl_beta": 3, "varan.recipe": "released", "optimizer.featurizer_lr": 0.1}
    for key, value in unread.items():
        assert run_id(**prior, **{key: value}) == run_id(**prior)
        assert run_id(**static, **{key: value}) != run_id(**static)
    assert run_id(**static, **{"varan.posterior_heads": 2}) == run_id(**static)
    assert run_id(**prior, **{"varan.geometric_p": 0.3, "varan.prior": "geometric"}) != run_id(
        **prior, **{"varan.prior": "geometric"}
    )


def test_static_q_is_one_for_all_inputs_and_is_learned_with_the_kl(tone_corpus):
    model = model_of("varan", tone_corpus, **{"varan.posterior": "static", "varan.kl_beta": 0.5})
    featurizer = model.featurizer
    featurizer.weights.data = torch.tensor([0.5, -1.0, 0.0, 1.0])
    step = model(noise(9600, 16000, 6400), TARGETS)
    q = featurizer.weights.softmax(0)
    kl = (q * (q / featurizer.prior).log()).sum()
    torch.testing.assert_close(step.layer_weights, q.detach().expand(3, 4))
    torch.testing.assert_close(step.terms.kl, kl)
    torch.testing.assert_close(step.terms.loss, step.terms.nll + 0.5 * kl)
    step.terms.loss.backward()
    assert featurizer.weights.grad.abs().min() > 0


def test_q_that_is_the_prior_costs_nothing(tone_corpus):
    model = model_of("varan", tone_corpus, **{"varan.posterior": "prior"})
    step = model(noise(9600, 16000, 6400), TARGETS)
    torch.testing.assert_close(step.layer_weights, model.featurizer.prior.expand(3, 4))
    assert abs(step.terms.kl) < 1e-6 and torch.equal(step.terms.loss, step.terms.nll)
    certain = build("varan", 13, 8, posterior="prior", prior="geometric", geometric_p=0.9999)
    assert certain(stack_of(12, 8)).posterior_logits.isfinite().all()


def test_an_ensemble_is_varan_with_everything_uniform(tone_corpus):
    uniform = {"varan.posterior": "prior", "varan.prior": "uniform"}
    ensemble, varan = model_of("ensemble", tone_corpus), model_of("varan", tone_corpus, **uniform)
    wavs = noise(9600, 16000, 6400)
    one, other = ensemble(wavs, TARGETS), varan(wavs, TARGETS)
    torch.testing.assert_close(one.terms.loss, other.terms.loss)
    torch.testing.assert_close(one.prediction.values, other.prediction.values)
    hidden = ensemble.features(ensemble.encode(wavs))
    out = ensemble.downstream.outputs(hidden)
    nll = ensemble.downstream.task.layer_loss(out, TARGETS)
    torch.testing.assert_close(one.terms.loss, nll.mean())


def test_the_prediction_of_an_ensemble_is_one_of_the_tasks_rules():
    from s3prl_varan import UserError

    with pytest.raises(UserError, match="ensemble.prediction: expected one of geometric, mixture"):
        settings_of("ensemble", **{"ensemble.prediction": "sequence"})


# ---- a sum by q


def test_dynamic_sum_spends_varans_q_and_says_its_kl():
    torch.manual_seed(0)
    dynamic = build("dynamic_sum", 5, 12)
    torch.manual_seed(0)
    varan = build("varan", 5, 12)
    stack = stack_of(4)
    ours, theirs = dynamic(stack), varan(stack)
    q = theirs.posterior_logits.softmax(-1)
    torch.testing.assert_close(ours.layer_weights, q.detach())
    torch.testing.assert_close(ours.hidden[:, 0], (q[:, :, None, None] * stack.hidden).sum(dim=1))
    nll = torch.rand(3, 4)
    expected = elbo(nll, theirs.posterior_logits, varan.prior, 1.0).kl
    torch.testing.assert_close(ours.inner_kl.mean(), expected)
    assert dynamic.num_outputs == 1 and ours.posterior_logits.shape == (3, 1)


def test_the_kl_of_a_dynamic_sum_is_in_the_loss(tone_corpus):
    model = model_of("dynamic_sum", tone_corpus, **{"dynamic_sum.kl_beta": 0.5})
    wavs = noise(9600, 16000, 6400)
    step = model(wavs, TARGETS)
    kl = model.features(model.encode(wavs)).inner_kl.mean()
    assert kl > 0
    torch.testing.assert_close(step.terms.kl, kl)
    torch.testing.assert_close(step.terms.loss, step.terms.nll + 0.5 * kl)
    step.terms.kl.backward()
    assert model.featurizer.posterior.logit.weight.grad.abs().max() > 0


def test_a_static_sum_is_the_weighted_sum():
    static = build("dynamic_sum", 5, 12, posterior="static", layers="all")
    weighted = build("weighted_sum", 5, 12)
    static.weights.data = weighted.weights.data = torch.randn(5)
    stack = stack_of(5)
    torch.testing.assert_close(static(stack).hidden, weighted(stack).hidden)


# ---- frames


@pytest.mark.parametrize(("name", "options"), ROWS, ids=str)
def test_means_are_taken_first_only_where_that_changes_nothing(name, options):
    featurizer = build(name, 5, 12, **options).eval()
    hidden = torch.randn(3, len(featurizer.layers), 4, 12)
    lengths = torch.full((3,), 4)
    after = featurizer(LayerStack(hidden, lengths)).hidden.mean(dim=2)
    mean = hidden.mean(dim=2, keepdim=True)
    before = featurizer(LayerStack(mean, torch.ones_like(lengths))).hidden[:, :, 0]
    assert torch.allclose(after, before, atol=1e-5) == featurizer.takes_means


def test_a_model_pools_first_only_where_it_may(tone_corpus):
    assert model_of("dynamic_sum", tone_corpus).pool
    assert not model_of("hconv", tone_corpus).pool


@pytest.mark.parametrize("name", ["hconv", "lap"])
def test_what_lies_in_padding_is_not_read(name):
    """Neither by the output nor by a gradient or a running statistic."""
    featurizer = build(name, 5, 12).train()
    featurizer.requires_grad_(True)
    results = []
    stack = stack_of(5)
    for filler in (0.0, float("nan")):
        hidden = stack.hidden.clone()
        hidden[1, :, 2:], hidden[2, :, 1:] = filler, filler
        torch.manual_seed(0)
        featurizer.zero_grad()
        features = featurizer(LayerStack(hidden, stack.lengths))
        features.hidden.square().sum().backward()
        grads = [each.grad.clone() for each in featurizer.parameters()]
        results.append([features.hidden.detach(), features.layer_weights, *grads])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all() and torch.equal(one, other)
    assert all(each.isfinite().all() for each in featurizer.state_dict().values())


def test_pooling_normalises_over_frames_that_are_no_padding():
    featurizer = build("lap", 5, 12).train()
    stack = stack_of(5)
    featurizer(stack)
    valid = torch.cat([row[:, :n] for row, n in zip(stack.hidden, stack.lengths, strict=True)], 1)
    torch.testing.assert_close(featurizer.in_norm.running_mean, 0.1 * valid.mean(dim=(0, 1)))


@pytest.mark.parametrize(
    ("num_hidden", "left"), [(2, 1), (3, 1), (5, 2), (7, 3), (9, 1), (13, 2), (25, 3), (27, 1)]
)
def test_convolutions_shrink_the_layers_threefold(num_hidden, left):
    featurizer = HierarchicalConvolution(num_hidden, 7)
    assert len(featurizer.convolutions) == max(1, int(math.log(num_hidden + 0.5, 3)))
    assert featurizer.convolutions[-1].out_channels == 7 // left
    features = featurizer(stack_of(num_hidden, 7))
    assert features.hidden.shape == (3, 1, 4, 7)
    filled = 7 // left * left
    assert features.hidden[0, 0, :, :filled].any() and not features.hidden[..., filled:].any()


# ---- the authors' modules: same weights, same hidden states, what came out of them


def wave(shape: tuple[int, ...], step: float) -> Tensor:
    """sin(step), sin(2 step), ..."""
    steps = step * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return steps.sin().float().view(shape)


def test_hierarchical_convolution_gives_the_authors_figures():
    featurizer = HierarchicalConvolution(13, 8)
    state = featurizer.state_dict().items()
    featurizer.load_state_dict(
        {name: 0.3 * wave(each.shape, 0.7 + 0.1 * at) for at, (name, each) in enumerate(state)}
    )
    features = featurizer(LayerStack(wave((2, 13, 3, 8), 0.37), torch.tensor([3, 3])))
    expected = [0.37236, 0.34103, 0.30858, 0.14797, 0, 0, 0, 0]
    torch.testing.assert_close(
        features.hidden[1, 0, 2], torch.tensor(expected), atol=1e-5, rtol=1e-4
    )


LAP = {  # evaluating and training, without dropout
    False: [1.73064, -0.73005, -0.85973, 1.94224, 0.26048, -1.04909, 1.17091, 1.09529],
    True: [-0.68734, 0.05915, 0.34439, -0.84071, -0.16875, 0.62046, -0.66926, -0.99128],
}


@pytest.mark.parametrize("training", [False, True])
def test_layer_attentive_pooling_gives_the_authors_figures(training):
    featurizer = LayerAttentivePooling(5, 8, heads=2, dropout=0.0).train(training)
    state = {}
    for at, (name, each) in enumerate(featurizer.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        scales = name.endswith(("running_var", "norm.weight"))
        state[name] = 0.5 * wave(each.shape, 0.7 + 0.1 * at) + (1.0 if scales else 0.0)
    featurizer.load_state_dict(state, strict=False)
    features = featurizer(LayerStack(wave((2, 5, 3, 8), 0.37), torch.tensor([3, 3])))
    torch.testing.assert_close(
        features.hidden[1, 0, 2], torch.tensor(LAP[training]), atol=1e-4, rtol=1e-4
    )


def test_pooling_says_whose_maxima_it_took():
    featurizer = build("lap", 3, 12).eval()
    hidden = torch.randn(2, 3, 2, 12)
    features = featurizer(LayerStack(hidden, torch.tensor([2, 1])))
    torch.testing.assert_close(features.layer_weights.sum(dim=1), torch.ones(2))
    torch.nn.init.eye_(featurizer.project.weight)
    for parameter in (featurizer.project.bias, featurizer.squeeze, featurizer.expand):
        torch.nn.init.zeros_(parameter)
    hidden[:, 1] = hidden.abs().max() + 1  # gates all alike: this layer has every maximum
    features = featurizer(LayerStack(hidden, torch.tensor([2, 1])))
    assert features.layer_weights.tolist() == [[0, 1, 0], [0, 1, 0]]
