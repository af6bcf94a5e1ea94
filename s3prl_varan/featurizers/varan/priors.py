"""Priors p(l) over the aggregated layers l = 1..L (VARAN, arXiv 2508.12061)."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from s3prl_varan.errors import UserError, did_you_mean

PriorName = Literal["chi2", "chi2_reversed", "geometric", "geometric_reversed", "uniform"]
PRIORS: tuple[str, ...] = get_args(PriorName)
CHI2_TAIL = 0.01  # the chi-square grid runs from the 1 % to the 99 % quantile


def _uniform(num_layers: int, **_: float) -> np.ndarray:
    return np.full(num_layers, 1.0 / num_layers)


def _geometric(num_layers: int, *, geometric_p: float, **_: float) -> np.ndarray:
    """p(l) = p (1 - p)^(l-1); the tail beyond L goes to the last layer."""
    probs = geometric_p * (1.0 - geometric_p) ** np.arange(num_layers)
    probs[-1] += 1.0 - probs.sum()
    return probs


def _chi2(num_layers: int, *, chi2_df: float, chi2_nc: float, **_: float) -> np.ndarray:
    """Non-central chi-square density on L evenly spaced points, times the step.

    The missing mass goes to the first layer.
    """
    from scipy.special import chndtrix  # its inverse CDF; scipy.stats would take a second and 50 MB

    if num_layers == 1:  # no step to speak of: all the mass on the one layer
        return np.ones(1)
    first, last = chndtrix(np.array([CHI2_TAIL, 1.0 - CHI2_TAIL]), chi2_df, chi2_nc)
    points = np.linspace(first, last, num_layers)
    probs = _chi2_density(points, chi2_df, chi2_nc) * (points[1] - points[0])
    probs[0] += 1.0 - probs.sum()
    return probs


def _chi2_density(points: np.ndarray, df: float, nc: float) -> np.ndarray:
    """Non-central chi-square density at points [N] > 0.

    Central ones of df + 2 i degrees of freedom, mixed by a Poisson law of mean nc / 2.
    """
    from scipy.special import gammaln, xlogy

    mean = nc / 2
    i = np.arange(int(mean + 12 * mean**0.5 + 40))
    log_poisson = xlogy(i, mean) - mean - gammaln(i + 1)
    half = df / 2 + i
    log_central = (
        (half - 1) * np.log(points[:, None] / 2) - points[:, None] / 2 - gammaln(half) - np.log(2)
    )
    return np.exp(log_poisson + log_central).sum(axis=1)


_FAMILIES: dict[str, Callable[..., np.ndarray]] = {
    "uniform": _uniform,
    "geometric": _geometric,
    "chi2": _chi2,
}


def layer_prior(
    name: str,
    num_layers: int,
    *,
    chi2_df: float = 6,
    chi2_nc: float = 10,
    geometric_p: float = 0.45,
) -> Tensor:
    """Prior over `num_layers` layers as probabilities, float32 [L], summing to 1.

    `name` is one of PRIORS. `chi2` puts its mass on lower and middle layers, `chi2_reversed` on
    upper ones; `geometric` decays from the first layer on, `geometric_reversed` from the last one
    down. `chi2_df` > 0 and `chi2_nc` >= 0 are the degrees of freedom and the non-centrality,
    `geometric_p` lies in (0, 1).
    Raises UserError for an unknown name or a parameter out of range.
    """
    if name not in PRIORS:
        raise UserError(
            f"Unknown prior '{name}': expected one of {', '.join(PRIORS)}."
            f"{did_you_mean(name, PRIORS)}"
        )
    if num_layers < 1:
        raise UserError(f"A prior needs at least one layer, not {num_layers}.")
    if not chi2_df > 0 or not chi2_nc >= 0:
        raise UserError(f"chi2_df must be > 0 and chi2_nc >= 0, not {chi2_df} and {chi2_nc}.")
    if not 0 < geometric_p < 1:
        raise UserError(f"geometric_p must lie between 0 and 1, not {geometric_p}.")
    family, _, reverse = name.partition("_")
    probs = _FAMILIES[family](num_layers, chi2_df=chi2_df, chi2_nc=chi2_nc, geometric_p=geometric_p)
    probs = probs[::-1] if reverse else probs
    return torch.tensor(probs.copy(), dtype=torch.float32)
