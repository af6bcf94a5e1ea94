"""`python run/stress` in its quick form; and that its looks at things can fail."""

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stress.bait import Pickled
from stress.cli import SHARES, main, text_table
from stress.damage import mutate, noticed
from stress.ground import Ended, differences, same

from s3prl_varan.training.checkpoint import save_checkpoint

RUN = Path(__file__).resolve().parents[2] / "run"


@pytest.mark.slow
def test_all_that_is_promised_holds_in_a_quick_run(tmp_path):
    command = [sys.executable, str(RUN / "stress"), "--budget", "1", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-5000:]
    rows = json.loads((tmp_path / "stress.json").read_text())["rows"]
    assert {row["section"] for row in rows} == set(SHARES)
    assert all(row["tried"] == row["held"] and not row["problems"] for row in rows)
    tried = {name: sum(row["tried"] for row in rows if row["section"] == name) for name in SHARES}
    assert tried["kills"] > 4 and tried["damage"] > 60 and tried["configs"] > 60, tried
    assert ended.stdout.strip() == (tmp_path / "stress.txt").read_text().strip()


def test_what_broke_is_told(tmp_path, monkeypatch, capsys):
    from stress import cli

    rows = [cli.Row("kills", "SIGKILL", 5, 4, ["contents differ"]), cli.Row("disk", "full", 2, 2)]
    monkeypatch.setattr(cli, "try_all", lambda *_: rows)
    assert main(["--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "kills, SIGKILL: contents differ" in err and out.splitlines()[1].split()[-2:] == [
        "5",
        "4",
    ]
    monkeypatch.setattr(cli, "try_all", lambda *_: rows[1:])
    assert main(["--out", str(tmp_path)]) == 0
    assert text_table(rows[1:]).splitlines()[-1].split() == ["disk", "full", "2", "2"]


def test_folders_that_differ_are_seen_to(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        torch.save({"a": torch.ones(2)}, folder / "states-1.ckpt")
        (folder / "result.json").write_text(f'{{"acc": 1, "seconds": {len(folder.name)}}}')
    assert differences(one, other) == ""
    torch.save({"a": torch.tensor([1, 1 + 1e-7])}, other / "states-1.ckpt")
    assert "states-1.ckpt" in differences(one, other)
    (other / ".best.1.2.tmp.csv").touch()
    assert "files differ" in differences(one, other)
    assert (
        not same({"a": 1}, {"a": True}) and not same([1], [1, 2]) and same({"a": [1]}, {"a": [1]})
    )


def test_only_one_message_without_traceback_is_a_refusal():
    assert Ended(2, "error: no\n").refusal == Ended(2, "1/2 steps\rerror: no").refusal == ""
    assert Ended(1, "error: no\n").refusal and Ended(2, "no").refusal
    assert Ended(2, "Traceback\nerror: no").refusal and Ended(2, "error: a\nerror: b").refusal


def test_a_checkpoint_that_is_read_was_not_noticed(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"")
    assert noticed(path) == ""
    weights = {"weight": torch.ones(2)}
    parts = {"Featurizer": weights, "Downstream": weights, "Args": {}, "Config": {}, "Best": {}}
    upstream = {"name": "u", "ckpt": None, "fingerprint": "0"}
    rest = {"upstream": upstream, "lora": None, "Upstream": None, "Step": 1, "Outputs": None}
    save_checkpoint(path, {**parts, **rest})
    assert noticed(path) == "read as if nothing were"


def test_bait_bites(tmp_path):
    pickle.loads(pickle.dumps(Pickled(tmp_path / "ran")))  # noqa: S301 (it is ours)
    assert (tmp_path / "ran").exists()


def test_every_field_is_mutated_some_time():
    rng, seen = random.Random(0), set()
    for _ in range(200):
        payload = {"Args": {"seed": 1, "lora": {}}, "Step": 3}
        seen.add(mutate(payload, rng).split(" = ")[0].removeprefix("no "))
    assert seen >= {"Args", "Args.seed", "Args.lora", "Step"}
