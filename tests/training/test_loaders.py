"""Batches: deterministic, resumable, shared out, complete, little padding; worker processes."""

import json
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_varan.app.cli import main
from s3prl_varan.audio import header_samples
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.shapes.base import Item
from s3prl_varan.tasks.shapes.utterance import UtteranceTask
from s3prl_varan.training.data import Clips, EpochBatches, Loaders, cut, cut_by_length

LENGTHS = np.random.default_rng(0).integers(3200, 160000, 333).tolist()
SIZE, BATCH = len(LENGTHS), 4


class Numbers(UtteranceTask):
    """A clip is its index, drawn anew where `draws_anew` says so; nothing is read from disk."""

    name = "numbers"

    @dataclass(frozen=True, kw_only=True)
    class Data(UtteranceTask.Data):
        train_batch_size: int = BATCH
        eval_batch_size: int = BATCH
        num_workers: int = 0

    def __init__(self, lengths=LENGTHS, draws_anew=False, **data):
        super().__init__(self.Data(**data), self.Model(), outputs=["one", "other"])
        self.lengths, self.draws_anew, self.loads = lengths, draws_anew, 0

    def items(self, split):
        return [Item(str(index), Path(f"{index}.wav"), index % 2) for index in range(SIZE)]

    def read_outputs(self):
        raise AssertionError("they were given")

    def load(self, item, rng, training):
        self.loads += 1
        return torch.full((3,), rng.random() if training and self.draws_anew else float(item.name))

    def num_samples(self, item, training):
        return self.lengths[int(item.name)]


def batches_of(seed: int, **options) -> EpochBatches:
    return EpochBatches(SIZE, BATCH, seed, **options)


def _padding(batches: list[list[int]]) -> float:
    """Share of a padded epoch that is padding."""
    padded = sum(max(LENGTHS[index] for index in batch) * len(batch) for batch in batches)
    return 1 - sum(LENGTHS[index] for batch in batches for index in batch) / padded


@pytest.mark.parametrize("max_samples", [None, 16000 * 20])
def test_every_epoch_has_every_clip_once_with_little_padding(max_samples):
    options = {"lengths": LENGTHS, "max_samples": max_samples}
    first, second = batches_of(3, **options).epoch(0), batches_of(3, **options).epoch(1)
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(SIZE))
    assert first != second and first == batches_of(3, **options).epoch(0)
    assert first != batches_of(4, **options).epoch(0)
    assert _padding(first) < 0.1 < _padding(batches_of(3).epoch(0))
    means = [np.mean([LENGTHS[index] for index in batch]) for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # not from long to short


def test_batches_of_a_small_corpus_mix_too():
    """33 clips, 16 a batch: the one that is left over is not always the shortest."""
    batches = EpochBatches(33, 16, 0, lengths=LENGTHS[:33])
    epochs = [[frozenset(batch) for batch in batches.epoch(number)] for number in range(20)]
    assert len({batch for epoch in epochs for batch in epoch}) > 50
    alone = [min(epoch, key=len) for epoch in epochs]
    assert all(len(batch) == 1 for batch in alone) and len(set(alone)) > 8


def test_without_lengths_an_epoch_is_shuffled_and_cut():
    first, second = batches_of(3).epoch(0), batches_of(3).epoch(1)
    assert first != second and first == batches_of(3).epoch(0) != batches_of(4).epoch(0)
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(SIZE))
        assert [len(batch) for batch in epoch] == [BATCH] * (SIZE // BATCH) + [SIZE % BATCH]
    assert len(batches_of(3)) == len(first)


def test_the_frame_budget_is_kept():
    budget = 16000 * 8
    batches = batches_of(0, lengths=LENGTHS, max_samples=budget).epoch(0)
    for batch in batches:
        longest = max(LENGTHS[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    # Too long for it, yet not dropped.
    assert any(len(batch) == 1 and LENGTHS[batch[0]] > budget for batch in batches)
    assert len({len(batch) for batch in batches}) > 2


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS, "max_samples": 16000 * 30}])
def test_a_run_can_be_resumed_at_any_batch(options):
    """The same clips, and the same seeds of what is drawn for each."""
    whole = list(islice(iter(batches_of(1, **options)), 200))
    assert len(whole) > len(batches_of(1, **options))  # beyond the first epoch
    for start in (1, 57, 150):
        resumed = iter(batches_of(1, start=start, **options))
        assert list(islice(resumed, 200 - start)) == whole[start:]
    # What is drawn for a clip differs from epoch to epoch.
    seeds = [seed for batch in whole for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_processes_share_an_epoch(world, lengths):
    alone = batches_of(5, lengths=lengths).epoch(0)
    shares = [
        batches_of(5, rank=rank, world=world, lengths=lengths).epoch(0) for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    shared = {tuple(batch) for share in shares for batch in share}
    assert shared == {tuple(batch) for batch in alone}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("by_length", [False, True])
def test_an_evaluation_has_every_clip_once_over_all_processes(world, by_length):
    seen = []
    for rank in range(world):
        loaders = Loaders(Numbers(), 0, by_length=by_length, rank=rank, world=world)
        seen += [index for batch in loaders.evaluation("dev") for index in batch.indices]
    assert sorted(seen) == list(range(SIZE))
    if world == 1:
        assert (seen == list(range(SIZE))) is not by_length


def test_clips_are_drawn_in_proportion_to_their_weights():
    weights = [0.0] * 100 + [1.0] * 100 + [3.0] * 100
    batches = EpochBatches(300, 10, 0, weights=weights, lengths=LENGTHS[:300])
    epoch = [index for number in range(10) for batch in batches.epoch(number) for index in batch]
    assert len(epoch) == 3000 and min(epoch) >= 100
    assert np.mean(np.array(epoch) >= 200) == pytest.approx(0.75, abs=0.03)


def test_cut_by_length_sorts():
    assert cut([3, 1, 2], 2) == [[3, 1], [2]]
    assert cut_by_length([0, 1, 2, 3], [5, 9, 1, 7], 2, None) == [[1, 3], [0, 2]]
    assert cut_by_length([0, 1, 2, 3], [5, 9, 1, 7], 2, 14) == [[1], [3, 0], [2]]


# ---- clips


def test_a_batch_holds_clips_targets_and_places():
    loaders = Loaders(Numbers(), 0)
    batch = next(iter(loaders.train("train", 0)))
    assert len(batch.wavs) == len(batch.items) == len(batch.indices) == BATCH
    for wav, item, index, target in zip(
        batch.wavs, batch.items, batch.indices, batch.targets.tolist(), strict=True
    ):
        assert wav.tolist() == [float(index)] * 3
        assert item.name == str(index) and target == index % 2


@pytest.mark.parametrize(
    ("pre_load", "draws_anew", "loads"), [(True, False, 1), (False, False, 2), (True, True, 2)]
)
def test_clips_are_kept_where_they_stay_the_same(pre_load, draws_anew, loads):
    task = Numbers(pre_load=pre_load, draws_anew=draws_anew)
    clips = Clips(task, "train", training=True)
    waves = [clips[3, seed][1] for seed in (7, 8)]
    assert task.loads == loads
    assert torch.equal(*waves) is not draws_anew
    assert torch.equal(clips[3, 7][1], waves[0])  # of its seed, not of the order
    evaluated = Clips(task, "dev", training=False)
    assert torch.equal(evaluated[3, 7][1], evaluated[3, 8][1])


def test_lengths_come_from_headers(tmp_path, monkeypatch):
    for name, samples, rate in (
        ("a.wav", 8000, 16000),
        ("b.flac", 22050, 44100),
        ("c.wav", 700, 8000),
    ):
        soundfile.write(tmp_path / name, np.zeros(samples, "float32"), rate)
    names, expected = ("a.wav", "b.flac", "c.wav"), [8000, 8000, 1400]
    task = Numbers()
    loaded = [task_load(Item(name, tmp_path / name, 0)) for name in names]
    assert [len(wave) for wave in loaded] == expected

    def decoded(*args, **kwargs):
        raise AssertionError("lengths are read from headers")

    monkeypatch.setattr(soundfile, "read", decoded)
    monkeypatch.setattr(soundfile.SoundFile, "read", decoded)
    assert [header_samples(tmp_path / name) for name in names] == expected
    items = [Item(name, tmp_path / name, 0) for name in names]
    assert [UtteranceTask.num_samples(task, item, True) for item in items] == expected
    monkeypatch.setattr(Numbers, "items", lambda self, split: items)
    monkeypatch.setattr(Numbers, "num_samples", UtteranceTask.num_samples)
    assert Clips(task, "train", training=True).num_samples() == expected
    with pytest.raises(UserError, match=r"gone\.wav"):
        header_samples(tmp_path / "gone.wav")


def task_load(item: Item) -> torch.Tensor:
    return UtteranceTask.load(Numbers(), item, random.Random(0), False)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.25, None), (0.5, 9.0), (0.1, 0.3)])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_lengths_of_a_stretch_are_what_is_loaded(start, end, rate, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(rate, "float32"), rate)
    item = Item("a", tmp_path / "a.wav", 0, start=start, end=end)
    expected = round(16000 * (min(end or 1.0, 1.0) - start))
    assert UtteranceTask.num_samples(Numbers(), item, False) == expected == len(task_load(item))


# ---- whole experiments


def _losses(expdir: Path) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (expdir / "metrics.jsonl").read_text().splitlines()
    ]


def test_training_with_batches_by_length(tmp_path, emotion_args):
    settings = {
        "config.runner.batch_by_length": "true",
        "config.runner.batch_seconds": 4,
        "config.runner.eval_step": 40,
    }
    assert main(emotion_args("varan", "-p", str(tmp_path), **settings)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 40
    log = next(tmp_path.glob("test_*_predict.txt")).read_text().splitlines()
    assert len(log) == len(set(log)) == 32  # every test clip once


def test_the_budget_needs_batches_by_length(tmp_path, emotion_args, capsys):
    budget = {"config.runner.batch_seconds": 4}
    assert main(emotion_args("varan", "-p", str(tmp_path), **budget)) == 2
    assert "needs runner.batch_by_length: true" in capsys.readouterr().err
    settings = {"config.runner.batch_seconds": -1, "config.runner.batch_by_length": "true"}
    assert main(emotion_args("varan", "-p", str(tmp_path), **settings)) == 2
    assert "runner.batch_seconds: expected float > 0 or null, found -1" in capsys.readouterr().err


@pytest.mark.parametrize("pre_load", ["True", "False"])
def test_loading_in_worker_processes_changes_nothing(tmp_path, emotion_args, pre_load):
    for workers in (0, 2):
        settings = {
            "config.downstream_expert.datarc.num_workers": workers,
            "config.downstream_expert.datarc.pre_load": pre_load,
            "config.runner.total_steps": 10,
            "config.runner.log_step": 5,
        }
        assert main(emotion_args("varan", "-p", str(tmp_path / str(workers)), **settings)) == 0
    assert _losses(tmp_path / "0") == _losses(tmp_path / "2")


def test_what_is_drawn_anew_does_not_depend_on_the_process_that_loads():
    drawn = []
    for workers in (0, 2):
        loaders = Loaders(Numbers(draws_anew=True, num_workers=workers), 5)
        batches = islice(iter(loaders.train("train", 2)), 4)
        drawn.append([wav.tolist() for batch in batches for wav in batch.wavs])
    assert drawn[0] == drawn[1]
