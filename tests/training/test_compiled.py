"""runner.compile: the same losses and names in checkpoints, no compiling anew, clear refusals."""

import json

import pytest
import torch

from s3prl_varan.app.build import build_model
from s3prl_varan.app.cli import main, parse_args
from s3prl_varan.config.resolve import resolve
from s3prl_varan.errors import UserError
from s3prl_varan.model import SpeechModel
from s3prl_varan.training.compiled import check_compiler, compile_model
from tests.conftest import TINY
from tests.tiny_families import make_checkpoint, noise

STILL = {"heads.dropout": 0, "heads.kind": "linear", "upstream.dropout": False, "lora.rank": 4}


@pytest.fixture
def compiler():
    try:
        check_compiler(torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))


def wavlm(task: str, flags: list[str], data: dict[str, object], folder) -> SpeechModel:
    """A WavLM of three layers of 32, with linear heads and nothing random; in training mode."""
    checkpoint = make_checkpoint("wavlm_local", folder)
    settings = {f"config.{key}": value for key, value in STILL.items()}
    settings |= {f"config.downstream_expert.datarc.{key}": value for key, value in data.items()}
    settings["config.specaug"] = "null"
    override = ",,".join(f"{key}={value}" for key, value in settings.items())
    args = ["-u", "wavlm_local", "-k", checkpoint, "-d", task, "-f", "varan", "-o", override]
    return build_model(resolve(parse_args([str(arg) for arg in [*args, *flags]]))).train()


@pytest.mark.slow  # it compiles for a minute
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("task", "flags", "targets"),
    [("emotion", [], [1, 4]), ("asr", ["--lora"], [[5, 6, 7], [8, 9]])],
)
def test_compiled_training_computes_the_same(task, flags, targets, tone_corpus, tmp_path):
    tones = {"root": tone_corpus, "meta_data": tone_corpus / "meta_data"}
    model = wavlm(task, flags, tones if task == "emotion" else {}, tmp_path)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = model.downstream.task.collate(targets)
    one, other = noise(16000, 16000)
    inputs = [[one, other], [one[:12000], other[:12000]], [one, other[:9000]]]
    expected = _losses(model, inputs, targets)
    model.load_state_dict(start)
    line = compile_model(model)
    assert line.startswith("compile: 3 layers of the upstream, 2 modules after it")
    losses = _losses(model, inputs, targets)
    assert losses == pytest.approx(expected, rel=1e-4) and len(set(losses)) == len(losses)
    assert list(model.state_dict()) == list(start)
    _losses(model, [[one[:11000], other[:11000]]], targets)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    _losses(model, [[one[:10000], other[:10000]], [one, other[:8000]]], targets)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


def _losses(model: SpeechModel, inputs: list[list[torch.Tensor]], targets) -> list[float]:
    """Of a step on each input, with a fresh optimizer."""
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for wavs in inputs:
        loss = model(wavs, targets).terms.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_is_evaluated_without_compiling(emotion_args, tmp_path, capsys, monkeypatch):
    losses = {}
    for compiled in (False, True):
        settings = {
            "config.runner.total_steps": 6,
            "config.runner.log_step": 1,
            "config.runner.eval_step": 3,
        }
        # Compiled dropout draws from a generator of its own.
        settings["config.heads.dropout"] = 0.0
        folder = tmp_path / str(compiled)
        assert (
            main(
                list(
                    map(
                        str,
                        emotion_args(
                            "varan", "-p", folder, **settings, **{"config.runner.compile": compiled}
                        ),
                    )
                )
            )
            == 0
        )
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[compiled] = [row["loss"] for row in rows]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert "compile: 0 layers of the upstream, 2 modules after it" in capsys.readouterr().err
    payload = torch.load(tmp_path / "True" / "dev-best.ckpt", weights_only=True)
    assert not any(
        "_orig_mod" in name for part in ("Featurizer", "Downstream") for name in payload[part]
    )
    monkeypatch.setattr(torch, "compile", _no_compiler)
    assert (
        main(["-m", "evaluate", "-e", str(tmp_path / "True"), "-u", TINY, "--device", "cpu"]) == 0
    )


def _no_compiler(*args, **kwargs):
    raise RuntimeError("No working C++ compiler found\nand more lines")


def test_no_compiler_is_said_before_training(emotion_args, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", _no_compiler)
    args = emotion_args("varan", "-p", tmp_path / "exp", **{"config.runner.compile": True})
    assert main(list(map(str, args))) == 2
    message = capsys.readouterr().err
    assert (
        "runner.compile: torch.compile does not work here: No working C++ compiler found."
        in message
    )
    assert "set runner.compile: false" in message


def test_compile_and_gradient_checkpointing_are_refused_together(emotion_args, tmp_path, capsys):
    settings = {"config.runner.compile": True, "config.upstream.gradient_checkpointing": True}
    assert (
        main(list(map(str, emotion_args("varan", "--lora", "-p", tmp_path / "exp", **settings))))
        == 2
    )
    assert (
        "runner.compile: does not go with upstream.gradient_checkpointing"
        in capsys.readouterr().err
    )
