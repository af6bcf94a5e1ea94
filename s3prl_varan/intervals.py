"""Bootstrap intervals over clips, whole speakers at a time where they are known."""

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
Parts = Sequence[tuple[float, float]]  # (amount, of) of each clip: the figure is 100 sum / sum


def clip_interval(
    ours: Parts, theirs: Parts, speakers: Sequence[str | None], draws: int = DRAWS
) -> tuple[float, float, float]:
    """Difference of two figures on the same clips, ours minus theirs, with its 95 % interval.

    The percentile bootstrap (Efron and Tibshirani 1993, ch. 13) draws speakers, and with them all
    their clips; clips themselves where a clip has no speaker. The interval is NaN with fewer than
    two of what is drawn.
    """
    drawn = [str(clip) if None in speakers else who for clip, who in enumerate(speakers)]
    _, groups = np.unique(np.asarray(drawn, str), return_inverse=True)
    sums = np.zeros((groups.max() + 1, 4))  # of a speaker: amount and of, ours and theirs
    np.add.at(sums, groups, np.hstack([np.asarray(ours, float), np.asarray(theirs, float)]))
    counts = np.random.default_rng(0).multinomial(len(sums), [1 / len(sums)] * len(sums), draws)
    low = high = math.nan
    if len(sums) > 1:
        low, high = np.percentile(_difference(counts @ sums), [2.5, 97.5])
    return float(_difference(sums.sum(axis=0))), float(low), float(high)


def _difference(sums: np.ndarray) -> np.ndarray:
    """[..., 4] -> [...], in percent."""
    amount, of, other_amount, other_of = np.moveaxis(sums, -1, 0)
    return 100 * (amount / np.maximum(of, 1e-9) - other_amount / np.maximum(other_of, 1e-9))
