"""The table of parameters that a run prints."""

from s3prl_varan.training.parameter_table import format_parameter_table, parameter_table
from torch import nn


def test_parameter_table_counts_each_parameter_once():
    shared = nn.Linear(4, 4, bias=False)
    frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
    rows = parameter_table(
        {"upstream": nn.ModuleList([frozen, shared]), "heads": shared, "none": nn.Module()}
    )
    assert [(row.part, row.trainable, row.total, row.percent) for row in rows] == [
        ("upstream", 16, 32, 50.0),
        ("heads", 16, 16, 100.0),
        ("none", 0, 0, 0.0),
        ("all", 16, 32, 50.0),
    ]
    text = format_parameter_table(rows).splitlines()
    assert (
        text[0].split() == ["part", "trainable", "total", "%"]
        and len({len(line) for line in text}) == 1
    )
