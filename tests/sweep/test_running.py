"""Running a sweep's cells: neither crashes nor kills nor interrupts lose one or run one twice."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_cells import fake_cells, fake_sweep

from s3prl_varan.errors import UserError
from s3prl_varan.files import held
from s3prl_varan.report.cells import find_cells
from s3prl_varan.sweep.cells import State, Work, locked, read_state, write_state
from s3prl_varan.sweep.progress import Costs, Progress, readable_time
from s3prl_varan.sweep.spec import write_plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def lines(folder: Path, name: str) -> dict[str, int]:
    """Cell -> lines in its file of that name."""
    return {
        path.parent.name: len(path.read_text().splitlines()) for path in folder.glob(f"*/{name}")
    }


def test_costs_come_from_finished_cells(tmp_path: Path) -> None:
    costs = Costs(tmp_path)
    (cell,) = fake_cells([1], steps=200)
    assert costs.seconds(cell) is None
    costs.add({"args": {"upstream": "other"}, "config": {"runner": {"total_steps": 100}}}, 10.0)
    assert costs.seconds(cell) == pytest.approx(20.0)
    costs.add(fake_cells([1], steps=100)[0].stored, 50.0)
    assert costs.seconds(cell) == pytest.approx(100.0)
    (tmp_path / "early").mkdir()
    (early,) = fake_cells([2], steps=200, lora=True)
    result = {**early.stored, "steps": 20, "seconds": 4.0}  # of 200 steps
    (tmp_path / "early" / "result.json").write_text(json.dumps(result))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text("{}")
    another = fake_cells([2, 3], steps=400, lora=True)
    assert Costs(tmp_path).seconds(another[0]) == pytest.approx(8.0)
    assert Costs(tmp_path).seconds(*another) == pytest.approx(16.0)
    assert [readable_time(value) for value in (None, 12, 240, 12000)] == [
        "?",
        "00:12",
        "04:00",
        "3:20:00",
    ]


def test_time_left_counts_no_cell_that_is_finished(tmp_path: Path) -> None:
    cells = fake_cells([1, 2, 3, 4])
    for cell in cells[:3]:
        (tmp_path / cell.id).mkdir()
        (tmp_path / cell.id / "result.json").write_text("{}")
    progress = Progress(Work(tmp_path, cells))
    progress.costs.add(cells[0].stored, 60.0)
    assert progress.seconds_left() == pytest.approx(60.0)
    progress.bar.close()


def test_every_cell_runs_once_and_never_again(tmp_path: Path, fake: None) -> None:
    cells = fake_cells(list(range(5)))
    assert fake_sweep(tmp_path, cells, workers=2) == 0
    assert lines(tmp_path, "runs.txt") == {cell.id: 1 for cell in cells}
    workers = {
        line for cell in cells for line in (tmp_path / cell.id / "runs.txt").read_text().split()
    }
    assert len(workers) == 2  # two processes that stay alive
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"hello from seed 3, {share} threads" in (tmp_path / "cell003/log.txt").read_text()
    assert "optuna is loaded: False" in (tmp_path / "cell003/log.txt").read_text()
    assert not list(tmp_path.glob("*/states-*.ckpt")) and not list(tmp_path.glob("*/status.json"))
    assert fake_sweep(tmp_path, cells) == 0
    assert lines(tmp_path, "runs.txt") == {cell.id: 1 for cell in cells}


def test_crashes_are_tried_twice_then_reported(
    tmp_path: Path, fake: None, capfd: pytest.CaptureFixture
) -> None:
    cells = fake_cells([1, 101, 102, 103, 104])
    assert fake_sweep(tmp_path, cells, workers=2) == 1
    once = {"cell001": 1, "cell101": 2, "cell102": 2, "cell103": 1, "cell104": 2}
    assert lines(tmp_path, "runs.txt") == once
    assert (tmp_path / "cell101/result.json").is_file()  # killed once, done at the second go
    notes = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/status.json")
    }
    assert {key: note["status"] for key, note in notes.items()} == {
        "cell102": "failed",
        "cell103": "failed",
        "cell104": "failed",
    }
    assert "always broken" in notes["cell102"]["note"]
    assert "always broken" in (tmp_path / "cell102/log.txt").read_text()
    error = capfd.readouterr().err
    assert "3 failed" in error and "a mistake in the input" in error and "was killed" in error
    assert fake_sweep(tmp_path, cells) == 1
    assert lines(tmp_path, "runs.txt") == once  # given up is given up
    assert Work(tmp_path, cells).retry_failed() == 3
    assert fake_sweep(tmp_path, cells) == 1
    again = {"cell001": 1, "cell101": 2, "cell102": 4, "cell103": 2, "cell104": 4}
    assert lines(tmp_path, "runs.txt") == again


def start(folder: Path, seeds: int, workers: int, seconds: float) -> subprocess.Popen:
    """A sweep in a process of its own."""
    code = (
        "import sys; from pathlib import Path\n"
        "from fake_cells import fake_cells, fake_sweep\n"
        f"sys.exit(fake_sweep(Path({str(folder)!r}), fake_cells(range({seeds})), {workers}))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "FAKE_SECONDS": str(seconds), "PYTHONPATH": path}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **output)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until it holds."""
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
    # Each ran to its end exactly once; at most the one that the killed worker was at began again.
    assert lines(tmp_path, "ended.txt") == {f"cell{seed:03}": 1 for seed in range(10)}
    runs = lines(tmp_path, "runs.txt")
    assert len(runs) == 10 and sum(runs.values()) in (10, 11)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_is_done_and_goes_on(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, 6, 2, 1.5)
    wait_until(lambda: len(list(tmp_path.glob("*/result.json"))) >= 2)
    wait_until(lambda: len(lines(tmp_path, "runs.txt")) >= 4)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in error
    done = len(list(tmp_path.glob("*/result.json")))
    assert 2 <= done < 6
    left = [read_state(path.parent) for path in tmp_path.glob("*/status.json")]
    assert left == [State("waiting", 0)] * len(left)  # that was no crash
    process = start(tmp_path, 6, 2, 0.1)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert lines(tmp_path, "ended.txt") == {f"cell{seed:03}": 1 for seed in range(6)}


def test_a_held_folder_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from s3prl_varan.files import held\n"
        "with held(Path(sys.argv[1])) as mine: sys.exit(int(mine))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.call(command, cwd=ROOT) == 1
    with held(tmp_path) as mine:
        assert mine and subprocess.call(command, cwd=ROOT) == 0
        loader = os.fork()  # inherits the lock, as processes that load data do
        if not loader:
            signal.pause()
    with held(tmp_path) as mine:
        assert mine
    os.kill(loader, signal.SIGKILL)
    os.waitpid(loader, 0)
    holder = os.fork()
    if not holder:
        with held(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    with held(tmp_path) as mine:
        assert mine


def test_a_cell_that_another_holds_is_waited_for(tmp_path: Path, fake: None) -> None:
    cells = fake_cells([1, 2])
    (tmp_path / "cell001").mkdir()
    with open(tmp_path / "cell001" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        signal.signal(signal.SIGALRM, lambda *_: fcntl.flock(file, fcntl.LOCK_UN))
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        assert fake_sweep(tmp_path, cells) == 0
    first, second = ((tmp_path / cell.id / "result.json").stat().st_mtime for cell in cells)
    assert second < first


def test_a_grid_needs_no_optuna(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("grid: {seed: [1]}")
    (tmp_path / "search.yaml").write_text("search: {trials: 1, space: {seed: {int: [1, 2]}}}")
    code = """
import sys
from pathlib import Path
sys.modules["optuna"] = None
import s3prl_varan.sweep.cli, s3prl_varan.sweep.engine
from s3prl_varan.sweep.spec import read_spec
assert read_spec(Path("grid.yaml")).grid
read_spec(Path("search.yaml"))
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "UserError: A search needs optuna: pip install" in run.stderr


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="cannot be locked .*no locks available"), locked(tmp_path):
        pass


def test_plan_is_what_a_report_misses(tmp_path: Path) -> None:
    cells = fake_cells([1, 2])
    write_plan(cells, tmp_path, "x")
    (tmp_path / "cell001").mkdir()
    write_state(tmp_path / "cell001", State("failed", 2, "broken"), cells[0].stored)
    found = {cell.path.name: cell.status for cell in find_cells([str(tmp_path)])}
    assert found == {"cell001": "failed", "cell002": "planned"}
