"""Sweeps: what a YAML means, what counts as one cell, and that neither crashes nor kills lose or repeat one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3prl_varan.errors import UserError
from s3prl_varan.sweep.plan import (
    Costs,
    PlannedCell,
    command_line,
    readable_time,
    resolve_all,
    resolve_spec,
    write_plan,
)
from s3prl_varan.sweep.spec import expand, read_spec

optuna = pytest.importorskip("optuna")
from s3prl_varan.sweep.engine import Engine  # noqa: E402
from s3prl_varan.sweep.study import SharedStudy, open_study  # noqa: E402

HERE = Path(__file__).resolve().parent
SHIPPED = sorted((HERE.parent / "downstream_configs" / "sweeps").glob("*.yaml"))


def spec_of(folder: Path, text: str, changes: list[str] | None = None):
    path = folder / "sweep.yaml"
    path.write_text(text)
    return read_spec(path, changes)


# ---- the YAML


def test_grid_is_a_product_without_what_a_cell_does_not_read(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        """
base: {upstream: wavlm, downstream: emotion}
grid:
  seed: [1, 2]
  featurizer: [weighted_sum, varan]
  config.varan.kl_beta: [0.1, 0.2]
  config.lora.rank: [4, 8]
""",
    )
    cells = expand(spec)
    assert [cell["seed"] for cell in cells] == [1] * 8 + [2] * 8  # the first key varies slowest
    assert all(
        ("config.varan.kl_beta" in cell) == (cell["featurizer"] == "varan") for cell in cells
    )
    assert not any("config.lora.rank" in cell for cell in cells)
    assert len(resolve_all(cells, "x")) == 2 * (1 + 2)


def test_cells_that_only_differ_in_idle_keys_are_one(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        """
base: {upstream: wavlm, downstream: emotion, featurizer: varan}
grid:
  - {config.varan.prior: [uniform, geometric, chi2], config.varan.chi2_df: [6, 35]}
  - {config.varan.prior: chi2, config.varan.chi2_df: 6.0}
""",
    )
    cells = resolve_all(expand(spec), "x")
    priors = [(cell.config["varan"]["prior"], cell.config["varan"]["chi2_df"]) for cell in cells]
    assert priors == [("uniform", 6), ("geometric", 6), ("chi2", 6), ("chi2", 35)]


def test_mistakes_are_listed_together(tmp_path: Path) -> None:
    text = "base: {upstrem: wavlm, expdir: x}\ngrid: {seed: [], config.lr: [1]}\nwhat: 1\n"
    text += "search: {trials: many, space: {seed: {flot: [1, 2]}}}"
    with pytest.raises(UserError) as error:
        spec_of(tmp_path, text, ["seed"])
    for part in (
        "'upstrem'", "Did you mean 'upstream'", "expdir: a sweep sets this", "seed has no values", "search.trials",
        "config.lr: expected config.SECTION", "search.space.seed", "unknown section 'what'", "--set: expected KEY=VALUE",
    ):  # fmt: skip
        assert part in str(error.value), part


def test_bad_config_values_fail_before_anything_runs(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        "base: {upstream: wavlm, downstream: emotion, config.varan.kl_bta: 1}\n"
        "grid: {seed: [1, 2], config.varan.prior: [chi3, uniform]}",
    )
    with pytest.raises(
        UserError, match="(?s)unknown key 'kl_bta'.*Did you mean 'kl_beta'.*in 4 cells"
    ):
        resolve_spec(spec, "x")


def test_set_replaces_a_key_everywhere(tmp_path: Path) -> None:
    text = "base: {upstream: wavlm, downstream: emotion}\ngrid: {seed: [1, 2]}"
    spec = spec_of(tmp_path, text, ["seed=[3]", "upstream=hubert", "config.runner.total_steps=5"])
    assert expand(spec) == [
        {"upstream": "hubert", "downstream": "emotion", "seed": 3, "config.runner.total_steps": 5}
    ]


def test_command_line_carries_values_exactly() -> None:
    from s3prl_varan.app.cli import parse_args
    from s3prl_varan.config.reading import split_override

    settings = {
        "upstream": "a b",
        "lora": True,
        "upstream_trainable": False,
        "upstream_ckpt": None,
        "seed": 3,
    }
    config = {
        "config.optimizer.lr": 1e-5,
        "config.varan.layers": [1, 2],
        "config.varan.nll": None,
        "config.varan.prior": "chi2",
    }
    args = parse_args(command_line({**settings, **config}))
    assert (args.upstream, args.lora, args.upstream_trainable, args.upstream_ckpt, args.seed) == (
        "a b",
        True,
        False,
        None,
        3,
    )
    assert {".".join(path): value for path, value in split_override(args.override)} == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_resolve(path: Path) -> None:
    assert path.read_text().startswith(
        "# python run/sweep.py downstream_configs/sweeps/" + path.name
    )
    spec = read_spec(path)
    cells = resolve_spec(spec, path.name)
    assert spec.name == path.stem and len(cells) > 1
    if not spec.space:
        assert len(cells) == len({cell.id for cell in cells})


def test_costs_come_from_finished_cells(tmp_path: Path) -> None:
    costs = Costs()
    cell = fake_cells([1], steps=200)[0]
    assert costs.seconds(cell) is None
    costs.add({"upstream": "other"}, 100, 10.0)
    assert costs.seconds(cell) == pytest.approx(20.0)
    costs.add(cell.args, 100, 50.0)
    assert costs.seconds(cell) == pytest.approx(100.0)
    (tmp_path / "early").mkdir()
    early = {
        "args": {**cell.args, "lora": True},
        "config": cell.config,
        "steps": 20,
        "seconds": 4.0,
    }  # of 200 steps
    (tmp_path / "early" / "result.json").write_text(json.dumps(early))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text("{}")
    costs.read(tmp_path)
    another = fake_cells([2], steps=400)[0]
    another.args["lora"] = True
    assert costs.seconds(another) == pytest.approx(8.0)
    assert [readable_time(value) for value in (None, 12, 240, 12000)] == [
        "?",
        "12 s",
        "4 min",
        "3 h 20 min",
    ]


# ---- running: an engine over fake cells


def fake_cells(seeds: list[int], steps: int = 10) -> list[PlannedCell]:
    config = {"runner": {"total_steps": steps}}
    return [
        PlannedCell(
            f"cell{seed:03}",
            ("--seed", str(seed)),
            {"seed": seed},
            {"seed": seed, "featurizer": "varan"},
            config,
        )
        for seed in seeds
    ]


def fake_engine(
    folder: Path, cells: list[PlannedCell], *, workers: int = 1, stale: float = 2.0, **more
) -> Engine:
    study = open_study(str(folder / "x.journal"), "x", True, more.get("spec"))
    shared = SharedStudy(study, [cell.id for cell in cells], more.pop("spec", None), stale)
    return Engine(shared, cells, folder, workers=workers, entry="fake_cells:quick", **more)


def test_time_left_counts_no_cell_that_is_finished_on_disk(tmp_path: Path) -> None:
    cells = fake_cells([1, 2, 3, 4])
    for cell in cells[:3]:
        (tmp_path / cell.id).mkdir()
        (tmp_path / cell.id / "result.json").write_text("{}")
    engine = fake_engine(tmp_path, cells)
    engine.costs.add(cells[0].args, 10, 60.0)
    assert engine._seconds_left(4) == pytest.approx(60.0)
    engine.bar.close()


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a study is kept: Optuna's journal file, or a database URL."""
    return (
        str(tmp_path / "x.journal")
        if request.param == "journal"
        else f"sqlite:///{tmp_path / 'x.db'}"
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def lines(folder: Path, name: str) -> dict[str, int]:
    return {
        path.parent.name: len(path.read_text().splitlines()) for path in folder.glob(f"*/{name}")
    }


def test_every_cell_runs_once_and_never_again(tmp_path: Path, fake: None) -> None:
    cells = fake_cells(list(range(5)))
    assert fake_engine(tmp_path, cells, workers=2).run() == 0
    assert lines(tmp_path, "runs.txt") == {cell.id: 1 for cell in cells}
    children = {
        line for cell in cells for line in (tmp_path / cell.id / "runs.txt").read_text().split()
    }
    assert len(children) == 2  # two processes that stay alive
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"hello from seed 3, {share} threads" in (tmp_path / "cell003/log.txt").read_text()
    again = fake_engine(tmp_path, cells)
    assert again.run() == 0 and again.ran == 0
    (tmp_path / "x.journal").unlink()  # another study, the same folder: the results count
    fresh = fake_engine(tmp_path, cells)
    assert fresh.run() == 0 and fresh.ran == 0
    assert lines(tmp_path, "runs.txt") == {cell.id: 1 for cell in cells}


def test_crashes_are_tried_twice_then_reported(
    tmp_path: Path, fake: None, capfd: pytest.CaptureFixture
) -> None:
    cells = fake_cells([1, 101, 102, 103])
    assert fake_engine(tmp_path, cells, workers=2).run() == 1
    assert lines(tmp_path, "runs.txt") == {"cell001": 1, "cell101": 2, "cell102": 2, "cell103": 1}
    assert (tmp_path / "cell101/result.json").is_file()  # killed once, done at the second go
    notes = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/status.json")
    }
    assert {key: note["status"] for key, note in notes.items()} == {
        "cell102": "failed",
        "cell103": "failed",
    }
    assert (
        "always broken" in notes["cell102"]["note"]
        and "always broken" in (tmp_path / "cell102/log.txt").read_text()
    )
    error = capfd.readouterr().err
    assert "2 failed" in error and "a mistake in the input" in error
    later = fake_engine(tmp_path, cells)
    assert later.run() == 1 and later.ran == 0  # given up is given up
    retried = fake_engine(tmp_path, cells)
    assert retried.shared.retry_failed() == 2
    assert retried.run() == 1
    assert lines(tmp_path, "runs.txt") == {"cell001": 1, "cell101": 2, "cell102": 4, "cell103": 2}


PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}, {root!r}]
import test_sweep as t
folder, seeds, workers = Path(sys.argv[1]), range(int(sys.argv[2])), int(sys.argv[3])
sys.exit(t.fake_engine(folder, t.fake_cells(list(seeds)), workers=workers, stale=2.0).run())
"""


def start(folder: Path, seeds: int, workers: int, seconds: float) -> subprocess.Popen:
    code = PROCESS.format(here=str(HERE), root=str(HERE.parent))
    environment = {**os.environ, "PYTHONPATH": str(HERE), "FAKE_SECONDS": str(seconds)}
    command = [sys.executable, "-c", code, str(folder), str(seeds), str(workers)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_of_two_killed_midway_loses_and_repeats_nothing(tmp_path: Path) -> None:
    first, second = start(tmp_path, 10, 1, 1.0), start(tmp_path, 10, 1, 1.0)
    wait_until(
        lambda: (
            len(list(tmp_path.glob("*/result.json"))) >= 2 and len(lines(tmp_path, "runs.txt")) >= 4
        )
    )
    first.send_signal(signal.SIGKILL)
    _, error = second.communicate(timeout=90)
    assert second.returncode == 0, error
    first.communicate()
    assert lines(tmp_path, "ended.txt") == {
        f"cell{seed:03}": 1 for seed in range(10)
    }  # each ran to its end exactly once
    runs = lines(tmp_path, "runs.txt")
    assert len(runs) == 10 and sum(runs.values()) in (
        10,
        11,
    )  # at most the one that the killed worker was at began again


@pytest.mark.slow
def test_interrupt_keeps_what_is_done_and_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, 6, 2, 1.5)
    wait_until(lambda: len(list(tmp_path.glob("*/result.json"))) >= 2)
    wait_until(lambda: len(lines(tmp_path, "runs.txt")) >= 4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in error
    done = len(list(tmp_path.glob("*/result.json")))
    assert 2 <= done < 6
    states = open_study(str(tmp_path / "x.journal"), "x", True).get_trials()
    assert not [
        trial for trial in states if trial.state == optuna.trial.TrialState.RUNNING
    ]  # handed back, nobody has to wait
    process = start(tmp_path, 6, 2, 0.1)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert lines(tmp_path, "ended.txt") == {f"cell{seed:03}": 1 for seed in range(6)}


def test_silent_owner_elsewhere_is_replaced_and_notices(storage: str) -> None:
    study = open_study(storage, "x", True)
    sleeper, other = SharedStudy(study, ["a"], stale=0.3), SharedStudy(study, ["a"], stale=0.3)
    sleeper.place = "another-machine"
    trial = sleeper.claim()
    assert trial is not None and other.claim() is None and not other.over()
    for _ in range(4):  # alive: its beat moves
        sleeper.tend()
        other.tend()
        time.sleep(0.15)
    assert other.claim() is None
    time.sleep(0.4)
    other.tend()
    taken = other.claim()
    assert taken is not None and taken.user_attrs["key"] == "a"
    sleeper.tend()
    assert trial.number in sleeper.lost  # its worker stops the cell
    sleeper.finish(trial, optuna.trial.TrialState.COMPLETE, "done", 1.0)
    other.finish(taken, optuna.trial.TrialState.COMPLETE, "done", 2.0)
    assert [one.value for one in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))] == [
        2.0
    ]
    assert other.over()


def test_same_cell_enqueued_by_two_runs_once(storage: str) -> None:
    study = open_study(storage, "x", True)
    for _ in range(3):
        study.enqueue_trial({}, user_attrs={"key": "a"})
    shared = SharedStudy(study, ["a"])
    assert shared.claim() is not None
    assert shared.claim() is None
    assert shared.tally().running == 1


@pytest.mark.slow
def test_search_prunes_and_counts_its_draws(
    tmp_path: Path, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
base: {upstream: wavlm, downstream: emotion}
search: {trials: 12, seed: 0, space: {seed: {int: [0, 40]}}}
"""
    spec = spec_of(tmp_path, text)
    study = open_study(str(tmp_path / "x.journal"), "x", True, spec)
    shared = SharedStudy(study, [], spec, 5.0)

    def cells_of(trial):
        return fake_cells([shared.draw(trial)["seed"]])

    monkeypatch.setenv("FAKE_SECONDS", "1.0")
    engine = Engine(
        shared, [], tmp_path, workers=2, entry="fake_cells:quick", cells_of=cells_of, prune=True
    )
    assert engine.run() == 0
    tally = shared.tally()
    assert tally.done + tally.pruned == 12 and tally.pruned >= 1 and tally.failed == 0
    pruned = [path.parent for path in tmp_path.glob("*/status.json")]
    assert pruned and all(not (folder / "result.json").exists() for folder in pruned)
    assert study.best_value == 59.0 - study.best_params["seed"]


def test_storage_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--storage sqlite:////nowhere/x.db: cannot be used"):
        open_study("sqlite:////nowhere/x.db", "x", True)


def test_a_held_folder_is_waited_for(tmp_path: Path) -> None:
    import fcntl

    from s3prl_varan.sweep.child import only_one

    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        signal.signal(signal.SIGALRM, lambda *_: fcntl.flock(file, fcntl.LOCK_UN))
        signal.setitimer(signal.ITIMER_REAL, 0.6)
        started = time.monotonic()
        with only_one(tmp_path):
            assert time.monotonic() - started > 0.5


def test_plan_is_what_a_report_misses(tmp_path: Path) -> None:
    from s3prl_varan.report.cells import find_cells

    cells = fake_cells([1, 2])
    write_plan(cells, tmp_path / "x.plan.json")
    assert [cell.status for cell in find_cells([str(tmp_path)])] == ["planned", "planned"]


# ---- real cells


@pytest.fixture
def tone_sweep(tone_corpus: Path, tmp_path: Path) -> Path:
    tiny = f"{HERE / 'tiny_expert.py'}:tiny"
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
    from s3prl_varan.report.cli import main as report
    from s3prl_varan.sweep.cli import main as sweep

    out = tmp_path / "out"
    assert sweep([str(tone_sweep), "--out", str(out), "--dry-run"]) == 0
    assert "6 cells, 0 done" in capsys.readouterr().out and not out.exists()
    assert sweep([str(tone_sweep), "--out", str(out)]) == 0
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/result.json")}
    assert len(results) == 6
    assert len(list((out / "features").iterdir())) > 0  # one cache for all cells
    assert not list(out.glob("*/states-*.ckpt")) and len(list(out.glob("*/dev-best.ckpt"))) == 6
    cells = resolve_spec(read_spec(tone_sweep), "tones")
    assert {cell.id for cell in cells} == set(results)
    # A process that has run other cells before gives the figures of a fresh one.
    last = cells[-1]
    fresh = tmp_path / "fresh"
    command = [
        sys.executable,
        str(HERE.parent / "run" / "run_downstream.py"),
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
    assert "tiny_expert.py:tiny / emotion" in table and str(HERE) not in table


def test_corpora_are_checked_before_the_first_cell(
    tone_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from s3prl_varan.sweep.cli import main as sweep

    out = tmp_path / "out"
    assert (
        sweep([str(tone_sweep), "--out", str(out), "--set", "downstream_variant=[fold1, fold9]"])
        == 2
    )
    assert "Session9" in capsys.readouterr().err and not out.exists()


def test_worker_command_is_complete(
    tone_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from s3prl_varan.sweep.cli import main as sweep

    assert (
        sweep([str(tone_sweep), "--print-worker", "--set", "seed=2", "--out", str(tmp_path / "o")])
        == 0
    )
    first = capsys.readouterr().out.splitlines()[0]
    assert f"--out {tmp_path / 'o'} --workers 1 --set seed=2" in first and str(tone_sweep) in first


@pytest.mark.slow
def test_all_folds_in_one_command(
    emotion_args, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from s3prl_varan.app.cli import main

    overrides = {"config.runner.total_steps": 10, "config.runner.eval_step": 10}
    argv = [
        str(flag) for flag in emotion_args("weighted_sum", "-p", str(tmp_path / "exp"), **overrides)
    ]
    assert main([*argv, "--folds", "fold1,fold9"]) == 2
    assert "no fold9 in" in capsys.readouterr().err
    assert main([*argv, "--folds", "all", "-v", "fold1"]) == 2
    assert main([*argv, "--folds", "all", "-m", "evaluate"]) == 2
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
