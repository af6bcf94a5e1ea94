"""Two or more processes in one folder: one owns it, the others are told who does."""

import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from stress.ground import Ended, Ground, Trial, differences

AT_ONCE = 3


def races(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """Started together; beside one that trains; after one that was killed."""
    yield _together(ground, rng.choice([["-a"], [], ["--overwrite"]]))
    for flags in ([], ["-a"], ["--overwrite"]):
        yield _beside(ground, rng, flags)
    yield _after_a_kill(ground, rng)


def _told(ended: Ended, owner: int | None = None) -> str:
    """What is wrong with how one of them was refused."""
    if ended.refusal:
        return ended.refusal
    process = r"process" if owner is None else f"process {owner}"
    if f"in use by {process}" in ended.said and socket.gethostname() in ended.said:
        return ""
    return ended.tail


def _together(ground: Ground, flags: list[str]) -> Trial:
    folder = ground.new("together")
    running = [ground.start(ground.train(folder, *flags)) for _ in range(AT_ONCE)]
    ended = [each.must_end() for each in running]
    owners = [each for each in ended if each.code == 0]
    problem = "" if len(owners) == 1 else f"{len(owners)} of {AT_ONCE} ended well"
    for each in ended:
        if each.code != 0:
            problem = problem or _told(each)
    what = " ".join(["together:", *[f"{AT_ONCE} x train", *flags]])
    return Trial(what, problem or differences(ground.reference(), folder))


def _beside(ground: Ground, rng: random.Random, flags: list[str]) -> Trial:
    folder = ground.new("beside")
    first = ground.start(ground.train(folder, runner__save_step=2))
    first.wait_for(folder / "metrics.jsonl")
    time.sleep(rng.uniform(0, 0.1))
    second = ground.run(ground.train(folder, *flags, runner__save_step=2))
    done = first.must_end()
    problem = done.tail if done.code else ""
    holds = not flags and "holds an experiment" in second.said  # seen before the lock was
    if not problem and not holds:
        problem = _told(second, first.pid)
    problem = problem or _same_rows(ground.reference(), folder)
    return Trial(" ".join(["train beside train", *flags]), problem)


def _same_rows(one: Path, other: Path) -> str:
    rows = [(folder / "metrics.jsonl").read_text() for folder in (one, other)]
    return "" if rows[0] == rows[1] else f"metrics are mixed:\n{rows[1]}"


def _after_a_kill(ground: Ground, rng: random.Random) -> Trial:
    """With processes that load data, which outlive their parent for seconds."""
    folder, workers = ground.new("dead"), rng.choice([0, 2])
    key = {"downstream_expert__datarc__num_workers": workers}
    argv = ground.train(folder, "-a", **key)
    first = ground.start(argv)
    first.wait_for(folder / "metrics.jsonl")
    time.sleep(rng.uniform(0, 0.2))
    first.kill()
    assert first.pid != os.getpid()
    ended = ground.run(argv)
    problem = ended.tail if ended.code else _same_rows(ground.reference(), folder)
    return Trial("dead owner's lock taken over", problem)
