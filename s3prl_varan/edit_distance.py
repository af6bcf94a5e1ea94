"""The edit distance behind every error rate. One library, with wheels for every Python in use."""

from collections.abc import Hashable, Sequence


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How few insertions, deletions and substitutions of elements turn `a` into `b`."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a, b)
