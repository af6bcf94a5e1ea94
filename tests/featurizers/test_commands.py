"""Every featurizer on the command line: train, go on, evaluate, infer; tones and letters."""

import json
import shutil
from pathlib import Path

import pytest

from s3prl_varan.app.cli import main
from s3prl_varan.corpora.librispeech import prepare_librispeech
from tests.conftest import TINY
from tests.featurizers.test_featurizers import ROWS
from tests.tasks.corpora import SIZES, make_letters

HERE = ["--device", "cpu"]
NEW = [row for row in ROWS if row[0] not in ("weighted_sum", "last_layer") and row != ("varan", {})]


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """LibriSpeech's layout, prepared: a pitch for each letter."""
    root = make_letters(tmp_path_factory.mktemp("letters"))
    prepare_librispeech(root)
    return root


@pytest.fixture
def place(tone_corpus, letters):
    """Name of a task -> where its corpus lies and how it is read, as values of -o."""

    def values(task: str) -> dict[str, object]:
        datarc = "config.downstream_expert.datarc"
        if task == "emotion":
            return {f"{datarc}.root": tone_corpus, f"{datarc}.meta_data": tone_corpus / "meta_data"}
        data = {"libri_root": letters, "bucket_file": letters / "meta_data", "num_workers": 0}
        data |= {split: f"[{split}]" for split in SIZES} | {"dict_path": "null", "batch_size": 16}
        more = {"config.runner.eval_dataloaders": "[dev]", "config.specaug": "null"}
        return {f"{datarc}.{key}": value for key, value in data.items()} | more

    return values


def call(capsys, *args: object) -> str:
    status = main([str(each) for each in args])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["emotion", "asr"])
@pytest.mark.parametrize(("name", "options"), NEW, ids=str)
def test_train_go_on_evaluate_infer(name, options, task, place, tone_corpus, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = place(task) | {
        **{f"config.{name}.{key}": value for key, value in options.items()},
        "config.runner.total_steps": 40,
        "config.runner.gradient_accumulate_steps": 1,
        "config.runner.eval_step": 20,
        "config.runner.save_step": 20,
        "config.runner.log_step": 10,
        "config.runner.max_keep": 5,
        "config.optimizer.lr": 0.01,
    }
    override = ",,".join(f"{key}={value}" for key, value in settings.items())
    flags = ["-u", TINY, "-d", task, "-f", name, "-t", "test", "-o", override, *HERE]
    call(capsys, *flags, "-p", whole)
    result = json.loads((whole / "result.json").read_text())
    trained = [row["loss"] for row in rows_of(whole) if row["split"] == "train"]
    assert trained[-1] < 0.9 * trained[0]
    shown = name != "hconv"  # it has none, and shows none
    assert (whole / "layer_weights.csv").is_file() == shown == bool(result["layer_weights"])
    if shown:
        weights = result["layer_weights"]["test"]
        assert len(weights) == len(result["layers"]) and sum(weights) == pytest.approx(1)
    assert (result["parameters"]["featurizer"]["trainable"] > 0) == (
        name != "ensemble" and options != {"posterior": "prior"}
    )

    shutil.copytree(whole, cut)  # as if it had been cut off after its first checkpoint
    (cut / "states-40.ckpt").unlink()
    (cut / "result.json").unlink()
    known = ["-u", TINY, *HERE]
    call(capsys, "-m", "train", "-e", cut, "-t", "test", *known)
    again = json.loads((cut / "result.json").read_text())
    assert again["test"] == result["test"] and again["dev"] == result["dev"]

    call(capsys, "-m", "evaluate", "-e", whole, "-t", "test", *known)
    figures = result["test"]["test"]
    assert rows_of(whole)[-1]["loss"] == pytest.approx(figures["loss"], rel=1e-6)

    clip = tone_corpus / "Actor_01" / "03-01-05-01-01-01-01.wav"
    call(capsys, "-m", "inference", "-e", whole, "-t", clip, *known)
    answer = json.loads((whole / "inference.jsonl").read_text().splitlines()[-1])
    assert [int(layer) for layer in answer["layer_weights"]] == result["layers"] * shown
    assert sum(answer["layer_weights"].values()) == pytest.approx(int(shown), abs=1e-4)
