"""A full disk: one message, no partial file, older checkpoints as they were, exact afterwards."""

import math
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3prl_varan.training.checkpoint import damage, states_of
from stress.ground import Ended, Ground, Trial, differences, unfinished


def disk(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """A limit on file sizes (ulimit -f), and a file system that fills up (where we may mount)."""
    kind = rng.choice(["frozen", "finetune"])
    yield _limited(ground, rng, kind)
    size = max(path.stat().st_size for path in states_of(ground.reference(kind)))
    place = ground.new("small")
    with _mounted(place, 6 * size + (1 << 18)) as mounted:
        if mounted:
            yield _filled(ground, rng, kind, place, size)


def stopped(ground: Ground, rng: random.Random, kind: str, folder: Path) -> list[str]:
    """A run that was stopped between its steps with something saved; its command line, with -a."""
    argv = ground.train(folder, "-a", kind=kind)
    running = ground.start(argv)
    running.wait_for(folder / "states-3.ckpt")
    time.sleep(rng.uniform(0, 0.2))
    running.send(signal.SIGUSR1)
    running.must_end()
    (folder / "result.json").unlink(missing_ok=True)
    return argv


def _limited(ground: Ground, rng: random.Random, kind: str) -> Trial:
    folder = ground.new("limited")
    argv = stopped(ground, rng, kind, folder)
    size = states_of(ground.reference(kind))[-1].stat().st_size
    limit = int(math.exp(rng.uniform(math.log(100), math.log(size - 1))))
    before = _digests(folder)
    ended = ground.run(argv, file_size=limit)
    problem = _refused(ended, folder, before) or _goes_on(ground, argv, kind, folder)
    return Trial("ulimit -f", problem and f"at {limit} bytes: {problem}")


def _filled(ground: Ground, rng: random.Random, kind: str, place: Path, size: int) -> Trial:
    folder = place / "run"
    argv = stopped(ground, rng, kind, folder)
    before = _digests(folder)
    left = rng.randrange(size)
    _fill(place / "ballast", left)
    ended = ground.run(argv)
    problem = _refused(ended, folder, before)
    (place / "ballast").unlink()
    problem = problem or _goes_on(ground, argv, kind, folder)
    return Trial("full file system", problem and f"{left} bytes left: {problem}")


def _fill(path: Path, left: int) -> None:
    """Take all space of a file system but so many bytes."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - left))


def _digests(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in states_of(folder)}


def _refused(ended: Ended, folder: Path, before: dict[Path, bytes]) -> str:
    """What is wrong with how a run ended whose disk was full."""
    if ended.refusal:
        return ended.refusal
    if not re.search(r"no room to write|[\d,]+ bytes were written", ended.said):
        return f"does not say what was wrong: {ended.tail}"
    if str(folder.parent) not in ended.said.rpartition("error: ")[2]:
        return f"does not name the file: {ended.tail}"
    if unfinished(folder):
        return f"left {unfinished(folder)}"
    broken = [path.name for path in states_of(folder) if damage(path)]
    changed = [path.name for path, data in before.items()
               if path.exists() and path.read_bytes() != data]  # fmt: skip
    if broken or changed or not states_of(folder):
        return f"damaged {broken}, changed {changed}, there are {states_of(folder)}"
    return ""


def _goes_on(ground: Ground, argv: list[str], kind: str, folder: Path) -> str:
    ended = ground.run(argv)
    return differences(ground.reference(kind), folder) if ended.code == 0 else ended.tail


@contextmanager
def _mounted(place: Path, size: int) -> Iterator[bool]:
    """A file system of `size` bytes at `place`; False where we may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
