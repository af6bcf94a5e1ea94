"""The work folder of a stress run, commands in processes of their own, and comparing folders."""

import fcntl
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from s3prl_varan.app.cli import main
from stress.tiny import write_corpus, write_fixed, write_wavlm

SCRIPT = Path(__file__).resolve().parents[1] / "run_downstream.py"
LATE = 120  # seconds after which a command hangs
DATA = "config.downstream_expert.datarc"
STEPS, SAVE = 24, 3
OVERRIDES = {
    f"{DATA}.train_batch_size": 8,
    f"{DATA}.eval_batch_size": 16,
    "config.runner.gradient_accumulate_steps": 1,
    "config.runner.total_steps": STEPS,
    "config.runner.eval_step": 6,
    "config.runner.save_step": SAVE,
    "config.runner.log_step": 2,
    "config.runner.max_keep": 2,
    "config.runner.eval_dataloaders": "[dev]",
    "config.optimizer.lr": 0.01,
}
WARM = (
    "s3prl_varan.app.run",
    "s3prl.upstream.wavlm.expert",
    "sklearn.metrics",
    "torch._dynamo",
    "matplotlib.pyplot",
)
VOLATILE = re.compile(r"events\.out.*|\.lock|cache")  # files that no promise is about


@dataclass(frozen=True)
class Trial:
    """Something tried. problem: how a promise was broken, "" where it held."""

    what: str
    problem: str = ""
    count: int = 1


Section = Callable[["Ground", random.Random], Iterator[Trial]]  # a round of trials


@dataclass
class Ended:
    """A command that has ended. code: exit status, -N of signal N; None: it hung."""

    code: int | None
    said: str  # stdout and stderr

    @property
    def refusal(self) -> str:
        """What is wrong with it as a refusal: one message, no traceback; "" for nothing."""
        errors = len(re.findall(r"(?:^|\r)error: ", self.said, re.MULTILINE))  # after a bar, too
        if self.code == 2 and errors == 1 and "Traceback" not in self.said:
            return ""
        return f"ended with {self.code}, {errors} messages: {self.tail}"

    @property
    def tail(self) -> str:
        """The end of what it said."""
        return self.said.strip()[-1500:]


class Running:
    """A command in a process of its own. output: what it says can be read there."""

    def __init__(self, pid: int, output: int):
        self.pid, self.output = pid, output

    def said(self) -> str:
        """What it has said, for the last time."""
        os.set_blocking(self.output, False)
        with open(self.output, "rb") as file:
            return (file.read() or b"").decode(errors="replace")

    def end(self, after: float = LATE) -> Ended | None:
        """How it ended; None where it still runs after so many seconds."""
        until = time.monotonic() + after
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), self.said())
            if time.monotonic() >= until:
                return None
            time.sleep(0.002)

    def must_end(self) -> Ended:
        """How it ended; code None where it had to be killed for taking too long."""
        ended = self.end()
        if ended is None:
            return Ended(None, f"took more than {LATE} s\n{self.kill().said}")
        return ended

    def kill(self) -> Ended:
        """SIGKILL, if it has not ended before."""
        self.send(signal.SIGKILL)
        ended = self.end()
        assert ended is not None
        return ended

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def wait_for(self, path: Path) -> None:
        """Until a file is there, or the command has ended (its status can still be asked for)."""
        until = time.monotonic() + LATE
        while not path.exists() and time.monotonic() < until:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.002)


class Ground:
    """Corpus, upstreams and finished runs to compare with, in a folder."""

    def __init__(self, folder: Path):
        for name in WARM:  # once, not in every process that is forked
            importlib.import_module(name)
        self.folder = folder.resolve()
        self.corpus = write_corpus(self.folder / "corpus")
        self.fixed = write_fixed(self.folder / "fixed.py")
        self.wavlm = write_wavlm(self.folder / "wavlm.pt")
        local = ["-u", "wavlm_local", "-k", self.wavlm]
        self.kinds: dict[str, tuple[list[str], dict[str, Any]]] = {
            "frozen": (["-u", self.fixed], {}),
            "lora": ([*local, "--lora"], {"config.lora.dropout": 0.1}),
            "finetune": ([*local, "--upstream_trainable"], {}),
            "masking": ([*local, "--upstream_trainable"], {"config.upstream.masking": True}),
        }
        self._count, self._made = 0, list[Path]()

    def new(self, name: str) -> Path:
        """A place that is not taken yet, until `clear`."""
        self._count += 1
        self._made.append(self.folder / f"{name}-{self._count}")
        return self._made[-1]

    def clear(self) -> None:
        """Remove what lies at the places of `new`."""
        for path in self._made:
            for found in path.parent.glob(f"{path.name}*"):
                shutil.rmtree(found) if found.is_dir() else found.unlink()
        self._made = []

    def train(self, folder: Path, *flags: str, kind: str = "frozen", **more: Any) -> list[str]:
        """The command line of a short training. more: keys of the config, __ for a dot."""
        given, changes = self.kinds[kind]
        changed = {f"config.{key.replace('__', '.')}": value for key, value in more.items()}
        place = {f"{DATA}.root": self.corpus, f"{DATA}.meta_data": self.corpus / "meta_data"}
        settings = {**place, **OVERRIDES, **changes, **changed}
        override = ",,".join(f"{key}={value}" for key, value in settings.items())
        run = [*given, "-d", "emotion", "-f", "varan", "--device", "cpu", "-p", str(folder)]
        return [*run, "-o", override, *flags]

    def reference(self, kind: str = "frozen") -> Path:
        """The folder of a run of this kind that nothing befell; it is run when first asked for."""
        folder = self.folder / f"reference-{kind}"
        if not folder.exists():
            ended = self.run(self.train(folder, kind=kind))
            assert ended.code == 0, ended.said
        return folder

    def start(self, argv: list[str], *, script: bool = False, file_size: int = 0) -> Running:
        """Start a command: forked from this process, which has imported all, or as a script.

        file_size: the most bytes that a file of its may have (ulimit -f).
        """
        output, told = os.pipe()  # not a file: its size would be limited too
        fcntl.fcntl(told, fcntl.F_SETPIPE_SZ, 1 << 20)
        if script:
            command = [sys.executable, str(SCRIPT), *argv]
            process = subprocess.Popen(command, stdout=told, stderr=told, cwd=self.folder)
            process.returncode = 0  # we wait for it ourselves
        pid = process.pid if script else os.fork()
        if pid == 0:
            code = 70
            try:
                code = self._in_child(argv, told, file_size)
            finally:
                os._exit(code)
        os.close(told)
        return Running(pid, output)

    def _in_child(self, argv: list[str], told: int, file_size: int) -> int:
        import traceback

        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(0)
        os.chdir(self.folder)
        for number in (1, 2):
            os.dup2(told, number)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        try:
            return main(argv)
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            return 1

    def run(self, argv: list[str], **how: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(argv, **how).must_end()


def differences(one: Path, other: Path) -> str:
    """How the files of two experiments differ, "" where they are the same to the bit."""
    names = [{p.name for p in folder.iterdir() if not VOLATILE.fullmatch(p.name)}
             for folder in (one, other)]  # fmt: skip
    if names[0] != names[1]:
        return f"files differ: {sorted(names[0] ^ names[1])}"
    different = [name for name in sorted(names[0]) if not _same(one / name, other / name)]
    return f"contents differ: {different}" if different else ""


def _same(one: Path, other: Path) -> bool:
    if one.suffix == ".ckpt":  # torch numbers its storages as they lie in memory
        return same(*(torch.load(path, weights_only=True) for path in (one, other)))
    if one.name == "result.json":
        first, second = (json.loads(path.read_text()) for path in (one, other))
        return {**first, "seconds": 0} == {**second, "seconds": 0}
    return one.read_bytes() == other.read_bytes()


def same(one: Any, other: Any) -> bool:
    """Are two values the same to the bit?"""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def unfinished(folder: Path) -> list[str]:
    """Partial files that were left in it."""
    return [path.name for path in folder.glob(".*.tmp*")]


def copy_of(folder: Path, to: Path) -> Path:
    """An experiment folder as if it had been written elsewhere."""
    shutil.copytree(folder, to)
    return to
