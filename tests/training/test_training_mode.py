"""What mode every module trains in: at step 0, after an evaluation and after a resume."""

from pathlib import Path

import pytest
import torch

from s3prl_varan.app.cli import main
from s3prl_varan.model import SpeechModel
from tests.tiny_expert import UpstreamExpert

DROPPING = f"{Path(__file__)}:dropping"


class DroppingExpert(UpstreamExpert):
    """The tiny upstream with a dropout after each layer, as a transformer has them."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(layer, torch.nn.Dropout(0.1)) for layer in self.layers
        )


def dropping(**kwargs):
    return DroppingExpert()


@pytest.fixture
def modes(monkeypatch):
    """Of every training step: modules not in training mode, and the upstream's that were."""
    seen = []
    forward = SpeechModel.forward

    def watched(self, *args, **kwargs):
        if self.training:
            asleep = {name for name, module in self.named_modules() if not module.training}
            awake = {name for name, module in self.upstream.named_modules() if module.training}
            seen.append((asleep, awake))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SpeechModel, "forward", watched)
    return seen


TUNING = {
    "lora": (["--lora"], {"config.lora.rank": 2, "config.lora.targets": "[layers.0.0,layers.2.0]"}),
    "full": (["--upstream_trainable"], {}),
}


@pytest.mark.parametrize("tuning", ["frozen", *TUNING])
def test_modes_at_step_0_after_an_evaluation_and_after_a_resume(
    tuning, modes, emotion_args, tmp_path, capsys
):
    flags, settings = TUNING.get(tuning, ([], {}))
    settings = {
        **settings,
        "config.runner.total_steps": 6,
        "config.runner.eval_step": 2,
        "config.runner.save_step": 4,
    }
    settings["config.runner.max_keep"] = 5
    folder = tmp_path / "exp"
    args = emotion_args("varan", "-p", folder, *flags, upstream=DROPPING, **settings)
    assert main([str(arg) for arg in args]) == 0
    (folder / "states-6.ckpt").unlink()
    (folder / "result.json").unlink()
    assert main(["-m", "train", "-e", str(folder), "-u", DROPPING, "--device", "cpu"]) == 0
    assert len(modes) == 6 + 2
    for asleep, awake in modes:
        if tuning == "frozen":  # the upstream sleeps, all of it, and nothing else does
            assert not awake and all(name.split(".")[0] == "upstream" for name in asleep)
        else:
            assert not asleep


@pytest.mark.parametrize("tuning", TUNING)
def test_a_resumed_run_of_a_trained_upstream_ends_where_an_uninterrupted_one_does(
    tuning, emotion_args, tmp_path, capsys
):
    flags, settings = TUNING[tuning]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        args = emotion_args(
            "varan",
            "-p",
            folder,
            *flags,
            upstream=DROPPING,
            **{**settings, "config.runner.max_keep": 5},
        )
        assert main([str(arg) for arg in args]) == 0
    (parts / "states-40.ckpt").unlink()
    (parts / "result.json").unlink()
    assert main(["-m", "train", "-e", str(parts), "-u", DROPPING, "--device", "cpu"]) == 0
    a, b = (torch.load(folder / "states-40.ckpt", weights_only=True) for folder in (whole, parts))
    states = [(a[part], b[part]) for part in ("Featurizer", "Downstream")]
    states.append(
        (a["lora"]["state"], b["lora"]["state"])
        if tuning == "lora"
        else (a["Upstream"], b["Upstream"])
    )
    for one, other in states:
        assert one and one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
