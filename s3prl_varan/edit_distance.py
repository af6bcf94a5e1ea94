"""Edit distance: editdistance's, or rapidfuzz's where that has no wheel (Python 3.13)."""

from collections.abc import Sequence
from typing import Any

try:
    from editdistance import eval as _distance
except ImportError:
    from rapidfuzz.distance.Levenshtein import distance as _distance


def edit_distance(target: Sequence[Any], guess: Sequence[Any]) -> int:
    """Insertions, deletions and substitutions that turn one sequence into the other."""
    return int(_distance(target, guess))
