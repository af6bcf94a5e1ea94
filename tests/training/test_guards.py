"""What is not finite, or does not fit into memory, is said with the names of the clips."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_varan.app.cli import main
from s3prl_varan.errors import UserError
from s3prl_varan.model import SpeechModel
from s3prl_varan.training import guards
from s3prl_varan.upstream.wrapper import build_upstream
from tests.conftest import TINY

LOUD = """
import math, sys
sys.path.insert(0, {tests!r})
from tiny_expert import UpstreamExpert

class Fragile(UpstreamExpert):
    def forward(self, wavs):
        result = super().forward(wavs)
        for row, wav in enumerate(wavs):
            if wav.abs().max() > 0.9:
                result["hidden_states"][2][row] = math.nan
        return result

def fragile(**kwargs):
    return Fragile()
"""


@pytest.fixture
def fragile(tmp_path) -> str:
    """An upstream that makes NaN of loud clips."""
    path = tmp_path / "fragile.py"
    path.write_text(LOUD.format(tests=str(Path(TINY).parent)))
    return f"{path}:fragile"


@pytest.fixture
def loud_in(tone_corpus, tmp_path):
    """A copy of the tones with a loud clip in a split of fold1: its settings and the clip."""

    def make(split: str) -> tuple[dict, Path]:
        root = tmp_path / "corpus"
        shutil.copytree(tone_corpus, root)
        lists = root / "meta_data" / "Session1" / f"{split}_meta_data.json"
        clip = root / json.loads(lists.read_text())["meta_data"][3]["path"]
        soundfile.write(clip, np.full(8000, 0.99), 16000)
        data = {"root": root, "meta_data": root / "meta_data"}
        return {f"config.downstream_expert.datarc.{key}": data[key] for key in data}, clip

    return make


def refused(args, capsys) -> str:
    code = main([str(arg) for arg in args])
    err = capsys.readouterr().err
    assert code == 2, err[-2000:]
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_clip_that_becomes_nan_is_named(split, emotion_args, fragile, loud_in, tmp_path, capsys):
    settings, clip = loud_in(split)
    settings["config.runner.total_steps"] = 6  # an epoch, nearly
    settings["config.runner.eval_step"] = 3
    folder = tmp_path / "exp"
    args = emotion_args("varan", "-p", folder, upstream=fragile, **settings)
    err = refused(args, capsys)
    if split == "train":
        assert "Training diverged at step" in err and clip.stem in err.rpartition("error: ")[2]
    else:  # the one at fault
        assert f"output is not finite (NaN or infinity) for {clip.stem}. " in err
    assert not (folder / "result.json").exists()
    if split == "dev":
        assert not (folder / "dev-best.ckpt").exists()


def test_a_gradient_that_is_not_finite_names_the_clips_of_all_batches_of_the_step(
    emotion_args, tmp_path, capsys, monkeypatch
):
    original, calls = SpeechModel.forward, []

    def poisoned(self, wavs, targets):
        step = original(self, wavs, targets)
        calls.append(len(wavs))
        if len(calls) == 1:  # the loss is finite, its gradient is not
            step.terms.loss.register_hook(lambda grad: grad * torch.nan)
        return step

    monkeypatch.setattr(SpeechModel, "forward", poisoned)
    settings = {
        "config.runner.gradient_accumulate_steps": 2,
        "config.downstream_expert.datarc.train_batch_size": 3,
    }
    err = refused(emotion_args("varan", "-p", tmp_path / "exp", **settings), capsys)
    assert "gradient norm nan" in err and err.count("03-01-") == 6


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 65.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 65 bytes"),
    ],
)
def test_memory_that_runs_out_names_the_batch(
    training, error, emotion_args, tmp_path, capsys, monkeypatch
):
    original = SpeechModel.step

    def hungry(self, stack, targets):
        if self.training == training:
            raise error
        return original(self, stack, targets)

    monkeypatch.setattr(SpeechModel, "step", hungry)
    settings = {
        "config.runner.eval_step": 1,
        "config.downstream_expert.datarc.eval_batch_size": 8,
    }
    err = refused(emotion_args("varan", "-p", tmp_path / "exp", **settings), capsys)
    count = 16 if training else 8
    assert f"Out of memory on a batch of {count} clips of up to 0." in err
    assert "03-01-" in err
    for remedy in ("batch_size", "batch_by_length", "batch_seconds", "gradient_checkpointing"):
        assert remedy in err


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(RuntimeError, match="shapes") as raised,
        guards.naming_clips(["a"], [torch.zeros(1)]),
    ):
        raise RuntimeError("shapes do not fit")
    assert not isinstance(raised.value, UserError)


# ---- clips that can never fit

HALF_AN_HOUR = 1800 * 16000


def test_a_clip_too_long_for_the_memory_is_named_before_it_is_tried(monkeypatch):
    monkeypatch.setattr(guards, "total_memory", lambda device: 64_000_000_000)
    clips = [("short", 16000), ("talk", HALF_AN_HOUR), ("minute", 61 * 16000)]
    attention, cpu = build_upstream("micro_wavlm"), torch.device("cpu")
    random = torch.get_rng_state()
    with pytest.raises(UserError) as raised:
        guards.check_longest(attention, clips, cpu)
    assert torch.equal(torch.get_rng_state(), random)
    message = str(raised.value)
    assert "talk: 1800 s, at least 1" in message and "64 GB" in message
    assert "minute" not in message and "Cut them" in message
    guards.check_longest(build_upstream(TINY), clips, cpu)  # no attention: it grows with the length
    guards.check_longest(attention, clips[::2], cpu)
    monkeypatch.setattr(guards, "total_memory", lambda device: None)
    guards.check_longest(attention, clips, cpu)


@pytest.mark.parametrize("name", ["micro_wavlm", TINY])
def test_the_estimate_is_below_what_is_allocated(name):
    """So that nothing that fits is refused; and where attention is a matrix, not far below."""
    upstream, samples = build_upstream(name), 40 * 16000
    need = guards.bytes_needed(upstream, torch.device("cpu"))(samples)
    with torch.no_grad(), guards._Sizes() as seen:
        states = upstream([torch.zeros(samples)]).layers
    kept = sum(each.nbytes for each in states)
    allocated = max(seen.sizes) + kept
    assert 0.9 * kept < need <= allocated
    if name == "micro_wavlm":
        assert need > 0.5 * allocated


def test_no_memory_is_known_on_other_systems(monkeypatch):
    assert guards.total_memory(torch.device("cpu")) > 1e8

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(guards.os, "sysconf", unknown)
    assert guards.total_memory(torch.device("cpu")) is None


# ---- inference


@pytest.fixture
def trained(emotion_args, fragile, tmp_path, capsys) -> list[str]:
    """-m inference with a small experiment, all but -t."""
    steps = {"config.runner.total_steps": 2}
    folder = tmp_path / "exp"
    args = emotion_args("varan", "-p", folder, upstream=fragile, **steps)
    assert main([str(arg) for arg in args]) == 0
    capsys.readouterr()
    return ["-m", "inference", "-e", str(folder), "-u", fragile, "--device", "cpu", "-t"]


def test_inference_refuses_what_is_not_finite(trained, tone_corpus, tmp_path, capsys, monkeypatch):
    good = next(tone_corpus.glob("Actor_01/*.wav"))
    samples, loud = tmp_path / "samples.wav", tmp_path / "loud.wav"
    soundfile.write(samples, np.full(8000, np.inf), 16000, subtype="FLOAT")
    soundfile.write(loud, np.full(8000, 0.99), 16000)
    assert f"{samples}: holds values that are not finite" in refused([*trained, samples], capsys)
    err = refused([*trained, f"{good},{loud}"], capsys)
    assert f"not finite (NaN or infinity) for {loud}" in err and str(good) not in err
    original = SpeechModel.eval

    def damaged(self):
        self.downstream.get_parameter(next(iter(self.downstream.state_dict()))).data[0] = torch.nan
        return original(self)

    monkeypatch.setattr(SpeechModel, "eval", damaged)
    err = refused([*trained, good], capsys)
    assert "weights are not finite (NaN or infinity): downstream." in err


def test_inference_refuses_what_can_never_fit(trained, tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "talk.wav", np.zeros(61 * 16000, dtype="int16"), 16000)
    monkeypatch.setattr(guards, "total_memory", lambda device: 1000)
    err = refused([*trained, tmp_path / "talk.wav"], capsys)
    assert "talk.wav: 61 s, at least" in err


# ---- worker processes


def test_a_bad_clip_is_said_the_same_way_from_a_worker_process(
    emotion_args, loud_in, tmp_path, capsys
):
    settings, clip = loud_in("train")
    wave = np.full(8000, 0.1)
    wave[4000] = np.nan
    soundfile.write(clip, wave, 16000, subtype="FLOAT")
    settings["config.downstream_expert.datarc.num_workers"] = 2
    err = refused(emotion_args("varan", "-p", tmp_path / "exp", **settings), capsys)
    last = err.strip().splitlines()[-1]
    assert last == f"error: {clip}: holds values that are not finite (NaN or infinity)"


def test_a_run_warns_of_its_corpus_and_refuses_what_can_never_fit(
    emotion_args, tone_corpus, tmp_path, capsys, caplog, monkeypatch
):
    root = tmp_path / "corpus"
    shutil.copytree(tone_corpus, root)
    path = root / "meta_data" / "Session1" / "test_meta_data.json"
    content = json.loads(path.read_text())
    train = json.loads((path.parent / "train_meta_data.json").read_text())["meta_data"]
    content["meta_data"] += train[:3]
    path.write_text(json.dumps(content))
    data = {"root": root, "meta_data": root / "meta_data"}
    settings = {f"config.downstream_expert.datarc.{key}": data[key] for key in data}
    settings["config.runner.total_steps"] = 2
    args = emotion_args("varan", "-p", tmp_path / "exp", **settings)
    assert main([str(arg) for arg in args]) == 0
    capsys.readouterr()
    (block,) = [text for text in caplog.messages if text.startswith("the corpus can be used, but:")]
    assert "\n  - recordings in train and in test: 3 (" in block
    assert "\n  - dev has 32 clips, few to choose" in block
    long = root / content["meta_data"][0]["path"]
    soundfile.write(long, np.zeros(61 * 16000, dtype="int16"), 16000)
    monkeypatch.setattr(guards, "total_memory", lambda device: 1000)
    err = refused([*args, "--overwrite"], capsys)
    assert f"{long.stem}: 61 s, at least" in err
