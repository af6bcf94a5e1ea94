"""Intent classification: three slots of one head, and what is wrong with a corpus."""

import csv
import shutil

import pytest
import torch

from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.layerwise.objective import elbo
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.tasks.fluent_commands import SLOTS, FluentCommands

SPLITS = ["train", "dev", "test"]
SLICES = (slice(0, 4), slice(4, 8), slice(8, 11))  # of 4 actions, 4 objects, 3 locations


def make(root, outputs=None) -> FluentCommands:
    data = FluentCommands.Data(file_path=str(root))
    return FluentCommands(data, FluentCommands.Model(), outputs=outputs)


@pytest.fixture
def task(intents_corpus):
    return make(intents_corpus)


@pytest.fixture
def outputs():
    torch.manual_seed(0)
    return LayerOutputs(torch.randn(5, 3, 11), torch.ones(5, dtype=torch.long))


def test_values_are_numbered_as_train_has_them(task):
    assert task.outputs == {
        "action": ["activate", "deactivate", "bring", "increase"],
        "object": ["lights", "shoes", "volume", "heat"],
        "location": ["kitchen", "none", "bedroom"],
    }
    assert [item.target for item in task.items("dev")[:3]] == [(0, 0, 0), (1, 0, 1), (2, 1, 1)]
    assert task.items("dev")[1].speaker == "valid1"
    values, _ = task.build_heads(6, 2, 320, HeadOptions())(
        torch.randn(1, 2, 4, 6), torch.tensor([4])
    )
    assert values.shape == (1, 2, 11)


def test_slots_sum_their_losses_and_pay_the_kl_once(task, outputs):
    targets = task.collate([item.target for item in task.items("train")[:5]])
    nll = task.layer_loss(outputs, targets)
    expected = torch.zeros(5, 3)
    for slot, part in enumerate(SLICES):
        log_probs = outputs.values[..., part].log_softmax(-1)
        index = targets[:, slot, None, None].expand(-1, 3, 1)
        expected -= log_probs.gather(-1, index)[..., 0]
    torch.testing.assert_close(nll, expected)
    logits, prior = torch.randn(5, 3), torch.full((3,), 1 / 3)
    terms = elbo(nll, logits, prior, beta=0.5)
    log_q = logits.log_softmax(-1)
    kl = (log_q.exp() * (log_q - prior.log())).sum(-1).mean()
    whole = (log_q.exp() * expected).sum(-1).mean() + 0.5 * kl
    torch.testing.assert_close(terms.loss, whole)


def test_prediction_is_by_slot(task, outputs):
    logits = torch.randn(5, 3)
    q = logits.softmax(-1)[..., None]
    for part in SLICES:
        log_probs = outputs.values[..., part].log_softmax(-1)
        geometric = task.combine(outputs, logits, "geometric").values[:, part]
        torch.testing.assert_close(geometric, (q * log_probs).sum(1))
        mixture = task.combine(outputs, logits, "mixture").values[:, part].exp()
        torch.testing.assert_close(mixture, (q * log_probs.exp()).sum(1))
        torch.testing.assert_close(mixture.sum(-1), torch.ones(5))


def test_right_is_where_all_three_are(task):
    items = task.items("train")[:4]
    values = torch.zeros(4, 11)
    for row, item in enumerate(items):
        for part, index in zip(SLICES, item.target, strict=True):
            values[row, part.start + index] = 5
    values[0, 8] = -5  # a wrong location
    prediction = Prediction(values, torch.ones(4))
    records = task.records(prediction, items)
    assert records[1] == {
        "name": items[1].name,
        "truth": ["deactivate", "lights", "none"],
        "predict": ["deactivate", "lights", "none"],
    }
    assert task.score(records) == {"acc": 75.0}
    answers = task.answers(prediction)
    assert answers[1]["prediction"] == ["deactivate", "lights", "none"]
    assert task.text(answers[1]) == "deactivate, lights, none"
    for slot, probs in answers[1]["probabilities"].items():
        assert set(probs) == set(task.outputs[slot]) and sum(probs.values()) == pytest.approx(1)
        assert list(probs.values()) == sorted(probs.values(), reverse=True)
    assert list(answers[1]["probabilities"]) == list(SLOTS)


def test_a_checkpoints_values_need_no_corpus(tmp_path):
    task = make(tmp_path, {"action": ["on", "off"], "object": ["tv"], "location": ["none", "hall"]})
    answer = task.answers(Prediction(torch.tensor([[0.0, 9, 0, 9, 0]]), torch.ones(1)))[0]
    assert answer["prediction"] == ["off", "tv", "none"]


def rewrite(root, table, change) -> None:
    """Pass the rows of a table (header first) through `change`."""
    path = root / "data" / f"{table}_data.csv"
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(change(rows))


def test_problems_come_all_at_once(intents_corpus, tmp_path):
    root = shutil.copytree(intents_corpus, tmp_path / "fsc")
    lost = make(root).items("train")[2].path
    lost.unlink()
    rewrite(
        root, "valid", lambda rows: [rows[0], *([*row[:4], "dance", *row[5:]] for row in rows[1:])]
    )
    rewrite(root, "test", lambda rows: [row[:5] + row[6:] for row in rows])
    problems = make(root).problems(SPLITS)
    assert len(problems) == 3
    for path, said in (
        (lost, "no such file"),
        (root / "data/valid_data.csv", "action 'dance', of 7 clips, is not in train_data.csv"),
        (root / "data/test_data.csv", "no column object"),
    ):
        (line,) = [line for line in problems if line.startswith(str(path))]
        assert said in line


def test_tables_that_cannot_be_used(intents_corpus, tmp_path):
    (problem,) = make(tmp_path).problems(["train"])
    assert (
        problem.startswith(str(tmp_path / "data" / "train_data.csv")) and "No such file" in problem
    )
    assert len(make(tmp_path).problems(SPLITS)) == 3
    root = shutil.copytree(intents_corpus, tmp_path / "fsc")
    rewrite(root, "train", lambda rows: rows[:1])
    assert make(root).problems(["train"]) == [f"{root}/data/train_data.csv: no clips in it"]
    rewrite(root, "test", lambda rows: [*rows[:2], [*rows[2][:4], ""], *rows[3:]])
    lacking = [f"{root}/data/test_data.csv, row 2: no {slot}" for slot in SLOTS]
    assert set(lacking) <= set(make(root).problems(["test"]))
    (root / "data" / "valid_data.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="valid_data.csv: cannot be read"):
        make(root).items("dev")
    (root / "data" / "valid_data.csv").write_bytes(b"")
    with pytest.raises(UserError, match="valid_data.csv: no column path, action, object, location"):
        make(root).items("dev")
