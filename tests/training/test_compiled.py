"""runner.compile: the same losses, names in checkpoints, other lengths, clear refusals."""

import json

import pytest
import torch
from benchmark.cases import Case, Step, build_step

from s3prl_varan.app.cli import main
from s3prl_varan.errors import UserError
from s3prl_varan.training.compiled import check_compiler, compile_model
from s3prl_varan.tuning.modes import set_train_modes


@pytest.fixture
def compiler():
    try:
        check_compiler(torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow  # it compiles for a minute
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("tuning, task", [("frozen", "er"), ("lora", "ctc")])
def test_compiled_training_computes_the_same(tuning, task):
    torch.manual_seed(0)
    plain = build_step(Case("tiny", tuning, task, "varan", 2, 1.0, head_dropout=0.0))
    set_train_modes(plain.model.upstream, dropout=False, masking=False)
    start = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    inputs = [
        plain.wavs,
        [wav[:12000] for wav in plain.wavs],
        [plain.wavs[0], plain.wavs[1][:9000]],
    ]
    expected = _losses(plain, inputs)
    plain.model.load_state_dict(start)
    compile_model(plain.model)
    compiled = Step(plain.case, plain.model, plain.wavs, plain.targets)  # a fresh optimizer
    losses = _losses(compiled, inputs)
    assert losses == pytest.approx(expected, rel=1e-4) and len(set(losses)) == len(losses)
    assert list(compiled.model.state_dict()) == list(start)
    _losses(compiled, [[wav[:11000] for wav in plain.wavs]])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    _losses(compiled, [[wav[:10000] for wav in plain.wavs], [plain.wavs[0], plain.wavs[1][:8000]]])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


def _losses(step: Step, inputs: list[list[torch.Tensor]]) -> list[float]:
    losses = []
    for wavs in inputs:
        step.wavs = wavs
        losses.append(step())
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
        settings["config.varan.head_dropout"] = (
            0.0  # compiled dropout draws from a generator of its own
        )
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
        main(["-m", "evaluate", "-t", "test", "-e", str(tmp_path / "True"), "--device", "cpu"]) == 0
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
