"""Properties of the numeric core: priors, posterior, objective, aggregation, heads."""

import pytest
import torch

from s3prl_varan import (
    LayerPosterior,
    UserError,
    aggregate_log_probs,
    elbo,
    layer_prior,
    masked_mean,
)
from s3prl_varan.featurizers.varan.posterior import num_attention_heads
from s3prl_varan.featurizers.varan.priors import PRIORS
from s3prl_varan.layerwise.heads import CopiedHeads, LinearHeads


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("num_layers", [1, 2, 12, 24])
def test_priors_are_distributions(name, num_layers):
    prior = layer_prior(name, num_layers)
    assert prior.dtype == torch.float32 and prior.shape == (num_layers,)
    assert (prior >= 0).all() and abs(prior.sum().item() - 1) < 1e-5


@pytest.mark.parametrize("df", [0.5, 6, 50])
@pytest.mark.parametrize("nc", [0, 0.5, 10, 300])
def test_chi2_prior_is_scipys(df, nc):
    from scipy.stats import ncx2

    points = torch.linspace(*ncx2.ppf([0.01, 0.99], df, nc).tolist(), 12, dtype=torch.float64)
    expected = torch.from_numpy(ncx2.pdf(points, df, nc)) * (points[1] - points[0])
    torch.testing.assert_close(
        layer_prior("chi2", 12, chi2_df=df, chi2_nc=nc)[1:],
        expected[1:].float(),
        rtol=1e-5,
        atol=1e-7,
    )


def test_prior_refuses_what_it_does_not_know():
    with pytest.raises(UserError, match="Did you mean 'chi2_reversed'"):
        layer_prior("chi2_reverse", 4)
    with pytest.raises(UserError, match="geometric_p must lie between"):
        layer_prior("geometric", 4, geometric_p=1.5)
    with pytest.raises(UserError, match="chi2_df must be > 0"):
        layer_prior("chi2", 4, chi2_df=0)


def test_masked_mean_ignores_padding_whatever_it_holds():
    hidden = torch.randn(3, 2, 7, 5)
    lengths = torch.tensor([7, 3, 1])
    expected = torch.stack([hidden[i, :, :n].mean(1) for i, n in enumerate(lengths)])
    for i, n in enumerate(lengths):
        hidden[i, :, n:] = float("nan")
    torch.testing.assert_close(masked_mean(hidden, lengths), expected)


@pytest.mark.parametrize("layers_first", [False, True])
@pytest.mark.parametrize("padding", [0.0, float("nan"), float("inf")])
def test_masked_mean_has_the_gradient_of_a_mean(layers_first, padding):
    lengths = torch.tensor([7, 3, 1])
    stacked = torch.randn(2, 3, 7, 5).transpose(0, 1) if layers_first else torch.randn(3, 2, 7, 5)
    for i, n in enumerate(lengths):
        stacked[i, :, n:] = padding
    hidden = stacked.detach().requires_grad_()
    weights = torch.randn(3, 2, 5)
    (masked_mean(hidden, lengths) * weights).sum().backward()
    for i, n in enumerate(lengths):
        torch.testing.assert_close(
            hidden.grad[i, :, :n], (weights[i, :, None] / n).expand(2, int(n), 5)
        )
        assert (hidden.grad[i, :, n:] == 0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_folded_heads_are_the_same_function(shared):
    heads = LinearHeads(3, 16, 64, 4, per_frame=True, shared=shared)
    hidden, lengths = (
        torch.randn(5, 3, 20, 16, requires_grad=True),
        torch.tensor([20, 11, 7, 20, 1]),
    )
    results = []
    for folds in (True, False):
        heads._folds = lambda rows, folds=folds: folds
        logits, _ = heads(hidden, lengths)
        results.append(
            (logits, *torch.autograd.grad(logits.square().sum(), [hidden, *heads.parameters()]))
        )
    for folded, plain in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
    fresh = LinearHeads(3, 16, 64, 4, per_frame=True, dropout=0.1)
    assert not fresh._folds(1000) and fresh.eval()._folds(1000) and not fresh._folds(8)


def test_posterior_heads_fall_to_a_divisor(caplog):
    assert [num_attention_heads(dim, 16) for dim in (768, 384, 100, 7, 6)] == [16, 16, 10, 7, 6]
    LayerPosterior(100)
    assert "using 10" in caplog.text
    q = LayerPosterior(32)(torch.randn(4, 6, 32)).softmax(-1)
    torch.testing.assert_close(q.sum(-1), torch.ones(4))


@pytest.mark.parametrize("dim", [32, 30])
def test_posterior_is_linear_then_attention_then_linear(dim):
    posterior = LayerPosterior(dim, 16)
    with torch.no_grad():
        for parameter in posterior.parameters():  # attention's biases start at zero
            parameter.copy_(torch.randn_like(parameter) / 4)
    pooled, parameters = torch.randn(5, 6, dim, requires_grad=True), list(posterior.parameters())

    results = []
    for function in (posterior, posterior.plain):
        logits = function(pooled)
        results.append((logits, *torch.autograd.grad(logits.square().sum(), [pooled, *parameters])))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kl", ["posterior_prior", "prior_posterior"])
def test_kl_is_zero_at_the_prior_and_positive_elsewhere(kl):
    prior = layer_prior("chi2_reversed", 6)
    nll = torch.zeros(3, 6)
    assert abs(elbo(nll, prior.log().expand(3, 6), prior, 1.0, kl=kl).kl.item()) < 1e-6
    assert elbo(nll, torch.randn(3, 6), prior, 1.0, kl=kl).kl.item() > 0


def test_elbo_with_one_layer_is_the_mean_loss():
    nll = torch.rand(5, 1)
    result = elbo(nll, torch.zeros(5, 1), torch.ones(1), 0.05)
    torch.testing.assert_close(result.loss, nll.mean())
    assert result.kl.item() == 0


def test_recipes_differ_only_where_examples_differ():
    logits, prior = torch.randn(4, 3), layer_prior("uniform", 3)
    same = torch.rand(1, 3).expand(4, 3)
    torch.testing.assert_close(
        elbo(same, logits, prior, 0).nll, elbo(same, logits, prior, 0, nll="batch_mean").nll
    )
    nll = torch.rand(4, 3)
    assert not torch.isclose(
        elbo(nll, logits, prior, 0).nll, elbo(nll, logits, prior, 0, nll="batch_mean").nll
    )


def test_objective_stays_in_float32_and_finite_for_extreme_halves():
    logits = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16)
    result = elbo(
        torch.full((1, 3), 1000.0, dtype=torch.float16), logits, layer_prior("uniform", 3), 0.05
    )
    assert result.loss.dtype == torch.float32 and torch.isfinite(result.loss)


@pytest.mark.parametrize("how", ["geometric", "mixture"])
def test_aggregation_of_a_certain_posterior_is_that_layer(how):
    log_probs = torch.randn(2, 3, 5).log_softmax(-1)
    logits = torch.tensor([[0.0, 50.0, 0.0], [50.0, 0.0, 0.0]])
    expected = torch.stack([log_probs[0, 1], log_probs[1, 0]])
    torch.testing.assert_close(
        aggregate_log_probs(log_probs, logits, how), expected, atol=1e-5, rtol=1e-4
    )


def test_mixture_is_a_distribution_over_frames_too():
    log_probs = torch.randn(2, 3, 4, 5).log_softmax(-1)
    out = aggregate_log_probs(log_probs, torch.randn(2, 3), "mixture")
    assert out.shape == (2, 4, 5)
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("per_frame", [False, True])
def test_batched_heads_equal_a_loop_over_layers(shared, per_frame):
    heads = LinearHeads(3, 8, 6, 4, per_frame=per_frame, shared=shared)
    hidden, lengths = torch.randn(2, 3, 5, 8), torch.tensor([5, 2])
    logits, _ = heads(hidden, lengths)
    for layer in range(3):
        at = 0 if shared else layer
        weights = [
            heads.projector.weight[at],
            heads.projector.bias[at],
            heads.classifier.weight[at],
            heads.classifier.bias[at],
        ]
        inputs = hidden[:, layer] if per_frame else masked_mean(hidden, lengths)[:, layer]
        plain = torch.nn.functional.linear(
            torch.nn.functional.linear(inputs, *weights[:2]), *weights[2:]
        )
        torch.testing.assert_close(logits[:, layer], plain, atol=1e-6, rtol=1e-5)


def utterance_level():
    """s3prl's head for one layer, as tasks build it."""
    from s3prl.downstream.model import UtteranceLevel

    return torch.nn.Linear(8, 6), UtteranceLevel(6, 4)


def test_copied_heads_are_drawn_anew_for_every_layer():
    heads = CopiedHeads(utterance_level, 2)
    for copies in (heads.projectors, heads.models):
        first, second = (list(each.parameters()) for each in copies)
        assert first and not any(map(torch.equal, first, second))
    hidden, lengths = torch.randn(3, 2, 5, 8), torch.tensor([5, 4, 1])
    logits, _ = heads(hidden, lengths)
    assert logits.shape == (3, 2, 4)
    for layer in range(2):
        own = torch.nn.utils.rnn.pad_sequence(
            [row[layer, :length] for row, length in zip(hidden, lengths, strict=True)],
            batch_first=True,
        )
        plain, _ = heads.models[layer](heads.projectors[layer](own), lengths)
        torch.testing.assert_close(logits[:, layer], plain, atol=1e-6, rtol=1e-5)


def test_shared_copied_heads_fold_layers_into_the_batch():
    heads = CopiedHeads(utterance_level, 2, shared=True).eval()
    assert len(heads.models) == len(heads.projectors) == 1
    hidden, lengths = torch.randn(3, 2, 5, 8), torch.tensor([5, 4, 1])
    logits, _ = heads(hidden, lengths)
    for layer in range(2):
        plain, _ = heads.models[0](heads.projectors[0](hidden[:, layer]), lengths)
        torch.testing.assert_close(logits[:, layer], plain, atol=1e-6, rtol=1e-5)


def test_what_is_past_the_end_of_a_clip_never_reaches_a_head():
    heads = CopiedHeads(utterance_level, 2).eval()
    hidden, lengths = torch.randn(3, 2, 5, 8), torch.tensor([5, 4, 1])
    expected, _ = heads(hidden.clone(), lengths)
    hidden[1, :, 4:] = 1e6
    hidden[2, :, 1:] = float("nan")
    found, _ = heads(hidden, lengths)
    torch.testing.assert_close(found, expected)


# ---- several hypotheses about one example


def test_one_hypothesis_is_none():
    nll, logits, prior = torch.rand(5, 3), torch.randn(5, 3), layer_prior("chi2", 3)
    for how in ("per_example", "batch_mean"):
        plain = elbo(nll, logits, prior, 0.3, nll=how)
        single = elbo(nll[..., None], logits, prior, 0.3, nll=how)
        for term in ("loss", "nll", "kl"):
            assert torch.equal(getattr(single, term), getattr(plain, term))


def test_all_layers_share_the_hypothesis_with_the_smallest_weighted_sum():
    # Layer 0 likes hypothesis 0, layer 1 likes hypothesis 1; the posterior decides, not the layers.
    nll = torch.tensor([[[1.0, 3.0], [4.0, 2.0]]])
    prior = layer_prior("uniform", 2)
    for share, expected in ((0.9, 0.9 * 1 + 0.1 * 4), (0.1, 0.1 * 3 + 0.9 * 2)):
        logits = torch.tensor([[share, 1 - share]]).log()
        torch.testing.assert_close(elbo(nll, logits, prior, 0).nll, torch.tensor(expected))
        each_its_own = share * 1 + (1 - share) * 2
        assert elbo(nll, logits, prior, 0).nll > each_its_own + 0.1


def test_the_minimum_over_hypotheses_equals_a_loop():
    nll, logits, prior = torch.rand(6, 4, 5), torch.randn(6, 4), layer_prior("geometric", 4)
    q = logits.softmax(dim=-1)
    sums = [[float((q[b] * nll[b, :, k]).sum()) for k in range(5)] for b in range(6)]
    best = [row.index(min(row)) for row in sums]
    expected = sum(map(min, sums)) / 6
    result = elbo(nll, logits, prior, 0.5)
    assert result.nll.item() == pytest.approx(expected, rel=1e-5)
    chosen = torch.stack([nll[b, :, k] for b, k in enumerate(best)])
    torch.testing.assert_close(result.loss, elbo(chosen, logits, prior, 0.5).loss)
    assert len(set(best)) > 1


def test_gradients_flow_to_the_chosen_hypothesis_only():
    nll = torch.rand(6, 4, 5, requires_grad=True)
    logits = torch.randn(6, 4, requires_grad=True)
    q = logits.detach().softmax(dim=-1)
    elbo(nll, logits, layer_prior("uniform", 4), 0.1).loss.backward()
    best = (q[..., None] * nll.detach()).sum(dim=1).argmin(dim=-1)
    for b in range(6):
        for k in range(5):
            expected = q[b] / 6 if k == best[b] else torch.zeros(4)
            torch.testing.assert_close(nll.grad[b, :, k], expected)
    assert (logits.grad != 0).any()
