"""Mutated configs: each works as it says, or is refused by one message that names the key.

Through the real resolve, and all that is built of a config before a corpus or an upstream is
touched. Some hold Python, to see whether anything evaluates it.
"""

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import yaml
from torch import nn

from s3prl_varan.app.cli import parse_args
from s3prl_varan.config.optimizer import build_optimizer, build_scheduler
from s3prl_varan.config.resolve import resolve
from s3prl_varan.errors import UserError
from stress.ground import Ground, Trial
from stress.mutations import BASES, CASES, cases

A_ROUND = 4  # of each base
DIM, HIDDEN, RATE = 24, 5, 320
HANGS = 30  # seconds
# What heads put out, where only a corpus would say.
OUTPUTS = {
    "emotion": ["angry", "happy", "neutral", "sad"],
    "classification": ["high", "low", "middle"],
    "ctc": ["<pad>", "<eos>", "<unk>", "a", "b"],
    "sv_voxceleb1": ["id10001", "id10002", "id10003"],
    "fluent_commands": {
        "action": ["bring", "increase"],
        "object": ["shoes", "volume", "heat"],
        "location": ["none", "kitchen"],
    },
}


def build(task: str, path: Path) -> None:
    """All that is made of a config before a corpus or an upstream is touched."""
    args = ["-u", "wavlm", "-d", task, "-f", "varan", "-c", str(path)]
    settings = resolve(parse_args(args))
    json.dumps(settings.stored())
    config = settings.config
    if task in OUTPUTS:
        settings.task.__dict__["outputs"] = OUTPUTS[task]
    featurizer = settings.featurizer.build(HIDDEN, DIM, config.featurizer, None)
    config.featurizer.objective(settings.task.released_nll)
    heads = settings.task.build_heads(DIM, featurizer.num_outputs, RATE, config.heads)
    assert isinstance(heads, nn.Module) and list(heads.parameters())
    parts = {"featurizer": featurizer, "downstream": nn.Linear(2, 2)}
    optimizer = build_optimizer(parts, config.optimizer)
    build_scheduler(optimizer, config.runner.total_steps, config.scheduler)


@contextmanager
def hang_guard() -> Iterator[None]:
    """What takes longer than HANGS raises."""

    def late(*_: object) -> None:
        raise AssertionError(f"a case took more than {HANGS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(task: str, path: Path, named: list[str]) -> tuple[str, str]:
    """ "works" or "refused", and what is wrong with how; named: names a refusal may have."""
    try:
        with hang_guard(), redirect_stdout(None), redirect_stderr(None):
            build(task, path)
    except UserError as error:
        said = str(error)
        if "Traceback" in said or 'File "' in said or "0x" in said:
            return "refused", f"not a message for people: {said}"
        here = any(each in said for each in named)
        return "refused", "" if here else f"the message does not name it: {said}"
    except Exception as error:  # noqa: BLE001 (any other is the failure that is looked for)
        return "failed", f"{type(error).__name__}: {error}"
    return "works", ""


def try_base(name: str, folder: Path, seed: object, count: int = CASES) -> tuple[Counter, list]:
    """So many mutations of a base: how they ended, and every problem."""
    trap, path = folder / "touched", folder / "config.yaml"
    bait = f"__import__('os').system('touch {trap}')"
    ends: Counter = Counter()
    problems = []
    for what, raw, named in cases(name, bait, seed, count):
        path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
        end, problem = outcome(BASES[name][0], path, named)
        if trap.exists():
            trap.unlink()
            problem = "ran code of the config"
        ends[end] += 1
        if problem:
            problems.append(f"{name}, {what}: {problem}")
    return ends, problems


def configs(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """Each base, a few cases."""
    folder = ground.new("configs")
    folder.mkdir()
    for name in BASES:
        ends, problems = try_base(name, folder, rng.random(), A_ROUND)
        yield Trial("mutated config", count=ends.total() - len(problems))
        yield from (Trial("mutated config", problem) for problem in problems)
