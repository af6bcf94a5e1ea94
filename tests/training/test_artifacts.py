"""What a run leaves behind: the table of parameters, JSON that is JSON."""

import json
import math

from torch import nn

from s3prl_varan.training.artifacts import count_parameters, finite_json, parameter_table


def test_parameter_table_counts_each_parameter_once():
    shared = nn.Linear(4, 4, bias=False)
    frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
    upstream = nn.ModuleList([frozen, shared])
    counts = count_parameters({"upstream": upstream, "heads": shared, "none": nn.Module()})
    assert {name: (count["trainable"], count["total"]) for name, count in counts.items()} == {
        "upstream": (16, 32),
        "heads": (16, 16),
        "none": (0, 0),
        "all": (16, 32),
    }
    text = parameter_table(counts).splitlines()
    assert text[0].split() == ["part", "trainable", "total", "%"]
    assert text[1].split()[-1] == "50.00" and len({len(line) for line in text}) == 1


def test_numbers_that_are_not_finite_become_null():
    row = finite_json({"a": math.nan, "b": [1.0, math.inf], "c": {"d": (2, -math.inf)}, "e": "nan"})
    text = json.dumps(row, allow_nan=False)
    assert json.loads(text) == {"a": None, "b": [1.0, None], "c": {"d": [2, None]}, "e": "nan"}
