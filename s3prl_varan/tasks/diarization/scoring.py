"""From frames to turns, and the diarization error rate (DER) as SUPERB scores it.

SUPERB: threshold 0.5 and a median over 11 frames (s3prl's score.sh tries five thresholds, with and
without the median, and its guide reports the lowest, chosen on the test set: here both are fixed);
then dscore, which is NIST's md-eval without a collar, with overlapping speech.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import convolve1d
from scipy.optimize import linear_sum_assignment

from s3prl_varan.corpora.kaldi import Turn

MEDIAN = 11  # frames


def turns_of(active: np.ndarray, names: Sequence[str], frame: float) -> list[Turn]:
    """Turns by their start: active [T, N] who speaks in each frame, frames of `frame` seconds."""
    # The median of zeros and ones is what most of them are; past the ends there are zeros.
    votes = convolve1d(active.astype(int), np.ones(MEDIAN, int), axis=0, mode="constant")
    turns = []
    for name, row in zip(names, (votes > MEDIAN // 2).T, strict=True):
        changes = np.flatnonzero(np.diff(row.astype(int), prepend=0, append=0))
        seconds = (changes * frame).round(3).tolist()
        turns += [Turn(name, *pair) for pair in zip(seconds[::2], seconds[1::2], strict=True)]
    return sorted(turns, key=lambda turn: turn.start)


def errors(truth: Sequence[Turn], guess: Sequence[Turn]) -> dict[str, float]:
    """Seconds of speech, missed, falarm (false alarms) and confused in a recording.

    Each speaker counts by itself where several speak at once. The names of a guess are matched to
    those of the truth one to one, so that they are right for as long as can be.
    """
    edges = np.unique([edge for turn in (*truth, *guess) for edge in (turn.start, turn.end)])
    spans = np.diff(edges)
    one, other = (_activity(turns, edges[:-1]) for turns in (truth, guess))
    matched = linear_sum_assignment((one * spans) @ other.T, maximize=True)
    right = (one[matched[0]] & other[matched[1]]).sum(axis=0)
    due, given = one.sum(axis=0), other.sum(axis=0)
    counts = {
        "speech": due,
        "missed": np.maximum(due - given, 0),
        "falarm": np.maximum(given - due, 0),
        "confused": np.minimum(due, given) - right,
    }
    return {name: float(count @ spans) for name, count in counts.items()}


def _activity(turns: Sequence[Turn], starts: np.ndarray) -> np.ndarray:
    """[speakers, spans] bool: who speaks in the span that begins at each of `starts`."""
    names = sorted({turn.speaker for turn in turns})
    active = np.zeros((len(names), len(starts)), dtype=bool)
    for turn in turns:
        active[names.index(turn.speaker)] |= (starts >= turn.start) & (starts < turn.end)
    return active


def error_rates(pairs: Sequence[tuple[Sequence[Turn], Sequence[Turn]]]) -> dict[str, float]:
    """der and its parts in percent of all speech of the recordings, each (truth, guess)."""
    found = [errors(truth, guess) for truth, guess in pairs]
    total = {name: sum(each[name] for each in found) for name in found[0]}
    speech = total.pop("speech")
    rates = {name: 100.0 * seconds / speech for name, seconds in total.items()}
    return {"der": sum(rates.values()), **rates}
