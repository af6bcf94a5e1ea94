"""A search: Optuna draws values and says which draws to stop; who runs what, the folders say.

A draw is a running trial of a study, its cells are those of the grid with the drawn values. It goes
on, cell after cell, whoever is at it, until all of them are done (its value is their mean on dev)
or one was pruned. A draw with a failed cell stays as it is: --retry_failed takes it up again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from s3prl_varan.errors import UserError
from s3prl_varan.files import METRICS, RESULT, held, read_json, read_jsonl
from s3prl_varan.sweep.cells import Look, Work
from s3prl_varan.sweep.spec import Cell, Spec, expand, plan_cells

FINISHED = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned"}


class Search(Work):
    """The draws of a search, `trials` of them.

    ends: cells at the ends of the space. storage: a URL of Optuna, or the path of a journal file.
    """

    unit = "draw"

    def __init__(
        self, folder: Path, ends: list[Cell], spec: Spec, storage: str | None = None
    ) -> None:
        super().__init__(folder, ends)
        assert spec.search is not None
        self.spec, self.search, self.total = spec, spec.search, spec.search.trials
        self.shown = list(dict.fromkeys([*self.search.space, *self.shown]))
        self.storage = storage or str(folder / f"{spec.name}.journal")
        # A changed sweep is another study; what it shares with the earlier one is in the folders.
        text = json.dumps(sorted(cell.id for cell in ends))
        self.name = f"{spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.prunes = self.search.pruner != "none"
        self.drawn: dict[int, list[Cell]] = {}  # number of a draw -> its cells
        self.refused: dict[int, str] = {}  # values that do not go together -> why

    @cached_property
    def study(self) -> optuna.Study:
        """Opened in every process anew. UserError where the storage cannot be used."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = "://" not in self.storage
        higher = self.planned[0].stored["task"]["higher_is_better"]
        try:
            return optuna.create_study(
                storage=JournalStorage(JournalFileBackend(self.storage))
                if journal
                else self.storage,
                study_name=self.name,
                load_if_exists=True,
                direction="maximize" if higher else "minimize",
                pruner=optuna.pruners.MedianPruner() if self.prunes else optuna.pruners.NopPruner(),
            )
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise UserError(f"--storage {self.storage}: cannot be used ({said}).") from error

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "study"}

    # ---- draws

    def _draws(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials that were drawn to the end."""
        trials = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in trials if set(trial.params) == set(self.search.space)]

    def _draw(self) -> bool:
        """Draw once more, unless there are enough."""
        with held(self.folder, wait=True):  # so that no two draw the last one
            number = len(self._draws())
            if number < self.total:
                seed = None if self.search.seed is None else self.search.seed + number
                self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                self.study.ask(self.search.space)
            return number < self.total

    def cells_of(self, draw: FrozenTrial) -> list[Cell]:
        """A draw's cells; none where its values do not go together."""
        if draw.number not in self.drawn:
            self.drawn[draw.number] = []
            try:
                self.drawn[draw.number] = self.plan(self.search.values(draw.params))
            except UserError as error:
                self.refused[draw.number] = f"draw {draw.number}: {error}"
        return self.drawn[draw.number]

    def plan(self, values: dict[str, Any]) -> list[Cell]:
        """The cells of drawn values."""
        return plan_cells(expand(self.spec, values), self.spec.name)

    def cells(self) -> Sequence[Cell]:
        return [cell for draw in self._draws() for cell in self.cells_of(draw)]

    # ---- running them

    def open_cells(self) -> Iterator[tuple[Cell, Look | None]]:
        seen: set[int] = set()
        while True:
            for draw in self._draws(TrialState.RUNNING):
                if draw.number not in seen:
                    yield from self._next(draw)
                seen.add(draw.number)
            if not self._draw():
                return

    def _next(self, draw: FrozenTrial) -> Iterator[tuple[Cell, Look | None]]:
        """The cell that a draw has come to; none where it is over, which the study is told."""
        figures: list[float] = []
        for cell in self.cells_of(draw):
            status = self.state(cell).status
            if status == "done":
                result = read_json(self.folder / cell.id / RESULT)
                figures.append(result["dev"][cell.metric])
                continue
            if status == "pruned" and self.prunes:
                self._tell(draw, state=TrialState.PRUNED)
            elif status != "failed":
                trial, known = Trial(self.study, draw._trial_id), set(draw.intermediate_values)
                poor = partial(self._poor, cell, trial, figures, known)
                yield cell, poor if self.prunes else None
            return
        if figures:
            self._tell(draw, values=sum(figures) / len(figures))

    def _tell(self, draw: FrozenTrial, **outcome: Any) -> None:
        """Tell the study how a draw ended, which another worker may do at the same moment."""
        with suppress(UpdateFinishedTrialError):
            self.study.tell(draw.number, **outcome, skip_if_finished=True)

    def _poor(self, cell: Cell, trial: Trial, before: list[float], known: set[int]) -> bool:
        """Tell the study new dev figures of a running cell and ask its pruner.

        before: figures of the draw's earlier cells; all its cells count on one axis of steps.
        known: steps that the study has a figure of.
        """
        told = len(known)
        for row in read_jsonl(self.folder / cell.id / METRICS):
            step = len(before) * cell.steps + int(row.get("step", 0))
            on_dev = str(row.get("split", "")).startswith("dev") and cell.metric in row
            if on_dev and step not in known:
                known.add(step)
                trial.report((sum(before) + row[cell.metric]) / (len(before) + 1), step)
        return len(known) > told and trial.should_prune()

    # ---- what became of them

    def tally(self) -> Counter[str]:
        return Counter(self._status(draw) for draw in self._draws())

    def _status(self, draw: FrozenTrial) -> str:
        """Of a draw: failed where one of its cells is, started where one is."""
        if draw.state in FINISHED:
            return FINISHED[draw.state]
        statuses = [self.state(cell).status for cell in self.cells_of(draw)] or ["failed"]
        return next((one for one in ("failed", "started") if one in statuses), "waiting")

    def failures(self) -> list[str]:
        return [*super().failures(), *self.refused.values()]

    def best(self) -> str:
        if not self._draws(TrialState.COMPLETE):
            return ""
        values = self.search.values(self.study.best_params)
        drawn = ", ".join(f"{key}={value}" for key, value in values.items())
        return f"best on dev: {self.study.best_value:.2f} with {drawn}"
