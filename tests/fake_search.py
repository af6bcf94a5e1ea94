"""A search of fake cells, in a module that worker processes find by its name. Needs Optuna."""

from pathlib import Path
from typing import Any

from fake_cells import fake_cells
from optuna.distributions import IntDistribution

from s3prl_varan.sweep.search import Search
from s3prl_varan.sweep.spec import SearchOptions, Spec


class FakeSearch(Search):
    """Draws seeds of fake cells, one cell each."""

    def plan(self, values: dict[str, Any]) -> list[Any]:
        return fake_cells([values["seed"]])


def fake_search(folder: Path, storage: str | None = None, **options: Any) -> FakeSearch:
    """Twelve draws of a seed up to 40."""
    space = {"seed": IntDistribution(0, 40)}
    search = SearchOptions(**{"trials": 12, "seed": 0, "space": space, **options})
    return FakeSearch(folder, fake_cells([0, 40]), Spec("x", {}, [], search), storage)
