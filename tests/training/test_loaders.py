"""Batches by length: deterministic, resumable, shared out, complete, with little padding; loading in worker processes."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from s3prl_varan.training.lengths import header_samples, item_samples
from s3prl_varan.training.loaders import EpochBatches, cut_by_length, eval_loader, lengths_to_batch
from torch.utils.data import DataLoader, Subset, WeightedRandomSampler

from s3prl_varan.app.cli import main
from s3prl_varan.errors import UserError

LENGTHS = np.random.default_rng(0).integers(3200, 160000, 333).tolist()


def _loader(size: int = len(LENGTHS), batch_size: int = 4) -> DataLoader:
    return DataLoader(list(range(size)), batch_size=batch_size, shuffle=True)


def _padding(batches: list[list[int]]) -> float:
    """Share of a padded epoch that is padding."""
    padded = sum(max(LENGTHS[index] for index in batch) * len(batch) for batch in batches)
    return 1 - sum(LENGTHS[index] for batch in batches for index in batch) / padded


@pytest.mark.parametrize("max_samples", [None, 16000 * 20])
def test_every_epoch_has_every_clip_once_with_little_padding(max_samples):
    batches = EpochBatches(_loader(), seed=3, lengths=LENGTHS, max_samples=max_samples)
    first, second = batches.epoch(0), batches.epoch(1)
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(len(LENGTHS)))
    assert first != second and first == EpochBatches(
        _loader(), seed=3, lengths=LENGTHS, max_samples=max_samples
    ).epoch(0)
    assert first != EpochBatches(_loader(), seed=4, lengths=LENGTHS, max_samples=max_samples).epoch(
        0
    )
    plain = _padding(EpochBatches(_loader(), seed=3).epoch(0))
    assert _padding(first) < 0.1 < plain
    means = [np.mean([LENGTHS[index] for index in batch]) for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # not from long to short


def test_the_frame_budget_is_kept():
    budget = 16000 * 8
    batches = EpochBatches(_loader(), seed=0, lengths=LENGTHS, max_samples=budget).epoch(0)
    for batch in batches:
        longest = max(LENGTHS[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    assert any(
        len(batch) == 1 and LENGTHS[batch[0]] > budget for batch in batches
    )  # too long for it, yet not dropped
    assert len({len(batch) for batch in batches}) > 2


def test_a_run_can_be_resumed_at_any_batch():
    options = {"lengths": LENGTHS, "max_samples": 16000 * 30}
    whole = list(islice(EpochBatches(_loader(), seed=1, **options), 200))
    assert len(whole) > len(
        EpochBatches(_loader(), seed=1, **options).epoch(0)
    )  # beyond the first epoch
    for start in (1, 57, 150):
        assert (
            list(islice(EpochBatches(_loader(), seed=1, start=start, **options), 200 - start))
            == whole[start:]
        )


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch(world):
    alone = EpochBatches(_loader(), seed=5, lengths=LENGTHS).epoch(0)
    shares = [
        EpochBatches(_loader(), seed=5, rank=rank, world=world, lengths=LENGTHS).epoch(0)
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    assert {tuple(batch) for share in shares for batch in share} == {
        tuple(batch) for batch in alone
    }
    evaluated = [
        list(eval_loader(_loader(), rank=rank, world=world, lengths=LENGTHS).batch_sampler)
        for rank in range(world)
    ]
    flat = [index for share in evaluated for batch in share for index in batch]
    assert sorted(flat) == list(range(len(LENGTHS)))  # each exactly once


def test_the_experts_own_sampler_stands():
    weights = torch.tensor([0.0] * 100 + [1.0] * 100)
    loader = DataLoader(
        list(range(200)), batch_size=10, sampler=WeightedRandomSampler(weights, 200)
    )
    epoch = EpochBatches(loader, seed=0, lengths=LENGTHS[:200]).epoch(0)
    assert sum(map(len, epoch)) == 200 and min(index for batch in epoch for index in batch) >= 100


def test_cut_by_length_sorts():
    assert cut_by_length([0, 1, 2, 3], [5, 9, 1, 7], 2, None) == [[1, 3], [0, 2]]
    assert cut_by_length([0, 1, 2, 3], [5, 9, 1, 7], 2, 14) == [[1], [3, 0], [2]]


# ---- lengths


class _Emotion:
    def __init__(self, root: Path, names: list[str], wavs=None):
        self.data_dir, self.meta_data = str(root), [{"path": name} for name in names]
        if wavs is not None:
            self.wavs = wavs

    def __len__(self) -> int:
        return len(self.meta_data)

    def __getitem__(self, index: int):
        raise AssertionError("lengths are read from headers")


def test_lengths_come_from_headers(tmp_path):
    for name, samples, rate in (
        ("a.wav", 8000, 16000),
        ("b.flac", 22050, 44100),
        ("c.wav", 700, 8000),
    ):
        soundfile.write(tmp_path / name, np.zeros(samples, "float32"), rate)
    assert [header_samples(tmp_path / name) for name in ("a.wav", "b.flac", "c.wav")] == [
        8000,
        8000,
        1400,
    ]
    dataset = _Emotion(tmp_path, ["a.wav", "b.flac", "c.wav"])
    assert item_samples(dataset) == [[8000], [8000], [1400]]
    assert item_samples(Subset(Subset(dataset, [2, 0, 1]), [0, 2])) == [[1400], [8000]]
    assert item_samples(_Emotion(tmp_path, ["gone.wav"], wavs=[torch.zeros(5)])) == [[5]]
    assert item_samples(_Emotion(tmp_path, ["gone.wav"])) is None
    assert lengths_to_batch(dataset, "train") == [8000, 8000, 1400]
    with pytest.raises(UserError, match="split 'train' cannot be read without decoding"):
        lengths_to_batch([1, 2], "train")


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
    assert (
        main(emotion_args("varan", "-p", str(tmp_path), **{"config.runner.batch_seconds": 4})) == 2
    )
    assert "needs runner.batch_by_length: true" in capsys.readouterr().err
    settings = {"config.runner.batch_seconds": -1, "config.runner.batch_by_length": "true"}
    assert main(emotion_args("varan", "-p", str(tmp_path), **settings)) == 2
    assert "expected seconds > 0" in capsys.readouterr().err


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
