"""One sweep shared by any number of workers, through Optuna's storage: who runs what, what is done, what has to be done again.

A trial is one piece of work: a cell of a grid, or a draw of a search. What happened to it stands in its state and attributes:
    key    the cell's id, or a hash of the drawn values     owner  who runs it     beat   a counter its owner raises
    end    done | crashed | user_error | released | duplicate | unclaimed; a failed trial without it was lost with its owner
Whatever is planned and has no waiting, running or complete trial is enqueued anew, so nothing is lost whoever dies; of two
running trials with one key the later gives way, so nothing runs twice.
"""

import hashlib
import json
import os
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from s3prl_varan.errors import UserError
from s3prl_varan.sweep.spec import Distribution, Spec

RETRIES = 1  # of a crashed or lost piece of work
ALIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


def machine() -> str:
    """A name for this machine and its process numbers: containers may share the first, but not both."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text()[:8],
        lambda: os.readlink("/proc/self/ns/pid").strip("pid:[]"),
    ):
        try:
            parts.append(read())
        except OSError:
            continue
    return "-".join(parts)


def open_study(
    url: str, name: str, higher_is_better: bool, spec: Spec | None = None
) -> optuna.Study:
    """The study of that name, made where there is none. `url`: a storage URL of Optuna, or the path of a journal file."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if "://" in url:
            storage: Any = url
        else:
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            storage = JournalStorage(JournalFileBackend(url))
        pruner = (
            optuna.pruners.MedianPruner()
            if spec and spec.pruner == "median"
            else optuna.pruners.NopPruner()
        )
        direction = StudyDirection.MAXIMIZE if higher_is_better else StudyDirection.MINIMIZE
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction=direction,
            pruner=pruner,
        )
    except Exception as error:
        raise UserError(
            f"--storage {url}: cannot be used ({type(error).__name__}: {error})."
        ) from error
    seed = (
        None
        if spec is None or spec.seed is None
        else spec.seed + len(study.get_trials(deepcopy=False))
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def key_of(content: Any) -> str:
    """A short hash of plain values: the key of a draw, the mark of a plan."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :12
    ]


@dataclass
class Tally:
    """Where the study stands."""

    total: int
    done: int
    pruned: int
    running: int
    failed: int  # given up


class SharedStudy:
    """This process's hold on the study. `keys`: the cells of a grid; empty for a search, which has `spec.trials` draws."""

    def __init__(
        self, study: optuna.Study, keys: list[str], spec: Spec | None = None, stale: float = 60.0
    ):
        self.study, self.keys, self.stale = study, keys, stale
        self.space: dict[str, Distribution] = spec.space if spec else {}
        self.trials = spec.trials if spec else 0
        self.place, self.pid = machine(), os.getpid()
        self.lock = threading.RLock()
        self.held: dict[int, Trial] = {}  # by number
        self.lost: set[int] = set()  # taken from us: we were thought dead
        self.seen: dict[
            int, tuple[int, float]
        ] = {}  # number -> last beat of another's trial, and when it changed
        self.beats = 0

    # ---- taking work

    def claim(self) -> Trial | None:
        """A piece of work, ours from now on; None where none is waiting (see `over`)."""
        with self.lock:
            self._reconcile()
            while True:
                waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
                if not waiting and not self._room():
                    return None
                trial = self.study.ask()
                self.held[trial.number] = trial
                trial.set_user_attr("owner", f"{self.place}:{self.pid}")
                if "key" not in trial.user_attrs:
                    if not self.space:  # another took the last waiting one in between
                        self.finish(trial, TrialState.FAIL, "unclaimed")
                        continue
                    drawn = self.draw(trial)
                    trial.set_user_attr("key", key_of(drawn))
                if not self._superfluous(trial):
                    return trial
                self.finish(trial, TrialState.FAIL, "duplicate")

    def _room(self) -> bool:
        """May a search draw again?"""
        return bool(self.space) and len(self._draws()) < self.trials

    def _draws(self) -> list[FrozenTrial]:
        """The trials of a search that count against its number: what failed counts, a second go at it does not."""
        trials = self.study.get_trials(deepcopy=False)
        return [
            one
            for one in trials
            if "key" in one.user_attrs and not {"again", "surplus"} & set(one.user_attrs)
        ]

    def draw(self, trial: Trial) -> dict[str, Any]:
        """The trial's values: drawn the first time, the same ever after."""
        drawn: dict[str, Any] = {}
        for key, one in self.space.items():
            if one.kind == "choice":
                drawn[key] = json.loads(
                    trial.suggest_categorical(key, [json.dumps(value) for value in one.values])
                )
            elif one.kind == "int":
                drawn[key] = trial.suggest_int(
                    key, *one.values, step=int(one.step or 1), log=one.log
                )
            else:
                drawn[key] = trial.suggest_float(key, *one.values, step=one.step, log=one.log)
        return drawn

    def _superfluous(self, trial: Trial) -> bool:
        """Is an earlier trial of the same key running or done, or did others fill the search while this one was drawn?"""
        if self.space and "again" not in trial.user_attrs:
            earlier = [draw for draw in self._draws() if draw.number < trial.number]
            if len(earlier) >= self.trials:
                trial.set_user_attr("surplus", True)
                return True
        key = trial.user_attrs["key"]
        alive = self.study.get_trials(
            deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        )
        return any(
            other.user_attrs.get("key") == key and other.number < trial.number for other in alive
        )

    # ---- ending it

    def finish(
        self,
        trial: Trial,
        state: TrialState,
        end: str,
        value: float | None = None,
        message: str = "",
    ) -> None:
        """Say how a piece of work ended. Says nothing where it was taken from us meanwhile."""
        with self.lock:
            self.held.pop(trial.number, None)
            if trial.number in self.lost:
                return
            try:
                trial.set_user_attr("end", end)
                if message:
                    trial.set_user_attr("message", message[:500])
                self.study.tell(trial, value, state=state)
            except (optuna.exceptions.OptunaError, ValueError, RuntimeError):
                self.lost.add(trial.number)

    def gives_up(self, trial: Trial) -> bool:
        """Would one more crash of this piece of work be one too many?"""
        key = trial.user_attrs.get("key")
        others = [
            other
            for other in self.study.get_trials(deepcopy=False)
            if other.user_attrs.get("key") == key
        ]
        return _failures(others) + 1 > RETRIES

    # ---- watching over the others

    def tend(self) -> None:
        """Call every few seconds: show that we live, take over from those who do not."""
        with self.lock:
            self.beats += 1
            for number, trial in list(self.held.items()):
                try:
                    trial.set_user_attr("beat", self.beats)
                except (optuna.exceptions.OptunaError, ValueError, RuntimeError):
                    self.lost.add(number)
                    self.held.pop(number)
            for other in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if other.number not in self.held and self._dead(other):
                    self.study.tell(other.number, state=TrialState.FAIL, skip_if_finished=True)

    def _dead(self, trial: FrozenTrial) -> bool:
        """Its process is gone from this machine, or its beat has not moved for `stale` seconds of our own clock."""
        place, _, pid = str(trial.user_attrs.get("owner", "")).rpartition(":")
        if place == self.place and pid.isdigit() and not _process_lives(int(pid)):
            return True
        beat, now = trial.user_attrs.get("beat", 0), time.monotonic()
        if self.seen.get(trial.number, (None, 0.0))[0] != beat:
            self.seen[trial.number] = (beat, now)
        return now - self.seen[trial.number][1] > self.stale

    def _reconcile(self) -> None:
        """Enqueue what is planned, or was drawn and lost, and has no trial that is alive, unless it was given up."""
        by_key = self._by_key()
        for key in dict.fromkeys([*self.keys, *(by_key if self.space else ())]):
            trials = by_key.get(key, [])
            if any(trial.state in ALIVE for trial in trials) or _given_up(trials):
                continue
            if self.space and all("surplus" in trial.user_attrs for trial in trials):
                continue
            self._enqueue(key, trials, forced=False)

    def _enqueue(self, key: str, trials: list[FrozenTrial], *, forced: bool) -> None:
        drawn = next((trial.params for trial in trials if trial.params), {})
        marks = {
            "key": key,
            **({"again": True} if trials else {}),
            **({"forced": True} if forced else {}),
        }
        self.study.enqueue_trial(drawn, user_attrs=marks)

    def _by_key(self) -> dict[str, list[FrozenTrial]]:
        by_key = defaultdict(list)
        for trial in self.study.get_trials(deepcopy=False):
            if "key" in trial.user_attrs:
                by_key[trial.user_attrs["key"]].append(trial)
        return by_key

    def retry_failed(self) -> int:
        """Enqueue once more what was given up. Returns how many."""
        with self.lock:
            given_up = {key: trials for key, trials in self._by_key().items() if _given_up(trials)}
            for key, trials in given_up.items():
                if not self.keys or key in self.keys:
                    self._enqueue(key, trials, forced=True)
            return len(given_up)

    def over(self) -> bool:
        """Is nothing left, neither waiting nor running anywhere?"""
        with self.lock:
            self._reconcile()
            return (
                not self.study.get_trials(
                    deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)
                )
                and not self._room()
            )

    def tally(self) -> Tally:
        """Counts over the whole study."""
        by_key = self._by_key()
        wanted = {key: by_key.get(key, []) for key in self.keys} if self.keys else by_key
        states = [{trial.state for trial in trials} for trials in wanted.values()]
        repeated = (
            [one for one in self._draws() if one.user_attrs.get("end") == "duplicate"]
            if self.space
            else []
        )
        return Tally(
            total=len(self.keys) or self.trials,
            done=sum(TrialState.COMPLETE in held for held in states) + len(repeated),
            pruned=sum(TrialState.PRUNED in held for held in states),
            running=sum(TrialState.RUNNING in held for held in states),
            failed=sum(_given_up(trials) for trials in wanted.values()),
        )

    def done_keys(self) -> set[str]:
        """Keys of all complete trials."""
        return {
            trial.user_attrs.get("key", "")
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        }

    def failures(self) -> dict[str, str]:
        """Key -> what the last failure said, of all that was given up."""
        return {
            key: _last_message(trials)
            for key, trials in self._by_key().items()
            if _given_up(trials)
        }


def _since_forced(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of one key since it was last given a fresh start."""
    starts = [trial.number for trial in trials if trial.user_attrs.get("forced")]
    return [trial for trial in trials if trial.number >= max(starts, default=0)]


def _failures(trials: list[FrozenTrial]) -> int:
    failed = [trial for trial in _since_forced(trials) if trial.state == TrialState.FAIL]
    return sum(trial.user_attrs.get("end") in (None, "crashed") for trial in failed)


def _given_up(trials: list[FrozenTrial]) -> bool:
    recent = _since_forced(trials)
    if any(trial.state in ALIVE for trial in recent):
        return False
    return _failures(recent) > RETRIES or any(
        trial.user_attrs.get("end") == "user_error" for trial in recent
    )


def _last_message(trials: list[FrozenTrial]) -> str:
    messages = [
        trial.user_attrs.get("message", "its worker was killed")
        for trial in trials
        if trial.state == TrialState.FAIL
    ]
    return messages[-1] if messages else ""


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
