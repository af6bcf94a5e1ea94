"""Two processes on one machine: figures of all utterances, each scored once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "run" / "run_downstream.py"


@pytest.mark.slow
def test_two_processes_train_and_score_every_utterance_once(emotion_args, tmp_path):
    folder = tmp_path / "exp"
    overrides = {
        "config.downstream_expert.datarc.train_batch_size": 8,
        "config.runner.eval_step": 40,
    }
    args = [str(arg) for arg in emotion_args("varan", "-p", folder, **overrides)]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(RUN),
    ]
    done = subprocess.run([*launch, *args], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((folder / "result.json").read_text())
    assert result["test"]["test"]["acc"] > 40
    rows = (folder / "layer_weights.csv").read_text().splitlines()[1:]
    names = [row.split(",")[1] for row in rows]
    assert len(names) == len(set(names)) == sum(map(sum, result["confusion"]["test"]["matrix"])) > 0
    evaluated = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Once while training, once at the end.
    assert sum(row["split"] == "test" and row["step"] == 40 for row in evaluated) <= 2
