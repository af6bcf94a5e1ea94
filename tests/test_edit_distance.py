"""The edit distance: by hand, by its definition, and as the library that s3prl uses has it."""

import random

import pytest

from s3prl_varan.edit_distance import edit_distance


def by_definition(a, b) -> int:
    """Levenshtein's recurrence, a row at a time."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            above, row[j] = row[j], min(above + (left != right), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def pairs():
    """Random texts, lists of words and lists of ids, alike enough that every edit occurs."""
    draw = random.Random(0)
    words = ["THE", "CAT", "SAT", "A", "ÜBER", "IT'S"]
    for kind in ("text", "words", "ids"):
        for _ in range(100):
            a = [draw.randrange(6) for _ in range(draw.randrange(30))]
            b = [x for x in a if draw.random() < 0.8]
            for _ in range(draw.randrange(5)):
                b.insert(draw.randrange(len(b) + 1), draw.randrange(6))
            if kind == "ids":
                yield a, b
            else:
                a, b = ([words[x] for x in side] for side in (a, b))
                yield (" ".join(a), " ".join(b)) if kind == "text" else (a, b)


def test_known_distances():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "") == 0 and edit_distance([], ["A", "B"]) == 2
    assert edit_distance(["THE", "CAT"], ["THE", "CATS"]) == 1


def test_equals_its_definition():
    assert [edit_distance(a, b) for a, b in pairs()] == [by_definition(a, b) for a, b in pairs()]


def test_equals_editdistance():
    editdistance = pytest.importorskip("editdistance", reason="no wheel for Python 3.13")
    assert [edit_distance(a, b) for a, b in pairs()] == [
        editdistance.eval(a, b) for a, b in pairs()
    ]
