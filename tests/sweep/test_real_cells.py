"""Sweeps of real experiments, through the command line."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3prl_varan.report.cli import main as report
from s3prl_varan.sweep.cli import build_parser
from s3prl_varan.sweep.cli import main as sweep
from s3prl_varan.sweep.spec import plan_sweep, read_spec

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def tone_sweep(tone_corpus: Path, tmp_path: Path) -> Path:
    tiny = f"{TESTS / 'tiny_expert.py'}:tiny"
    path = tmp_path / "tones.yaml"
    path.write_text(f"""
name: tones
base:
  upstream: {tiny}
  downstream: emotion
  device: cpu
  cache: auto
  config.downstream_expert.datarc.root: {tone_corpus}
  config.downstream_expert.datarc.meta_data: {tone_corpus / "meta_data"}
  config.downstream_expert.datarc.train_batch_size: 16
  config.runner.gradient_accumulate_steps: 1
  config.runner.total_steps: 20
  config.runner.eval_step: 10
  config.runner.eval_dataloaders: [dev]
  config.optimizer.lr: 0.02
grid:
  downstream_variant: [fold1, fold2]
  featurizer: [weighted_sum, varan]
  config.varan.prior: [uniform, chi2]
""")
    return path


@pytest.mark.slow
def test_sweep_of_real_cells_and_its_report(
    tone_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert sweep([str(tone_sweep), "--out", str(out), "--dry-run"]) == 0
    assert "6 cells, 0 done" in capsys.readouterr().out and not out.exists()
    assert sweep([str(tone_sweep), "--out", str(out)]) == 0
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/result.json")}
    assert len(results) == 6
    assert len(list((out / "features").iterdir())) > 0  # one cache for all cells
    assert not list(out.glob("*/states-*.ckpt")) and len(list(out.glob("*/dev-best.ckpt"))) == 6
    cells = plan_sweep(read_spec(tone_sweep), "tones")
    assert {cell.id for cell in cells} == set(results)
    # A process that has run other cells before gives the figures of a fresh one.
    last = cells[-1]
    fresh = tmp_path / "fresh"
    command = [
        sys.executable,
        str(TESTS.parent / "run" / "run_downstream.py"),
        *last.argv,
        "--expdir",
        str(fresh),
    ]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())},
    )
    alone = json.loads((fresh / "result.json").read_text())
    assert alone["test"]["test"]["acc"] == results[last.id]["test"]["test"]["acc"]
    assert alone["test"]["test"]["loss"] == pytest.approx(
        results[last.id]["test"]["test"]["loss"], rel=1e-4
    )
    capsys.readouterr()
    assert sweep([str(tone_sweep), "--out", str(out), "--dry-run"]) == 0
    assert "6 cells, 6 done" in capsys.readouterr().out
    assert report([str(out), "--out", str(tmp_path / "report")]) == 0
    table = (tmp_path / "report/leaderboard.md").read_text()
    assert (
        "| weighted_sum |" in table
        and "of 2 settings of varan" in table
        and "incomplete" not in table
    )
    assert "tiny_expert.py:tiny / emotion" in table and str(TESTS) not in table


@pytest.mark.slow
def test_an_interrupted_cell_is_saved_and_waits(tone_sweep: Path, tmp_path: Path) -> None:
    out, script = tmp_path / "out", str(TESTS.parent / "run" / "sweep.py")
    one = ["downstream_variant=fold1", "featurizer=varan", "config.varan.prior=uniform"]
    command = [sys.executable, script, str(tone_sweep), "--out", str(out)]
    for change in (*one, "config.runner.total_steps=1000000", "config.runner.early_stop=0"):
        command += ["--set", change]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not list(out.glob("*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    (status,) = (json.loads(path.read_text()) for path in out.glob("*/status.json"))
    assert status["status"] == "waiting" and status["crashes"] == 0
    assert len(list(out.glob("*/states-*.ckpt"))) == 1 and not list(out.glob("*/result.json"))


def test_corpora_are_checked_before_the_first_cell(
    tone_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert (
        sweep([str(tone_sweep), "--out", str(out), "--set", "downstream_variant=[fold1, fold9]"])
        == 2
    )
    assert "Session9" in capsys.readouterr().err and not out.exists()


def test_storage_is_for_searches(tone_sweep: Path, capsys: pytest.CaptureFixture) -> None:
    assert sweep([str(tone_sweep), "--storage", "sqlite:///x.db"]) == 2
    assert "this sweep is a grid" in capsys.readouterr().err


def test_worker_command_is_complete(
    tone_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        sweep([str(tone_sweep), "--print-worker", "--set", "seed=2", "--out", str(tmp_path / "o")])
        == 0
    )
    first = capsys.readouterr().out.splitlines()[0]
    place, _, command = first.partition(" && ")
    python, script, *argv = shlex.split(command)
    assert place == f"cd {Path.cwd()}" and python == sys.executable and Path(script).is_file()
    args = build_parser().parse_args(argv)
    assert (args.sweep, args.out, args.set) == (str(tone_sweep), str(tmp_path / "o"), ["seed=2"])
    assert args.workers == 1 and args.no_wait and not args.print_worker
