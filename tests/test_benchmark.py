"""The benchmark runs, and what it compares computes the same: batched over layers or written as a loop."""

import csv
import json
from pathlib import Path

import pytest
import torch

from s3prl_varan.benchmark.cases import CLASSES, SYMBOLS, WIDTH, StubExpert, labels_of
from s3prl_varan.benchmark.cli import main
from s3prl_varan.benchmark.measure import in_turns, ratio
from s3prl_varan.benchmark.plain import PlainVaran
from s3prl_varan.config.options import VaranOptions
from s3prl_varan.features.stack import stack_layers
from s3prl_varan.featurizers.registry import build_featurizer
from s3prl_varan.layerwise.downstream import adapt_expert


@pytest.mark.parametrize("pool_first", [False, True])
@pytest.mark.parametrize("task", ["er", "ctc"])
def test_batched_over_layers_is_the_plain_loop(task, pool_first):
    torch.manual_seed(0)
    ctc, dim, num_layers = task == "ctc", 16, 3
    if ctc and pool_first:
        pytest.skip("frames are not pooled for CTC")
    featurizer = build_featurizer("varan", num_layers + 1, dim, VaranOptions())
    downstream = adapt_expert(
        "t", StubExpert(dim, ctc), dim, num_layers, VaranOptions(head="linear")
    )
    outputs = SYMBOLS if ctc else CLASSES
    plain = PlainVaran(
        num_layers, dim, WIDTH, outputs, featurizer.prior, ctc=ctc, pool_first=pool_first
    )
    heads = downstream.expert.model.heads
    with torch.no_grad():
        plain.posterior.load_state_dict(featurizer.posterior.state_dict())
        for ours, theirs in (
            (heads.projector, plain.projectors),
            (heads.classifier, plain.classifiers),
        ):
            for index, layer in enumerate(theirs):
                layer.weight.copy_(ours.weight[index]), layer.bias.copy_(ours.bias[index])
    lengths = torch.tensor([40, 29, 33])
    others = labels_of(3, 0.5, ctc, "cpu")
    results = []
    for batched in (True, False):
        layers = [
            torch.randn(3, 40, dim, generator=torch.Generator().manual_seed(i)).requires_grad_()
            for i in range(4)
        ]
        if batched:
            stack = stack_layers(
                [layers[index] for index in featurizer.layers], lengths, pool=downstream.pooled
            )
            loss = downstream("train", featurizer(stack), others, {}).loss
        else:
            loss = plain(layers[1:], lengths, *others)
        results.append((loss, *torch.autograd.grad(loss, layers[1:])))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


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
