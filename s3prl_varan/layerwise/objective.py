"""The training objective (ELBO) and the aggregated prediction of VARAN (arXiv 2508.12061). Everything in float32."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from s3prl_varan.config.options import KlDirection, NllReduction

Aggregation = Literal["geometric", "mixture"]


@dataclass(frozen=True)
class Elbo:
    """loss = nll + beta * kl, all scalars."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


def layer_log_posterior(posterior_logits: Tensor) -> Tensor:
    """log q(l | x) [B, L] of posterior logits [B, L], in float32 whatever comes in."""
    return torch.log_softmax(posterior_logits.float(), dim=-1)


def elbo(
    layer_nll: Tensor,
    posterior_logits: Tensor,
    prior: Tensor,
    beta: float,
    *,
    nll: NllReduction = "per_example",
    kl: KlDirection = "posterior_prior",
) -> Elbo:
    """mean_B [ sum_l q(l|x) NLL_l(x, y) ] + beta * mean_B KL.

    layer_nll [B, L] in nats, posterior_logits [B, L], prior [L] probabilities (> 0 wherever q can be), beta >= 0.
    nll: "per_example" is the ELBO; "batch_mean" averages each layer's NLL over the batch *before* weighting it, as the
    authors' released classification code does. kl: "posterior_prior" is the ELBO's KL(q || p); "prior_posterior" is the
    released code's KL(p || q).
    """
    log_q = layer_log_posterior(posterior_logits)
    layer_nll = layer_nll.float()
    if nll == "batch_mean":
        layer_nll = layer_nll.mean(dim=0, keepdim=True)
    expected_nll = (log_q.exp() * layer_nll).sum(dim=-1).mean()
    log_p = prior.to(log_q).clamp_min(torch.finfo(torch.float32).tiny).log()
    source, target = (log_q, log_p) if kl == "posterior_prior" else (log_p.expand_as(log_q), log_q)
    divergence = (source.exp() * (source - target)).sum(dim=-1).mean()
    return Elbo(expected_nll + beta * divergence, expected_nll, divergence)


def aggregate_log_probs(
    layer_log_probs: Tensor, posterior_logits: Tensor, how: Aggregation = "geometric"
) -> Tensor:
    """One prediction out of L: layer_log_probs [B, L, ..., C], posterior_logits [B, L] -> [B, ..., C], float32.

    "geometric": sum_l q_l log p_l, the released code's rule: log p(y | x) up to a constant over C, so a log_softmax
    over C makes it a distribution. "mixture": log sum_l q_l p_l, the Bayesian predictive, normalised as it is.
    """
    log_q = layer_log_posterior(posterior_logits)
    log_q = log_q.reshape(*log_q.shape, *(1,) * (layer_log_probs.dim() - 2))
    layer_log_probs = layer_log_probs.float()
    if how == "mixture":
        return torch.logsumexp(log_q + layer_log_probs, dim=1)
    return (log_q.exp() * layer_log_probs).sum(dim=1)
