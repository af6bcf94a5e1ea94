"""Checkpoints: damaged, cut off, foreign, lacking fields, written to a full disk; exact resume."""

import os
import pickle
import random
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from s3prl_varan.errors import UserError
from s3prl_varan.files import append_line, read_jsonl, write_atomic
from s3prl_varan.training.checkpoint import (
    FIELDS,
    damage,
    find_checkpoint,
    load_checkpoint,
    random_kept,
    random_states,
    save_checkpoint,
    set_random_states,
    states_of,
)


def payload(step=10):
    return {
        "Version": 2,
        "upstream": {"name": "u", "ckpt": None, "fingerprint": "0" * 32},
        "lora": None,
        "Upstream": None,
        "Featurizer": {"weights": torch.arange(50.0)},
        "Downstream": {"linear.weight": torch.ones(3, 4)},
        "Args": {},
        "Config": {},
        "Step": step,
        "Best": {},
        "Outputs": ["a", "b"],
    }


@contextmanager
def files_of_at_most(size):
    """As on a full disk: longer files cannot be written. (Python ignores the signal for it.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_saved_is_read(tmp_path):
    path = tmp_path / "dev-best.ckpt"
    save_checkpoint(path, payload())
    assert damage(path) == ""
    again = load_checkpoint(path)
    assert again["Featurizer"]["weights"].equal(payload()["Featurizer"]["weights"])
    assert {**again, "Featurizer": 0, "Downstream": 0} == {
        **payload(),
        "Featurizer": 0,
        "Downstream": 0,
    }
    assert os.listdir(tmp_path) == [path.name]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    path, rng = tmp_path / "dev-best.ckpt", random.Random(0)
    save_checkpoint(path, payload())
    whole = path.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert damage(path), at
    with pytest.raises(UserError, match=r"dev-best.ckpt: (damaged|not a checkpoint)"):
        load_checkpoint(path)


def test_a_file_cut_off_anywhere_is_noticed(tmp_path):
    path = tmp_path / "states-1.ckpt"
    save_checkpoint(path, payload())
    whole = path.read_bytes()
    for length in [*range(40), *range(40, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "not a checkpoint that can be read" in damage(path), length


def test_a_file_without_our_checksum_is_not_even_unpickled(tmp_path):
    path, trap = tmp_path / "dev-best.ckpt", tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="no checksum at its end"):
        load_checkpoint(path)
    save_checkpoint(path, {**payload(), "Outputs": Evil()})
    with pytest.raises(UserError, match="It was not unpickled, since that could run code") as told:
        load_checkpoint(path)
    assert not trap.exists() and "weights_only" not in str(told.value)
    torch.load(path, weights_only=False)
    assert trap.exists()  # it would have


@pytest.mark.parametrize("key", FIELDS)
def test_fields_that_are_missing_or_of_another_kind_are_named(key, tmp_path):
    path = tmp_path / "dev-best.ckpt"
    without = {name: value for name, value in payload().items() if name != key}
    for content in (without, {**payload(), key: 0.5}):
        save_checkpoint(path, content)
        with pytest.raises(UserError, match=f"not a checkpoint of this program:\n  - .*'{key}'"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "key, inner, expected",
    [
        ("upstream", {"name": "u", "ckpt": None}, "no 'upstream.fingerprint'"),
        ("upstream", {"name": 1, "ckpt": None, "fingerprint": ""}, "'upstream.name' is int"),
        ("Best", {"step": []}, "'Best.step' is list, expected int"),
        ("lora", {"options": {}, "state": [1]}, "'lora.state' is list, expected dict"),
        ("lora", {"options": {}, "state": {"a": {}}}, "'lora.state' holds more than tensors"),
        ("Upstream", {"weight": 1.0}, "'Upstream' holds more than tensors by name"),
        ("Downstream", {3: torch.ones(1)}, "'Downstream' holds more than tensors by name"),
        ("Step", -1, "'Step' is -1, expected at least 0"),
    ],
)
def test_so_are_those_within(key, inner, expected, tmp_path):
    path = tmp_path / "dev-best.ckpt"
    save_checkpoint(path, {**payload(), key: inner})
    with pytest.raises(UserError, match=f"of this program:\n  - {expected}"):
        load_checkpoint(path)


def test_strange_names_are_no_states(tmp_path):
    names = ["states-9.ckpt", "states-10.ckpt", "states-x.ckpt", "states-11.ckpt.bak"]
    names += ["states-²²².ckpt", "states-12-1.ckpt", "states-.ckpt", "old-states-13.ckpt"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in states_of(tmp_path)] == ["states-9.ckpt", "states-10.ckpt"]


def test_the_one_before_a_damaged_one_is_offered(tmp_path):
    paths = [tmp_path / f"states-{step}.ckpt" for step in (10, 20, 30)]
    for path in paths:
        save_checkpoint(path, payload())
    assert find_checkpoint(str(tmp_path), resume=True) == paths[2]
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as told:
        find_checkpoint(str(tmp_path), resume=True)
    assert f"whole is {paths[0]}: remove {paths[2]}" in str(told.value)
    paths[0].write_bytes(b"")
    with pytest.raises(UserError, match="start anew with --overwrite"):
        find_checkpoint(str(tmp_path), resume=True)


def test_a_full_disk_is_told_and_changes_nothing(tmp_path):
    path, metrics = tmp_path / "states-10.ckpt", tmp_path / "metrics.jsonl"
    save_checkpoint(path, payload())
    before = path.read_bytes()
    big = {**payload(), "Upstream": {"weight": torch.zeros(10_000)}}
    for target in (path, tmp_path / "states-20.ckpt"):
        with files_of_at_most(9_000), pytest.raises(UserError) as told:
            save_checkpoint(target, big)
        said = str(told.value)
        assert said.startswith(f"{target}: no room to write it (File too large). 9,000 of 40,")
        assert "Make space there" in said and "-a" in said
    append_line(metrics, '{"step": 1}')
    with files_of_at_most(20), pytest.raises(UserError, match="metrics.jsonl: no room to write it"):
        append_line(metrics, '{"step": 2}')
    with files_of_at_most(3), pytest.raises(UserError, match="3 of 5 bytes were written"):
        write_atomic(tmp_path / "result.json", "12345")
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", path.name]
    assert path.read_bytes() == before and metrics.read_text() == '{"step": 1}\n'


def test_a_line_after_a_torn_one_is_a_line_of_its_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, '{"step": 1}')
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, '{"step": 3}')
    append_line(path, '{"step": 4}')
    assert [row["step"] for row in read_jsonl(path)] == [1, 3, 4]


def test_what_is_drawn_aside_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    start = random_states()
    expected = draw()
    with random_kept():
        draw()
    after = draw()
    set_random_states(start)
    with random_kept():
        draw()
    assert (draw(), draw()) == (expected, after)
