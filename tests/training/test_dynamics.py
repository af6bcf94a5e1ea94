"""Is it dynamic: information in q(l | x), and what is put in its place."""

import json
import math

import pytest
import torch

from s3prl_varan.app.cli import main
from s3prl_varan.features.stack import LayerStack
from s3prl_varan.featurizers.dynamic_sum import DynamicSum
from s3prl_varan.featurizers.varan import Varan
from s3prl_varan.training.dynamics import Replacements, difference_text, dynamics_table, information
from tests.conftest import TINY


def records(*rows: list[float]) -> list[dict]:
    return [{"layer_weights": row} for row in rows]


def test_information_of_known_weights():
    nats, share = information(records([1, 0], [0, 1]))
    assert nats == pytest.approx(math.log(2)) and share == pytest.approx(1)
    assert information(records([0.3, 0.7], [0.3, 0.7])) == pytest.approx((0, 0), abs=1e-12)
    assert information(records([0.0, 1.0], [0.0, 1.0])) == (0, 0)  # H(mean q) is 0 too
    # H([.5, .5]) - H([.9, .1])
    nats, _ = information(records([0.9, 0.1], [0.1, 0.9]))
    assert nats == pytest.approx(math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1))


def test_replacements_do_not_depend_on_batches():
    q = torch.randn(7, 3).softmax(dim=-1)
    replacements = Replacements(torch.tensor([0.2, 0.3, 0.5]), q.log())
    whole = replacements.logits(range(20))
    torch.testing.assert_close(whole["static_twin"].exp(), q.mean(dim=0).expand(20, -1))
    torch.testing.assert_close(whole["prior"].exp()[3], torch.tensor([0.2, 0.3, 0.5]))
    drawn = {tuple(row) for row in whole["shuffled"].tolist()}
    assert drawn <= {tuple(row) for row in q.log().tolist()} and len(drawn) > 3
    parts = [replacements.logits(part) for part in ([4, 2], [19])]
    for name, rows in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), rows[[4, 2, 19]])
    assert set(Replacements(torch.ones(2) / 2, None).logits([0])) == {"prior"}


@pytest.mark.parametrize("kind", [Varan, DynamicSum])
def test_weighing_with_other_logits_is_what_a_static_featurizer_does(kind):
    torch.manual_seed(0)
    prior, logits = torch.tensor([0.2, 0.5, 0.3]), torch.randn(3)
    stack = LayerStack(torch.randn(4, 3, 5, 8), torch.tensor([5, 3, 1, 4]))
    dynamic = kind([1, 2, 3], 8, prior)
    static = kind([1, 2, 3], 8, prior, posterior="static")
    static.weights.data.copy_(logits)
    assert dynamic.depends_on_input and not static.depends_on_input
    ours, theirs = dynamic.weigh(stack, logits.expand(4, -1)), static(stack)
    torch.testing.assert_close(ours.hidden, theirs.hidden)
    torch.testing.assert_close(ours.layer_weights, theirs.layer_weights)
    own = dynamic.weigh(stack, dynamic.layer_logits(stack))
    torch.testing.assert_close(own.layer_weights, dynamic(stack).layer_weights)


@pytest.mark.parametrize("featurizer", ["varan", "dynamic_sum", "ensemble", "weighted_sum"])
def test_every_evaluation_says_it(featurizer, emotion_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    argv = [str(each) for each in emotion_args(featurizer, "-p", folder)]
    assert main(argv) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    clips = (folder / "test_clips.csv").read_text().splitlines()
    assert clips[0] == "clip,speaker,amount,of"
    right = sum(float(row.split(",")[2]) for row in clips[1:])
    assert 100 * right / (len(clips) - 1) == pytest.approx(result["test"]["test"]["acc"])
    weighs = featurizer in ("varan", "dynamic_sum")
    assert ("mean q" in printed) == weighs
    if not weighs:
        assert result["dynamics"] == {}
        return
    found, own = result["dynamics"]["test"], result["test"]["test"]
    assert 0 <= found["information_share"] <= 1 and found["information_nats"] >= 0
    for name in ("static_twin", "shuffled", "prior"):
        assert set(found[name]) == {"acc", "uar", "f1"}
    assert found["difference"] == pytest.approx(own["acc"] - found["static_twin"]["acc"])
    low, high = found["interval"]
    assert low <= found["difference"] <= high
    assert found["training_clips"] > 10
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("information_nats" in row for row in rows if row["split"] == "dev")
    again = ["-m", "evaluate", "-t", "test", "-e", str(folder), "-u", TINY, "--device", "cpu"]
    assert main(again) == 0
    assert dynamics_table("acc", {"test": (own["acc"], found)}) in capsys.readouterr().out
    off = ["-o", "config.runner.dynamics_clips=0"]
    assert main([*again, *off]) == 0
    assert "mean q" not in capsys.readouterr().out


def test_a_difference_as_text():
    assert (
        difference_text({"difference": 0.251, "interval": [0.02, 0.51]}) == "+0.25 [+0.02, +0.51]"
    )
    assert difference_text({"difference": -1.0}) == "-1.00" and difference_text({}) == "-"
