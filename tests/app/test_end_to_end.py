"""The command as a user runs it, on tones and a tiny upstream: train, evaluate, resume, infer."""

import csv
import json
import shutil

import pytest
import torch

from s3prl_varan.app.cli import main
from tests.conftest import TINY

FOUR_STEPS = {"config.runner.total_steps": 4}


def run(args, capsys, expect=0):
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert code == expect, err[-2000:]
    return out, err


def read_result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("featurizer", ["varan", "weighted_sum", "last_layer"])
def test_train_writes_everything_and_evaluate_repeats_the_figure(
    featurizer, emotion_args, tmp_path, capsys
):
    folder = tmp_path / "exp"
    out, _ = run(emotion_args(featurizer, "-p", folder), capsys)
    result = read_result(folder)
    figures = result["test"]["test"]
    assert (
        f"{figures['acc']:.2f}" in out and figures["acc"] > 40
    )  # seven classes, told apart by pitch
    assert (
        result["featurizer"] == featurizer
        and result["fold"] == "fold1"
        and result["tuning"] == "frozen"
    )
    assert (
        result["parameters"]["upstream"]["trainable"] == 0
        and result["parameters"]["downstream"]["trainable"] > 0
    )
    assert (folder / "dev-best.ckpt").is_file() and (folder / "states-40.ckpt").is_file()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "dev", "test"}
    # Training batches are scored too, since this task's predictions cost nothing.
    trained = [row for row in rows if row["split"] == "train"]
    assert trained[-1]["acc"] > trained[0]["acc"] and trained[-1]["loss"] < trained[0]["loss"]
    assert max(row["acc"] for row in rows if row["split"] == "dev") == pytest.approx(
        result["dev"]["acc"]
    )
    assert list(folder.glob("events.out.tfevents*"))
    if featurizer == "last_layer":
        assert not (folder / "layer_weights.csv").exists()
    else:
        with open(folder / "layer_weights.csv") as file:
            table = list(csv.DictReader(file))
        assert len(table) == sum(map(sum, result["confusion"]["test"]["matrix"]))
        names = [name for name in table[0] if name.startswith("layer")]
        assert names == [
            f"layer{index}" for index in (range(5) if featurizer == "weighted_sum" else range(1, 5))
        ]
        assert all(abs(sum(float(row[name]) for name in names) - 1) < 1e-4 for row in table)
        assert (folder / "layer_weights.png").read_bytes()[:4] == b"\x89PNG"

    out, _ = run(
        ["-m", "evaluate", "-t", "test", "-e", folder, "-u", TINY, "--device", "cpu"], capsys
    )
    assert f"{figures['acc']:.2f}" in out
    again = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert again["acc"] == figures["acc"] and again["loss"] == pytest.approx(
        figures["loss"], rel=1e-6
    )


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(emotion_args, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(emotion_args("varan", "-p", whole), capsys)
    # A run cut off after its first checkpoint: what came later is removed.
    run(emotion_args("varan", "-p", parts, **{"config.runner.max_keep": 5}), capsys)
    (parts / "states-40.ckpt").unlink()
    (parts / "result.json").unlink()
    run(["-m", "train", "-e", parts, "-u", TINY, "--device", "cpu"], capsys)
    a, b = (torch.load(folder / "states-40.ckpt", weights_only=True) for folder in (whole, parts))
    for part in ("Featurizer", "Downstream"):
        for name, tensor in a[part].items():
            torch.testing.assert_close(
                b[part][name], tensor, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert read_result(whole)["test"] == read_result(parts)["test"]


def test_inference_prints_prediction_probabilities_and_posterior(
    emotion_args, tone_corpus, tmp_path, capsys
):
    folder = tmp_path / "exp"
    corpus = tmp_path / "corpus"
    shutil.copytree(tone_corpus, corpus)
    place = {
        "config.downstream_expert.datarc.root": corpus,
        "config.downstream_expert.datarc.meta_data": corpus / "meta_data",
    }
    run(emotion_args("varan", "-p", folder, **place), capsys)
    shutil.rmtree(corpus)  # a checkpoint predicts without the corpus it was trained on
    clip = tone_corpus / "Actor_01" / "03-01-05-01-01-01-01.wav"
    out, _ = run(
        ["-m", "inference", "-t", clip, "-e", folder, "-u", TINY, "--device", "cpu"], capsys
    )
    row = json.loads((folder / "inference.jsonl").read_text().splitlines()[-1])
    assert row["prediction"] in out and "angry" in row["probabilities"]
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert list(row["layer_weights"]) == ["1", "2", "3", "4"]
    assert sum(row["layer_weights"].values()) == pytest.approx(1, abs=1e-5)
    _, err = run(
        ["-m", "inference", "-t", tmp_path / "none.wav", "-e", folder, "-u", TINY], capsys, expect=2
    )
    assert "none.wav" in err


def test_seeds_differ_and_repeat(emotion_args, tmp_path, capsys):
    losses = []
    for number, seed in enumerate((1, 1, 2)):
        run(
            emotion_args(
                "varan",
                "-p",
                tmp_path / str(number),
                "--seed",
                seed,
                **{"config.runner.total_steps": 10},
            ),
            capsys,
        )
        losses.append(read_result(tmp_path / str(number))["test"]["test"]["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_batch_size_never_changes_an_evaluation(emotion_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    run(emotion_args("varan", "-p", folder), capsys)
    expected = read_result(folder)["test"]["test"]
    for size in (1, 5):
        override = f"config.downstream_expert.datarc.eval_batch_size={size}"
        run(["-m", "evaluate", "-e", folder, "-u", TINY, "--device", "cpu", "-o", override], capsys)
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert row["acc"] == expected["acc"] and row["loss"] == pytest.approx(
            expected["loss"], rel=1e-5
        )


def test_a_finished_experiment_is_not_overwritten(emotion_args, tmp_path, capsys):
    args = emotion_args("last_layer", "-p", tmp_path / "exp", **{"config.runner.total_steps": 2})
    run(args, capsys)
    _, err = run(args, capsys, expect=2)
    assert "holds an experiment" in err and "--overwrite" in err
    run([*args, "--overwrite"], capsys)


def test_default_folder_names_what_distinguishes_the_run(
    emotion_args, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    steps = {"config.runner.total_steps": 2}
    run(emotion_args("layer", "-l", "2", "-v", "fold2", "--seed", "7", **steps), capsys)
    (folder,) = (tmp_path / "result" / "downstream").iterdir()
    assert folder.name.endswith("tiny_expert.py_tiny_emotion_layer2_fold2_seed7")
    assert read_result(folder)["layers"] == [2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("heads.shared", True),
        ("heads.kind", "linear"),
        ("varan.recipe", "released"),
        ("varan.prediction", "mixture"),
        ("varan.layers", [0, 4]),
    ],
)
def test_options_of_varan_and_its_heads(key, value, emotion_args, tmp_path, capsys):
    overrides = {**FOUR_STEPS, f"config.{key}": value}
    run(emotion_args("varan", "-p", tmp_path / "exp", **overrides), capsys)
    result = read_result(tmp_path / "exp")
    section, name = key.split(".")
    assert result["config"][section][name] == value
    assert result["settings"][f"config.{key}"] == value
    assert result["layers"] == (value if name == "layers" else [1, 2, 3, 4])
    copies = 1 if name == "shared" else len(result["layers"])
    each = 24 * 256 + 256 + 256 * 7 + 7
    assert result["parameters"]["downstream"]["trainable"] == copies * each


def test_an_attentive_head_loops_over_layers(emotion_args, tmp_path, capsys):
    overrides = {
        **FOUR_STEPS,
        "config.heads.dropout": 0,
        "config.downstream_expert.modelrc.select": "DeepModel",
    }
    run(emotion_args("varan", "-p", tmp_path / "exp", **overrides), capsys)
    result = read_result(tmp_path / "exp")
    assert result["parameters"]["downstream"]["trainable"] > 0
    assert "config.downstream_expert.modelrc.DeepModel.hidden_dim" in result["settings"]
    overrides["config.heads.dropout"] = 0.1
    args = emotion_args("varan", "-p", tmp_path / "dropping", **overrides)
    _, err = run(args, capsys, expect=2)
    assert "heads.dropout applies to linear heads" in err


def test_normalised_features_and_bf16(emotion_args, tmp_path, capsys):
    overrides = {"config.runner.total_steps": 10, "config.runner.precision": "bf16"}
    run(
        emotion_args("varan", "-p", tmp_path / "exp", "--upstream_feature_normalize", **overrides),
        capsys,
    )
    assert 0 < read_result(tmp_path / "exp")["test"]["test"]["loss"] < 10


def test_early_stop(emotion_args, tmp_path, capsys):
    overrides = {
        "config.runner.total_steps": 1000,
        "config.runner.early_stop": 2,
        "config.runner.eval_step": 1,
        "config.optimizer.lr": 0,
    }
    run(emotion_args("last_layer", "-p", tmp_path / "exp", **overrides), capsys)
    assert read_result(tmp_path / "exp")["steps"] == 3  # the first is best, then two no better


def test_divergence_stops_with_a_remedy(emotion_args, tmp_path, capsys):
    overrides = {"config.optimizer": "{torch_optim_name: SGD, lr: 1e30}"}
    args = emotion_args("last_layer", "-p", tmp_path / "exp", **overrides)
    _, err = run(args, capsys, expect=2)
    assert "diverged at step" in err and "Lower optimizer.lr" in err


def test_a_run_starts_from_the_weights_of_another(emotion_args, tmp_path, capsys):
    trained = tmp_path / "trained"
    run(emotion_args("varan", "-p", trained), capsys)
    still = {"config.optimizer.lr": 0, "config.runner.total_steps": 1}
    run(emotion_args("varan", "-i", trained, "-p", tmp_path / "still", **still), capsys)
    figures = read_result(tmp_path / "still")["test"]["test"]
    assert figures == pytest.approx(read_result(trained)["test"]["test"], rel=1e-6)
    assert read_result(tmp_path / "still")["steps"] == 1
