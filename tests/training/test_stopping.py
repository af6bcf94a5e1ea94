"""Signals: a run is saved at its next step and says how to go on; elsewhere a command just ends."""

import json
import os
import random
import signal

import numpy as np
import pytest
import torch

from s3prl_varan.app import run as app_run
from s3prl_varan.app.cli import main
from s3prl_varan.training.artifacts import Artifacts
from s3prl_varan.training.loop import Trainer
from s3prl_varan.training.stopping import SIGNALS, Interrupted, StopRequests, ending_by_signal


def handlers():
    return [signal.getsignal(each) for each in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_second_interrupts(number):
    before = handlers()
    with pytest.raises(Interrupted) as told, StopRequests() as requests:
        os.kill(os.getpid(), number)
        assert requests.received == number
        os.kill(os.getpid(), number)
    assert told.value.number == number and "nothing was saved since" in str(told.value)
    assert handlers() == before


def test_whoever_had_a_handler_before_hears_of_it():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with StopRequests() as requests:
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        requests.hand_on()
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    with ending_by_signal():
        with StopRequests() as requests:
            os.kill(os.getpid(), signal.SIGTERM)
        requests.hand_on()  # the command's own: it raises nothing, the run says where it stopped


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_the_steps_a_command_says_that_nothing_was_saved(number, monkeypatch, capsys):
    before = handlers()
    monkeypatch.setattr(app_run, "run", lambda args: os.kill(os.getpid(), number))
    assert main(["-m", "evaluate", "-e", "somewhere"]) == 128 + number
    said = capsys.readouterr().err
    assert f"stopped by {number.name} between steps: nothing was saved" in said and "-a" in said
    assert handlers() == before


@pytest.mark.parametrize("number, step", zip(SIGNALS, (11, 20, 40), strict=True))
def test_a_stopped_run_goes_on_exactly(number, step, emotion_args, tmp_path, monkeypatch, capsys):
    """Between logs, at a checkpoint, at the last step (which is followed by the end)."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    keep = {"config.runner.max_keep": 9}
    assert main([str(arg) for arg in emotion_args("varan", "-p", whole, **keep)]) == 0
    train_step = Trainer._step

    def stopping(self):
        if self.step + 1 == step:
            os.kill(os.getpid(), number)
        return train_step(self)

    monkeypatch.setattr(Trainer, "_step", stopping)
    args = [str(arg) for arg in emotion_args("varan", "-p", parts, "-a", **keep)]
    capsys.readouterr()
    code, said = main(args), capsys.readouterr().err
    monkeypatch.undo()
    if step < 40:
        assert code == 128 + number and not (parts / "result.json").exists()
        assert f"stopped by {number.name} at step {step}, saved in {parts}" in said
        assert (
            "the same command with -a goes on" in said and (parts / f"states-{step}.ckpt").exists()
        )
        code = main(args)
    assert code == 0
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    a, b = (torch.load(each / "states-40.ckpt", weights_only=True) for each in (whole, parts))
    for part in ("Featurizer", "Downstream"):
        assert all(b[part][key].equal(value) for key, value in a[part].items())
    assert a["Random"]["python"] == b["Random"]["python"]
    results = [json.loads((each / "result.json").read_text()) for each in (whole, parts)]
    assert results[0]["test"] == results[1]["test"]


def test_what_logs_and_evaluations_draw_does_not_count(emotion_args, tmp_path, monkeypatch):
    """sklearn does when it is imported, by the first log of a process."""
    write, states = Artifacts.write_metrics, []

    def drawing(self, *args, **more):
        random.random(), np.random.rand(), torch.rand(1)
        write(self, *args, **more)

    for number in (1, 2):
        four = {"config.runner.total_steps": 4, "config.runner.log_step": 1}
        folder = tmp_path / f"{number}"
        assert main([str(arg) for arg in emotion_args("varan", "-p", folder, **four)]) == 0
        states.append(torch.load(folder / "states-4.ckpt", weights_only=True)["Random"])
        monkeypatch.setattr(Artifacts, "write_metrics", drawing)
    assert states[0]["torch"].equal(states[1]["torch"])
    assert states[0]["python"] == states[1]["python"]
    assert states[0]["numpy"][1].equal(states[1]["numpy"][1])
    assert states[0]["numpy"][2:] == states[1]["numpy"][2:]
