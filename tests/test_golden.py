"""Parity with numbers from the authors' released code (WavLM geometry, L = 4, D = 32).

Carried here in compact form.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s3prl_varan import LayerPosterior, aggregate_log_probs, elbo, layer_prior, masked_mean
from s3prl_varan.features.stack import stack_layers
from s3prl_varan.featurizers.varan import Varan
from s3prl_varan.layerwise.ctc import layerwise_ctc
from s3prl_varan.layerwise.heads import LinearHeads

GOLDEN = Path(__file__).parent / "golden"
BETA = 0.05
BLANK = 0


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "released.safetensors")


def part(golden, prefix):
    return {key[len(prefix) :]: value for key, value in golden.items() if key.startswith(prefix)}


@pytest.mark.parametrize(
    "row",
    json.loads((GOLDEN / "priors.json").read_text()),
    ids=lambda row: f"{row['prior']}-{row['num_layers']}",
)
def test_priors(row):
    expected = torch.tensor(row.pop("probs"))
    prior = layer_prior(row.pop("prior"), row.pop("num_layers"), **row)
    torch.testing.assert_close(prior, expected, atol=1e-6, rtol=1e-5)


def heads_from(weights, per_frame):
    projector, classifier = weights["projector.weight"], weights["classifier.weight"]
    heads = LinearHeads(
        4, projector.size(2), projector.size(1), classifier.size(1), per_frame=per_frame
    )
    heads.load_state_dict(
        {key: value for key, value in weights.items() if not key.startswith("posterior.")}
    )
    return heads


def test_classification_forward_and_gradients(golden):
    data = part(golden, "classification.")
    weights, grads = part(data, "weights."), part(data, "grads.")
    featurizer = Varan([1, 2, 3, 4], 32, data["prior"])
    featurizer.posterior.load_state_dict(part(weights, "posterior."))
    heads = heads_from(weights, per_frame=False)
    lengths = data["frame_lengths"]

    features = featurizer(stack_layers(list(data["hidden_states"]), lengths, pool=True))
    torch.testing.assert_close(features.hidden[:, :, 0], data["pooled"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        features.posterior_logits, data["posterior_logits"], atol=2e-5, rtol=1e-5
    )
    logits, _ = heads(features.hidden, features.lengths)
    torch.testing.assert_close(logits, data["layer_logits"], atol=1e-5, rtol=1e-5)
    log_probs = logits.log_softmax(-1)
    nll = -log_probs.gather(-1, data["labels"][:, None, None].expand(-1, 4, 1)).squeeze(-1)
    torch.testing.assert_close(nll, data["layer_nll"], atol=1e-5, rtol=1e-5)
    for how, name in (("geometric", "aggregated_log_probs"), ("mixture", "mixture_log_probs")):
        torch.testing.assert_close(
            aggregate_log_probs(log_probs, features.posterior_logits, how),
            data[name],
            atol=1e-5,
            rtol=1e-5,
        )

    ours = elbo(nll, features.posterior_logits, features.prior, BETA)
    torch.testing.assert_close(ours.nll, data["nll_per_example"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.kl, data["kl_posterior_prior"], atol=1e-5, rtol=1e-5)
    released = elbo(
        nll, features.posterior_logits, features.prior, BETA, nll="batch_mean", kl="prior_posterior"
    )
    torch.testing.assert_close(released.loss, data["loss_released"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(released.nll, data["nll_released"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(released.kl, data["kl_released"], atol=1e-5, rtol=1e-5)
    released.loss.backward()
    named = {f"posterior.{name}": p for name, p in featurizer.posterior.named_parameters()} | dict(
        heads.named_parameters()
    )
    assert set(named) == set(grads)
    for name, expected in grads.items():
        torch.testing.assert_close(
            named[name].grad,
            expected,
            atol=1e-5,
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_ctc(golden):
    data = part(golden, "ctc.")
    weights, lengths = part(data, "weights."), data["frame_lengths"]
    posterior = LayerPosterior(32)
    posterior.load_state_dict(part(weights, "posterior."))
    stack = stack_layers(list(data["hidden_states"]), lengths)
    pooled = masked_mean(stack.hidden, lengths)
    # For one of the three utterances the released CTC code summed 36 of its 37 frames and divided
    # by 37: its figure is reproduced here from that sum, ours is the mean over all 37.
    assert lengths[1] == 37
    pooled[1] = stack.hidden[1, :, :36].sum(dim=1) / 37
    logits = posterior(pooled)
    torch.testing.assert_close(logits, data["posterior_logits"], atol=2e-5, rtol=1e-5)
    layer_logits, out_lengths = heads_from(weights, per_frame=True)(stack.hidden, lengths)
    torch.testing.assert_close(layer_logits, data["layer_logits"], atol=1e-5, rtol=1e-5)
    labels, label_lengths = data["labels"], data["label_lengths"]
    nll = layerwise_ctc(
        layer_logits.log_softmax(-1),
        labels,
        out_lengths,
        label_lengths,
        blank=BLANK,
        zero_infinity=True,
    )
    torch.testing.assert_close(nll, data["layer_ctc"], atol=1e-4, rtol=1e-5)
    nll = nll / lengths[:, None]
    released = elbo(nll, logits, data["prior"], BETA, kl="prior_posterior")
    torch.testing.assert_close(released.loss, data["loss_released"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        elbo(nll, logits, data["prior"], BETA).kl, data["kl_posterior_prior"], atol=1e-5, rtol=1e-5
    )
