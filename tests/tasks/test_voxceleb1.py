"""Speaker identification: crops, speakers by name, and what is wrong with a corpus."""

import random
import shutil

import pytest
import torch

from s3prl_varan.audio import read_audio
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.outputs import Prediction
from s3prl_varan.tasks.voxceleb1 import VoxCeleb1

SPLITS = ["train", "dev", "test"]


def make(root, table=None, max_timestep=2000) -> VoxCeleb1:
    table = table or root / "iden_split.txt"
    data = VoxCeleb1.Data(file_path=str(root), meta_data=str(table), max_timestep=max_timestep)
    return VoxCeleb1(data, VoxCeleb1.Model())


def test_only_training_clips_are_cut(speakers_corpus):
    task = make(speakers_corpus)
    starts = set()
    for item in task.items("train"):
        whole = read_audio(item.path)
        part = task.load(item, random.Random(3), training=True)
        assert task.num_samples(item, training=True) == len(part) == min(2000, len(whole))
        pieces = whole.unfold(0, len(part), 1)
        (start,) = (pieces == part).all(dim=1).nonzero()[:, 0].tolist()
        starts.add(start)
        assert torch.equal(task.load(item, random.Random(3), training=True), part)
        assert torch.equal(task.load(item, random.Random(3), training=False), whole)
        assert task.num_samples(item, training=False) == len(whole)
    assert len(starts) > 2
    uncut = make(speakers_corpus, max_timestep=None)
    for item in uncut.items("train"):
        whole = read_audio(item.path)
        assert torch.equal(uncut.load(item, random.Random(0), training=True), whole)
        assert uncut.num_samples(item, training=True) == len(whole)


def test_speakers_are_numbered_by_name(speakers_corpus):
    task = make(speakers_corpus)
    assert len(task.outputs) == 1251
    assert (task.outputs[0], task.outputs[-1]) == ("id10001", "id11251")
    for split in SPLITS:
        for item in task.items(split):
            assert task.outputs[item.target] == item.speaker == item.path.parts[-3]


def test_another_corpus_has_its_own_clips(speakers_corpus, tmp_path):
    first = make(speakers_corpus)
    assert len(first.items("train")) == 10  # 2 of each speaker
    root = shutil.copytree(speakers_corpus, tmp_path / "other")
    table = root / "iden_split.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:8]))
    items = [item for split in SPLITS for item in make(root).items(split)]
    assert len(items) == 8 and all(item.path.is_relative_to(root) for item in items)


def test_answers_name_the_likeliest_few(speakers_corpus):
    values = torch.zeros(1, 1251)
    values[0, [4, 7, 1250, 12, 30, 2]] = torch.tensor([9.0, 8, 7, 6, 5, 4])
    (answer,) = make(speakers_corpus).answers(Prediction(values, torch.ones(1)))
    assert answer["prediction"] == "id10005"
    named = ["id10005", "id10008", "id11251", "id10013", "id10031"]
    assert list(answer["probabilities"]) == named
    expected = values.softmax(-1)[0, 4].item()
    assert answer["probabilities"]["id10005"] == pytest.approx(expected)


def test_problems_come_all_at_once(speakers_corpus, tmp_path):
    root = shutil.copytree(speakers_corpus, tmp_path / "vox")
    task = make(root)
    lost, torn = task.items("train")[0].path, task.items("dev")[0].path
    lost.unlink()
    torn.write_bytes(torn.read_bytes()[:100])
    with open(root / "iden_split.txt", "a") as file:
        file.write("\n4 id10001/abc/00001.wav\n1 id99999/abc/00001.wav\n1 id10001\n")
    # a line that cannot be read is a problem of all splits, and told once
    problems = task.problems(SPLITS)
    clip = "/".join(lost.parts[-3:])
    assert f"{root}/*/wav/{clip}: no such file, but {root}/iden_split.txt lists it" in problems
    lines = [line for line in problems if "iden_split.txt, line" in line]
    assert ["id10001/abc" in lines[0], "id99999" in lines[1], "'1 id10001'" in lines[2]] == [
        True
    ] * 3
    assert len(lines) == 3 and len(problems) == 4
    shutil.copy(speakers_corpus / "iden_split.txt", root)
    (problem,) = task.problems(["dev"])
    assert problem.startswith(str(torn)) and "broken off" in problem
    assert task.problems(["test"]) == []  # what a run does not read cannot stop it
    task.items = lambda split: []  # of a task that does not look itself
    assert task.problems(["dev"]) == ["dev: no clips"]


def test_places_that_are_no_corpus(speakers_corpus, tmp_path):
    (problem,) = make(tmp_path, speakers_corpus / "iden_split.txt").problems(SPLITS)
    assert problem == f"{tmp_path}: no folder dev/wav or test/wav in it"
    problems = make(tmp_path / "none").problems(SPLITS)
    assert len(problems) == 2
    assert "datarc.file_path: no folder" in problems[0] and "datarc.meta_data: " in problems[1]
    (tmp_path / "list.txt").write_text("1 id10001/vid/00001.wav\n")
    with pytest.raises(UserError, match="lists no clip of test"):
        make(speakers_corpus, tmp_path / "list.txt").items("test")
