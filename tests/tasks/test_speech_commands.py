"""Keyword spotting: silence, balanced drawing, and what is wrong with a corpus."""

import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_varan.audio import read_audio
from s3prl_varan.compat import import_downstream
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.speech_commands import CLASSES, SpeechCommands
from tests.tasks.corpora import DEV_SPEAKERS, TRAIN_SPEAKERS, write_noise
from tests.tasks.parity import UTTERANCE

SPLITS = ["train", "dev", "test"]


def make(train, test) -> SpeechCommands:
    data = SpeechCommands.Data(speech_commands_root=str(train), speech_commands_test_root=str(test))
    return SpeechCommands(data, SpeechCommands.Model())


@pytest.fixture
def task(commands_corpus):
    return make(commands_corpus / "train", commands_corpus / "test")


def silences(task, split):
    return [item for item in task.items(split) if CLASSES[item.target] == "_silence_"]


def quieter(path) -> torch.Tensor:
    """A recording, turned down as s3prl's effects do."""
    return 10 ** (-3 / 20) * read_audio(path)


def find(part: torch.Tensor, whole: torch.Tensor) -> int:
    """Where a second begins in a recording."""
    assert len(part) == 16000
    starts = (whole[: len(whole) - 15999] == part[0]).nonzero()[:, 0].tolist()
    (start,) = [each for each in starts if torch.equal(whole[each : each + 16000], part)]
    return start


def test_silence_is_a_random_second_of_the_noise(task):
    for item in silences(task, "train"):
        whole = quieter(item.path)

        def start(seed, item=item, whole=whole):
            return find(task.load(item, random.Random(seed), training=True), whole)

        assert len({start(seed) for seed in range(4)}) > 1 and start(7) == start(7)


def test_dev_is_the_same_every_time(task):
    starts = set()
    for item in silences(task, "dev"):
        first, second = (task.load(item, random.Random(seed), training=False) for seed in (0, 1))
        assert torch.equal(first, second)
        starts.add(find(first, quieter(item.path)))
    assert len(starts) == 2  # not the same stretch of all recordings


def test_lengths_are_what_is_loaded(task):
    for split in SPLITS:
        for item in task.items(split):
            training = split == "train"
            wave = task.load(item, random.Random(0), training)
            assert task.num_samples(item, training) == len(wave)
    long = [item for item in task.items("test") if item.name == "_silence_-long.wav"]
    assert task.num_samples(long[0], False) == 19200  # the test set's clips are left whole


def test_noise_at_another_rate(commands_corpus, tmp_path):
    train = shutil.copytree(commands_corpus / "train", tmp_path / "train")
    noise, generator = train / "_background_noise_", np.random.default_rng(0)
    write_noise(noise / "cd.wav", 1.5, generator, 44100, channels=2)
    write_noise(noise / "short.wav", 0.5, generator)
    task = make(train, commands_corpus / "test")
    sizes = defaultdict(set)
    for item in silences(task, "train"):
        for seed in range(5):
            sizes[item.path.stem].add(len(task.load(item, random.Random(seed), training=True)))
    assert sizes["cd"] == {16000} and sizes["short"] == {8000}


def test_every_class_is_drawn_alike(task, commands_corpus, tmp_path):
    items = task.items("train")
    shares = Counter()
    for item, weight in zip(items, task.weights(items), strict=True):
        shares[CLASSES[item.target]] += weight
    assert shares.keys() == set(CLASSES)
    assert max(shares.values()) == pytest.approx(min(shares.values()))
    theirs = speech_commands_expert(commands_corpus, tmp_path).train_dataset
    by_path = {path: w for (_, path), w in zip(theirs.data, theirs.sample_weights, strict=True)}
    ratios = [w / by_path[item.path] for item, w in zip(items, task.weights(items), strict=True)]
    assert max(ratios) == pytest.approx(min(ratios))


def speech_commands_expert(corpus, folder):
    datarc = {
        "speech_commands_root": corpus / "train",
        "speech_commands_test_root": corpus / "test",
    }
    section = {"datarc": datarc, "modelrc": UTTERANCE}
    cls = import_downstream("speech_commands").DownstreamExpert
    return cls(upstream_dim=4, downstream_expert=section, expdir=str(folder))


def test_speakers_never_cross_splits(task):
    speakers = {split: {item.speaker for item in task.items(split)} for split in ("train", "dev")}
    assert speakers["dev"] == {*DEV_SPEAKERS, None}
    assert speakers["train"] == {*TRAIN_SPEAKERS, None}


def test_order_is_not_the_file_systems(task, monkeypatch):
    before = [task.items(split) for split in SPLITS]
    iterdir, glob = Path.iterdir, Path.glob
    backwards = {"reverse": True}
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterdir(self), **backwards))
    monkeypatch.setattr(Path, "glob", lambda self, name: sorted(glob(self, name), **backwards))
    assert [task.items(split) for split in SPLITS] == before


def test_problems_come_all_at_once(commands_corpus, tmp_path):
    train = shutil.copytree(commands_corpus / "train", tmp_path / "train")
    test = shutil.copytree(commands_corpus / "test", tmp_path / "test")
    shutil.rmtree(train / "yes")
    shutil.rmtree(train / "_background_noise_")
    (test / "no" / "0.wav").write_bytes(b"RIFF")
    problems = make(train, test).problems(SPLITS)
    assert [line for line in problems if line.startswith(f"{train}: no clips of yes")]
    assert [line for line in problems if line.startswith(str(train / "_background_noise_"))]
    assert [line for line in problems if line.startswith(str(test / "no" / "0.wav"))]
    assert len(problems) == 3  # train and dev have theirs in common
    with pytest.raises(UserError, match="no clips of yes"):
        make(train, test).items("train")


@pytest.mark.parametrize("split", SPLITS)
def test_folders_that_are_no_corpus(split, commands_corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    (problem,) = make(tmp_path / "none", tmp_path / "none").problems([split])
    assert f"no folder {tmp_path / 'none'}" in problem and "speech_commands_" in problem
    problems = make(tmp_path / "empty", tmp_path / "empty").problems([split])
    assert all(line.startswith(str(tmp_path / "empty")) for line in problems) and problems
    swapped = make(commands_corpus / "test", commands_corpus / "train").problems([split])
    if split == "test":
        assert len(swapped) == 1 and "_background_noise_, bed, cat" in swapped[0]


def test_no_dev_speaker_is_said(commands_corpus, tmp_path):
    train = shutil.copytree(commands_corpus / "train", tmp_path / "train")
    for speaker in DEV_SPEAKERS:
        for path in train.glob(f"*/{speaker}*.wav"):
            path.unlink()
    task = make(train, commands_corpus / "test")
    assert task.problems(["train", "test"]) == []
    (problem,) = task.problems(["dev"])
    assert "none of its clips is in dev" in problem and str(train) in problem
