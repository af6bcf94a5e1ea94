"""The objective (ELBO) and the aggregated prediction of VARAN (arXiv 2508.12061), in float32."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NllReduction = Literal["per_example", "batch_mean"]
KlDirection = Literal["posterior_prior", "prior_posterior"]


@dataclass(frozen=True)
class Objective:
    """How the losses of L layers become one, and their outputs one prediction."""

    beta: float = 0.0  # weight of the KL
    nll: NllReduction = "per_example"
    kl: KlDirection = "posterior_prior"
    rule: str = "geometric"  # of prediction, see Task.rules


@dataclass(frozen=True)
class Elbo:
    """loss = nll + beta * kl, all scalars."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


def layer_log_posterior(posterior_logits: Tensor) -> Tensor:
    """log q(l | x) [B, L] of posterior logits [B, L], in float32 whatever comes in."""
    return torch.log_softmax(posterior_logits.float(), dim=-1)


def divergence(log_q: Tensor, prior: Tensor, kl: KlDirection = "posterior_prior") -> Tensor:
    """KL(q || p), or KL(p || q) for "prior_posterior": log_q [B, L], prior [L] -> [B] nats."""
    log_p = prior.to(log_q).clamp_min(torch.finfo(torch.float32).tiny).log()
    if kl == "posterior_prior":
        return (log_q.exp() * (log_q - log_p)).sum(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def elbo(
    layer_nll: Tensor,
    posterior_logits: Tensor,
    prior: Tensor,
    beta: float,
    *,
    nll: NllReduction = "per_example",
    kl: KlDirection = "posterior_prior",
    inner_kl: Tensor | None = None,
) -> Elbo:
    """mean_B [ sum_l q(l|x) NLL_l(x, y) ] + beta * mean_B KL.

    layer_nll [B, L] in nats, or [B, L, K] for K hypotheses about the same example (permutations of
    the speakers, say): all layers share the hypothesis whose q-weighted sum is the smallest.
    posterior_logits [B, L], prior [L] probabilities (> 0 wherever q can be), beta >= 0.
    nll: "per_example" is the ELBO; "batch_mean" averages each layer's NLL over the batch *before*
    weighting it, as the authors' released classification code does.
    kl: "posterior_prior" is the ELBO's KL(q || p); "prior_posterior" the released KL(p || q).
    inner_kl: [B] nats, of weights that the featurizer has spent itself; it joins the KL.
    """
    log_q = layer_log_posterior(posterior_logits)
    layer_nll = layer_nll.float()
    if layer_nll.dim() == 3:
        layer_nll = _best_hypothesis(layer_nll, log_q)
    if nll == "batch_mean":
        layer_nll = layer_nll.mean(dim=0, keepdim=True)
    expected_nll = (log_q.exp() * layer_nll).sum(dim=-1).mean()
    cost = divergence(log_q, prior, kl).mean()
    if inner_kl is not None:
        cost = cost + inner_kl.mean()
    return Elbo(expected_nll + beta * cost, expected_nll, cost)


def _best_hypothesis(layer_nll: Tensor, log_q: Tensor) -> Tensor:
    """[B, L, K] -> [B, L]: the hypothesis with the smallest sum_l q_l NLL_lk, one for all l."""
    weighted = (log_q.exp()[..., None] * layer_nll).sum(dim=1)  # [B, K]
    best = weighted.argmin(dim=-1)[:, None, None].expand(-1, layer_nll.size(1), 1)
    return layer_nll.gather(2, best)[..., 0]


def aggregate_log_probs(
    layer_log_probs: Tensor, posterior_logits: Tensor, how: str = "geometric"
) -> Tensor:
    """One prediction out of L: [B, L, ..., C] with posterior_logits [B, L] -> [B, ..., C], float32.

    "geometric": sum_l q_l log p_l, the released code's rule: log p(y | x) up to a constant over C,
    so a log_softmax over C makes it a distribution. "mixture": log sum_l q_l p_l, the Bayesian
    predictive, normalised as it is.
    """
    log_q = layer_log_posterior(posterior_logits)
    log_q = log_q.reshape(*log_q.shape, *(1,) * (layer_log_probs.dim() - 2))
    layer_log_probs = layer_log_probs.float()
    if how == "mixture":
        return torch.logsumexp(log_q + layer_log_probs, dim=1)
    assert how == "geometric", how
    return (log_q.exp() * layer_log_probs).sum(dim=1)
