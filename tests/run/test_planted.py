"""The positive control: VARAN finds what is planted, and what cannot find it does not."""

import json
import math
from pathlib import Path

import planted
import pytest
import soundfile
import torch
from planted.upstream import DIM, HOP, NUM_HIDDEN, UpstreamExpert

from s3prl_varan.app.cli import main
from s3prl_varan.corpora.labels import prepare_labels

UPSTREAM = f"{Path(planted.__file__).parent / 'upstream.py'}:planted"
DATA = "config.downstream_expert"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Smaller than the demo's, and prepared."""
    folder = tmp_path_factory.mktemp("planted")
    prepare_labels(planted.make_corpus(folder, 1500, 200, 300), folder / "prepared")
    return folder / "prepared"


def test_hidden_states_are_what_a_clip_holds(corpus):
    wave, rate = soundfile.read(corpus.parent / "wavs" / "test00000.wav", dtype="float32")
    states = UpstreamExpert()([torch.from_numpy(wave)])["hidden_states"]
    assert rate == 16000 and len(states) == NUM_HIDDEN
    assert {tuple(state.shape) for state in states} == {(1, len(wave) // HOP, DIM)}
    shown = [float(states[layer][0, 0, -1]) for layer in planted.CARRIERS]
    assert max(shown) > 0.5 and min(shown) < -0.5 and planted.KNOWN_INFORMATION == math.log(2)


def test_only_weights_that_follow_the_input_find_it(corpus, tmp_path, capsys):
    settings = {
        "config.runner.total_steps": 900,
        "config.runner.eval_step": 100,
        "config.optimizer.lr": 0.005,
        "config.heads.dropout": 0,
        "config.varan.prior": "uniform",
        f"{DATA}.datarc.num_workers": 0,
        f"{DATA}.datarc.pre_load": True,
        f"{DATA}.modelrc.projector_dim": 32,
    }
    found = {}
    for name in ("weighted_sum", "static", "input"):
        kind = {} if name == "weighted_sum" else {"config.varan.posterior": name}
        override = ",,".join(f"{key}={value}" for key, value in {**settings, **kind}.items())
        featurizer = "varan" if kind else name
        flags = ["-u", UPSTREAM, "-d", "classification", "-f", featurizer, "--device", "cpu"]
        place = ["--data", str(corpus), "-p", str(tmp_path / name), "-o", override]
        assert main([*flags, *place]) == 0, capsys.readouterr().err
        found[name] = json.loads((tmp_path / name / "result.json").read_text())
    accuracy = {name: result["test"]["test"]["acc"] for name, result in found.items()}
    dynamics = found["input"]["dynamics"]["test"]
    assert accuracy["input"] > accuracy["static"] + 20 < accuracy["weighted_sum"] + 40
    assert accuracy["input"] > accuracy["weighted_sum"] + 20
    assert max(accuracy["static"], accuracy["weighted_sum"]) < planted.KNOWN_STATIC + 12
    assert dynamics["difference"] > 20 and dynamics["interval"][0] > 10
    assert 0.2 < dynamics["information_nats"] <= planted.KNOWN_INFORMATION
    for name in ("static_twin", "shuffled", "prior"):
        assert dynamics[name]["acc"] < accuracy["input"] - 20
