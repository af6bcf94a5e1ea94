"""One process owns an experiment folder."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from s3prl_varan.app.cli import main
from s3prl_varan.files import held

HOLD = """
import os, sys, time
from pathlib import Path
from s3prl_varan.files import held
with held(Path(sys.argv[1])) as mine:
    assert mine
    if len(sys.argv) > 2 and os.fork() == 0:  # a process that loads data
        print(os.getpid(), flush=True)
        time.sleep(600)
    if len(sys.argv) == 2:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""
TWO_STEPS = {"config.runner.total_steps": 2}


@pytest.fixture
def owner():
    """Start a process that holds a folder; more: it forks another."""
    started, told = [], []

    def start(folder, *more):
        command = [sys.executable, "-c", HOLD, str(folder), *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        told.append(int(process.stdout.readline()))
        return process, told[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    for pid in told:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.mark.parametrize("flags", [[], ["-a"], ["--overwrite"]])
def test_a_folder_in_use_is_refused_until_its_owner_is_dead(
    flags, emotion_args, owner, tmp_path, capsys
):
    folder = tmp_path / "exp"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    process, pid = owner(folder)
    args = [str(arg) for arg in emotion_args("last_layer", "-p", folder, *flags, **TWO_STEPS)]
    assert main(args) == 2
    said = capsys.readouterr().err
    assert f"in use by process {pid} on {socket.gethostname()}" in said and "Traceback" not in said
    assert sorted(os.listdir(folder)) == [".lock", "metrics.jsonl"]
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1}\n'
    process.kill()
    process.wait()
    assert main(args) == 0
    assert str(os.getpid()) in (folder / ".lock").read_text()


def test_processes_that_load_data_hold_nothing_for_a_dead_owner(owner, tmp_path):
    process, loader = owner(tmp_path, "and fork")
    with held(tmp_path) as mine:
        assert not mine
    process.kill()
    process.wait()
    os.kill(loader, 0)  # lives on
    for _ in range(100):  # it has let go of its copy as soon as it has run at all
        with held(tmp_path) as mine:
            if mine:
                return
        time.sleep(0.02)
    pytest.fail("still held")


def test_what_a_killed_run_was_writing_is_removed(emotion_args, tmp_path):
    folder = tmp_path / "exp"
    folder.mkdir()
    partial = [folder / f".states-7.123.456.tmp{suffix}" for suffix in (".ckpt", ".csv")]
    for path in partial:
        path.write_bytes(b"half")
    (folder / ".mine").touch()
    args = emotion_args("last_layer", "-p", folder, **TWO_STEPS)
    assert main([str(arg) for arg in args]) == 0
    assert not any(path.exists() for path in partial) and (folder / ".mine").exists()


def test_one_process_of_several_owns_it_for_all(owner, tmp_path, monkeypatch):
    from s3prl_varan.app.run import only_one

    owner(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with only_one(tmp_path):  # the owner is rank 0
        pass
