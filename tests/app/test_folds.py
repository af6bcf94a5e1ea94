"""`run_downstream.py --folds`: every fold of a corpus in one command, and their average."""

import json
from pathlib import Path

import pytest

from s3prl_varan.app.cli import main


@pytest.mark.slow
def test_all_folds_in_one_command(
    emotion_args, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = {"config.runner.total_steps": 10, "config.runner.eval_step": 10}
    argv = [
        str(flag) for flag in emotion_args("weighted_sum", "-p", str(tmp_path / "exp"), **overrides)
    ]
    assert main([*argv, "--folds", "fold1,fold9"]) == 2
    assert "no fold9, there are fold1" in capsys.readouterr().err
    assert main([*argv, "--folds", "all", "-v", "fold1"]) == 2
    assert main([*argv, "--folds", "all", "-m", "evaluate"]) == 2
    fixed = "config.downstream_expert.datarc.test_fold=fold2"
    place = argv.index("-o") + 1
    argv[place] += f",,{fixed}"
    assert main([*argv, "--folds", "all"]) == 2
    assert "the config sets the fold itself, fold2" in capsys.readouterr().err
    argv[place] = argv[place].removesuffix(f",,{fixed}")
    assert not (tmp_path / "exp").exists()
    assert main([*argv, "--folds", "all"]) == 0
    assert "mean test" in capsys.readouterr().out
    summary = json.loads((tmp_path / "exp/summary.json").read_text())
    values = [
        json.loads(path.read_text())["test"]["test"]["acc"]
        for path in sorted((tmp_path / "exp").glob("fold*/result.json"))
    ]
    assert len(values) == 4 == len(summary["folds"])
    assert summary["mean"]["test"]["acc"] == pytest.approx(sum(values) / 4)
    before = {path: path.stat().st_mtime for path in (tmp_path / "exp").glob("*/result.json")}
    assert main([*argv, "--folds", "all", "-a"]) == 0
    assert {
        path: path.stat().st_mtime for path in before
    } == before  # -a runs no finished fold again
    assert main([*argv, "--folds", "all", "-a", "--seed", "2"]) == 2
    assert "was run with other flags" in capsys.readouterr().err
