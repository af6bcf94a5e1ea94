"""Damaged, foreign and missing files of an experiment: each is noticed, and one message says so."""

import copy
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from s3prl_varan.errors import UserError
from s3prl_varan.training.checkpoint import load_checkpoint, save_checkpoint, states_of
from stress.disk import stopped
from stress.ground import Ended, Ground, Trial, copy_of, differences

FLIPS, CUTS, FIELDS = 60, 6, 4  # a round
WRONG: list[Any] = [None, 7, -1, "word", [], {}, [1, 2], {"word": 1}, float("nan"), True]


def damage(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """Bits, ends, fields and names."""
    kind = rng.choice(list(ground.kinds))
    reference = ground.reference(kind)
    paths = [reference / "dev-best.ckpt", *states_of(reference)]
    yield from _flipped(ground, rng, paths)
    yield from _cut(ground, rng, paths)
    yield from _fields(ground, rng, kind)
    yield _strays(ground, rng, kind)
    yield _newest_damaged(ground, rng, kind)
    yield _best_missing(ground, rng, kind)


def noticed(path: Path) -> str:
    """What is wrong with how a damaged checkpoint is read."""
    try:
        load_checkpoint(path)
    except UserError as error:
        return "" if str(path) in str(error) else f"not named: {error}"
    except Exception as error:  # noqa: BLE001 (the failure that is looked for)
        return f"{type(error).__name__}: {error}"
    return "read as if nothing were"


def _flipped(ground: Ground, rng: random.Random, paths: list[Path]) -> Iterator[Trial]:
    for _ in range(FLIPS):
        source = rng.choice(paths)
        data, bit = bytearray(source.read_bytes()), rng.randrange(8 * source.stat().st_size)
        data[bit // 8] ^= 1 << bit % 8
        path = ground.new("flipped")
        path.write_bytes(data)
        problem = noticed(path)
        path.unlink()
        yield Trial("one bit flipped", problem and f"bit {bit} of {source.name}: {problem}")


def _cut(ground: Ground, rng: random.Random, paths: list[Path]) -> Iterator[Trial]:
    for _ in range(CUTS):
        source = rng.choice(paths)
        length = rng.choice([0, 1, source.stat().st_size - 1, rng.randrange(source.stat().st_size)])
        path = ground.new("cut")
        path.write_bytes(source.read_bytes()[:length])
        problem = noticed(path)
        path.unlink()
        yield Trial("file cut off", problem and f"{source.name} at {length}: {problem}")


def _fields(ground: Ground, rng: random.Random, kind: str) -> Iterator[Trial]:
    """A checkpoint, right by its checksum, that lacks a field or has another thing there."""
    reference = ground.reference(kind)
    whole = torch.load(states_of(reference)[-1], weights_only=True)
    for _ in range(FIELDS):
        folder = copy_of(reference, ground.new("fields"))
        (folder / "result.json").unlink()
        payload, source = copy.deepcopy(whole), states_of(folder)[-1]
        what = mutate(payload, rng)
        save_checkpoint(source, payload)
        call = rng.choice(["evaluate", "train"])
        ended = ground.run(["-m", call, "-e", str(source), *_named(ground, kind)])
        yield Trial("field missing or wrong", _clear(ended) and f"{call}, {what}: {ended.tail}")


def _named(ground: Ground, kind: str) -> list[str]:
    """What the command line must name besides a checkpoint."""
    return ["-u", ground.fixed, "--device", "cpu"] if kind == "frozen" else ["--device", "cpu"]


def _clear(ended: Ended) -> str:
    """What is wrong with how a command ended that may work or refuse."""
    return "" if ended.code == 0 and "Traceback" not in ended.said else ended.refusal


def mutate(payload: dict[str, Any], rng: random.Random) -> str:
    """Drop or replace a field, perhaps an inner one; what was done."""
    at, names = payload, []
    while True:
        key = rng.choice(list(at))
        names.append(str(key))
        if isinstance(at[key], dict) and at[key] and rng.random() < 0.6:
            at = at[key]
            continue
        break
    if rng.random() < 0.4:
        del at[key]
        return f"no {'.'.join(names)}"
    at[key] = rng.choice([*WRONG, torch.zeros(2, 3)])
    return f"{'.'.join(names)} = {at[key]!r}"


def _strays(ground: Ground, rng: random.Random, kind: str) -> Trial:
    folder = ground.new("strays")
    argv = stopped(ground, rng, kind, folder)
    names = ["states-x.ckpt", "states-99.ckpt.bak", "states-²²².ckpt", "states-99-1.ckpt",
             "states-.ckpt", "my-states-99.ckpt"]  # fmt: skip
    for name in names:
        (folder / name).write_bytes(b"nothing of ours")
    ended = ground.run(argv)
    kept = [name for name in names if (folder / name).exists()]
    for name in kept:
        (folder / name).unlink()
    problem = ended.tail if ended.code else differences(ground.reference(kind), folder)
    return Trial("stray names", problem or ("" if kept == names else f"kept only {kept}"))


def _newest_damaged(ground: Ground, rng: random.Random, kind: str) -> Trial:
    """The one before is offered, and leads to the same end."""
    folder = copy_of(ground.reference(kind), ground.new("newest"))
    (folder / "result.json").unlink()
    older, newest = states_of(folder)
    data = bytearray(newest.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    newest.write_bytes(data)
    argv = ground.train(folder, "-a", kind=kind)
    ended = ground.run(argv)
    problem = ended.refusal
    if not problem and not (str(older) in ended.said and f"remove {newest}" in ended.said):
        problem = f"does not offer {older.name}: {ended.tail}"
    newest.unlink()
    ended = ground.run(argv)
    if not problem:
        problem = ended.tail if ended.code else differences(ground.reference(kind), folder)
    return Trial("newest states damaged", problem)


def _best_missing(ground: Ground, rng: random.Random, kind: str) -> Trial:
    """Said before the first step, with everything as it was."""
    folder = ground.new("best")
    shutil.copytree(ground.reference(kind), folder)
    for name in ("result.json", "dev-best.ckpt", states_of(folder)[-1].name):
        (folder / name).unlink()
    before = (folder / "metrics.jsonl").read_bytes()
    ended = ground.run(ground.train(folder, "-a", kind=kind))
    problem = ended.refusal
    if not problem and "dev-best.ckpt" not in ended.said.rpartition("error: ")[2]:
        problem = ended.tail
    if not problem and (folder / "metrics.jsonl").read_bytes() != before:
        problem = "metrics.jsonl was changed before the refusal"
    return Trial("dev-best.ckpt missing", problem)
