"""The benchmark runs, and what it compares is the same: batched over layers, or as a loop."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.cases import Case, build_step
from benchmark.cli import main
from benchmark.measure import in_turns, ratio


@pytest.mark.parametrize("task, plain", [("er", "plain"), ("er", "plain_pooled"), ("ctc", "plain")])
def test_batched_over_layers_is_the_plain_loop(task, plain):
    case = Case("3x16", "full", task, "varan", 3, 0.8, head_dropout=0.0)
    ours = build_step(case)
    ours.wavs = [ours.wavs[0], ours.wavs[1][: 29 * 320], ours.wavs[2][: 33 * 320]]
    theirs = build_step(replace(case, featurizer=plain), ours.model.upstream)
    theirs.wavs, theirs.targets = ours.wavs, ours.targets
    results = []
    for step in (ours, theirs):
        step.model.upstream.expert.given.clear()
        torch.manual_seed(1)  # the hidden states are drawn anew
        loss = step.gradients()
        states = step.model.upstream.expert.given
        assert states[0].grad is None and states[0].shape == (3, 40, 16)  # the encoder's input
        results.append((loss, *(state.grad for state in states[1:])))
    for mine, expected in zip(*results, strict=True):
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def _run(out: Path, *sections: str) -> dict:
    assert (
        main([*sections, "--quick", "--tunings", "frozen", "--threads", "1", "--out", str(out)])
        == 0
    )
    saved = json.loads((out / "benchmark.json").read_text())
    for section in sections:
        with open(out / f"{section}.csv", newline="") as file:
            assert len(list(csv.DictReader(file))) == len(saved[section]) > 1
    return saved


def test_a_quick_run_prints_and_saves(tmp_path, capsys):
    saved = _run(tmp_path, "steps", "growth")
    assert "steps\n" in capsys.readouterr().out
    steps = {(row["task"], row["featurizer"]): row for row in saved["steps"]}
    assert {task for task, _ in steps} == {"er", "ctc"} and len(steps) == 8
    assert steps["er", "weighted_sum"]["per_weighted_sum"] == 1


@pytest.mark.slow
def test_all_sections_run(tmp_path):
    saved = _run(tmp_path, "startup", "memory", "epochs", "precision")
    assert all(row["peak_mb"] >= row["before_mb"] > 0 for row in saved["memory"])
    later = [row for row in saved["epochs"] if row["epoch"] == "later cached"]
    assert len(later) == 2 and all(row["faster_than_uncached"] > 1.5 for row in later)


def test_wrong_section(capsys):
    with pytest.raises(SystemExit):
        main(["step"])
    assert "unknown section step" in capsys.readouterr().err


def test_turns_alternate():
    order = []
    times = in_turns({name: (lambda name=name: order.append(name)) for name in "ab"}, 3, warm_up=1)
    assert order == list("abababab") and [len(taken) for taken in times.values()] == [3, 3]
    assert ratio([2.0, 6.0, 3.0], [1.0, 2.0, 2.0]) == 2.0
