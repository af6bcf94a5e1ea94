"""Searches: Optuna draws and prunes, the folders say who runs what."""

from pathlib import Path
from typing import Any

import pytest
from fake_cells import quick

from s3prl_varan.errors import UserError
from s3prl_varan.files import held
from s3prl_varan.sweep.cells import State, write_state

pytest.importorskip("optuna")
from fake_search import FakeSearch, fake_search  # noqa: E402

from s3prl_varan.sweep.engine import run_sweep  # noqa: E402


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Where a study is kept: Optuna's journal file, or a database URL."""
    return None if request.param == "journal" else f"sqlite:///{tmp_path / 'x.db'}"


@pytest.mark.slow
def test_search_prunes_and_counts_its_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "1.0")
    search = fake_search(tmp_path)
    assert run_sweep(search, workers=2, run=quick) == 0
    tally = search.tally()
    assert tally["done"] + tally["pruned"] == 12 == sum(tally.values()) and tally["pruned"] >= 1
    pruned = [path.parent for path in tmp_path.glob("*/status.json")]
    assert pruned and all(not (folder / "result.json").exists() for folder in pruned)
    assert search.study.best_value == 59.0 - search.study.best_params["seed"]
    assert search.best().endswith(f"with seed={search.study.best_params['seed']}")
    runs = {path.parent.name: path.read_text() for path in tmp_path.glob("*/runs.txt")}
    assert run_sweep(fake_search(tmp_path), run=quick) == 0
    assert {path.parent.name: path.read_text() for path in tmp_path.glob("*/runs.txt")} == runs


def test_two_searches_share_the_draws(tmp_path: Path, storage: str | None) -> None:
    first, second = (fake_search(tmp_path, storage, trials=3) for _ in range(2))
    for search in (first, second):
        assert len(list(search.open_cells())) == 3
    draws = first.study.get_trials()
    assert len(draws) == 3
    with held(tmp_path, wait=True):  # a worker that was killed while it drew left a trial undrawn
        second.study.ask()
    assert len(list(first.open_cells())) == 3 and first.total == sum(first.tally().values())


def test_a_draw_goes_on_where_another_process_left_it(tmp_path: Path, storage: str | None) -> None:
    search = fake_search(tmp_path, storage, trials=1)
    ((cell, poor),) = list(search.open_cells())
    (tmp_path / cell.id).mkdir()
    (tmp_path / cell.id / "metrics.jsonl").write_text('{"step": 1, "split": "dev", "acc": 5.0}\n')
    assert poor is not None and not poor()
    other = fake_search(tmp_path, storage, trials=1)
    ((same, poor),) = list(other.open_cells())
    assert same.id == cell.id and poor is not None and not poor()
    assert other.study.get_trials()[0].intermediate_values == {1: 5.0}
    write_state(tmp_path / cell.id, State("failed", 2, "broken"), cell.stored)
    assert not list(other.open_cells()) and other.tally() == {"failed": 1}
    assert "broken" in other.failures()[0] and other.retry_failed() == 1
    assert len(list(other.open_cells())) == 1
    (tmp_path / cell.id / "result.json").write_text('{"dev": {"acc": 7.0}}')
    assert not list(other.open_cells()) and not list(search.open_cells())
    assert other.study.best_value == 7.0 and search.tally() == {"done": 1}


def test_values_that_do_not_go_together_fail(tmp_path: Path) -> None:
    class Refused(FakeSearch):
        def plan(self, values: dict[str, Any]) -> list[Any]:
            raise UserError("these do not go together")

    search = fake_search(tmp_path, trials=1)
    search.__class__ = Refused
    assert not list(search.open_cells()) and search.tally() == {"failed": 1}
    assert search.failures() == ["draw 0: these do not go together"]


def test_storage_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    search = fake_search(tmp_path, "sqlite:////nowhere/x.db")
    with pytest.raises(UserError, match="--storage sqlite:////nowhere/x.db: cannot be used"):
        search.tally()
