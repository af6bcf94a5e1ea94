"""Killed and interrupted runs: they go on, and end where an uninterrupted run does, to the bit."""

import random
import signal
import time
from collections.abc import Iterator

from s3prl_varan.training.checkpoint import states_of
from stress.ground import Ground, Trial, differences, unfinished

KILLS = 5  # of a run, then it may end
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def kills(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """SIGKILL at random moments, then -a, until it is done."""
    for kind in ground.kinds:
        reference = ground.reference(kind)
        folder, argv, lived = ground.new(f"killed-{kind}"), [], 0
        for _ in range(KILLS):
            argv = ground.train(folder, "-a", kind=kind)
            running = ground.start(argv)
            if rng.random() < 0.7:  # else at any moment, before training too
                running.wait_for(folder / "metrics.jsonl")
            ended = running.end(after=rng.uniform(0, 1.5))
            if ended is not None:
                break
            running.kill()
            lived += 1
        ended = ground.run(argv)
        problem = differences(reference, folder) if ended.code == 0 else ended.tail
        yield Trial(f"SIGKILL, {kind}", problem, lived)


def signals(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """A signal saves at the next step; the exit status and a message say so; -a goes on."""
    for number in SIGNALS:
        kind = rng.choice(list(ground.kinds))
        folder = ground.new("stopped")
        argv = ground.train(folder, "-a", kind=kind)
        running = ground.start(argv, script=rng.random() < 0.1)
        running.wait_for(folder / "metrics.jsonl")
        time.sleep(rng.uniform(0, 0.3))
        running.send(number)
        ended = running.must_end()
        problem = _stopped(ended, number, folder)
        again = ground.run(argv)
        if not problem and again.code != 0:
            problem = again.tail
        yield Trial(f"{number.name} while training", problem or differences(
            ground.reference(kind), folder))  # fmt: skip
    yield _early(ground, rng)


def _stopped(ended, number: int, folder) -> str:
    """What is wrong with how a run was stopped."""
    if ended.code == 0 and (folder / "result.json").exists():
        return ""  # it was over before the signal came
    if ended.code != 128 + number or "Traceback" in ended.said:
        return f"ended with {ended.code}: {ended.tail}"
    name = signal.Signals(number).name
    if f"stopped by {name}" not in ended.said or "-a" not in ended.said:
        return f"does not say what to do: {ended.tail}"
    if unfinished(folder):
        return f"left {unfinished(folder)}"
    if f"stopped by {name} at step" in ended.said:
        step = int(ended.said.rpartition(" at step ")[2].split(",")[0])
        steps = [int(path.stem.split("-")[1]) for path in states_of(folder)]
        return "" if step in steps else f"says step {step}, has states of {steps}"
    return ""


def _early(ground: Ground, rng: random.Random) -> Trial:
    """Before the first step: nothing is saved yet, and the message says that."""
    number = rng.choice(SIGNALS)
    folder = ground.new("stopped")
    running = ground.start(ground.train(folder, "-a"))
    running.wait_for(folder / ".lock")
    running.send(number)
    ended = running.must_end()
    problem = _stopped(ended, number, folder)
    if not problem and "at step" not in ended.said and "nothing was saved" not in ended.said:
        problem = ended.tail
    return Trial("any of them before the first step", problem)
