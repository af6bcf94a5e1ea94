"""The rooms through the command line: train, evaluate and infer on miniature corpora."""

import json

import pytest

from s3prl_varan.app.cli import main
from tests.conftest import TINY

PLACES = {
    "speech_commands": (
        "commands_corpus",
        {"speech_commands_root": "train", "speech_commands_test_root": "test"},
        "train/yes/51e6f6f0_nohash_*.wav",
    ),
    "fluent_commands": ("intents_corpus", {"file_path": ""}, "wavs/speakers/test0/*.wav"),
    "voxceleb1": (
        "speakers_corpus",
        {"file_path": "", "meta_data": "iden_split.txt"},
        "dev/wav/id11251/*/*.wav",
    ),
    "diarization": (
        "mixtures_corpus",
        {"train_dir": "train", "dev_dir": "dev", "test_dir": "test"},
        "test/wav/*.wav",
    ),
    "sv_voxceleb1": (
        "voices_corpus",
        {"file_path": "", "test_meta_data": "voxceleb1_test_v2.txt"},
        "test/wav/id10271/*/*.wav",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_train_evaluate_infer(name, request, tmp_path, capsys):
    fixture, places, clip = PLACES[name]
    corpus, folder = request.getfixturevalue(fixture), tmp_path / "exp"
    settings = {
        **{f"downstream_expert.datarc.{key}": corpus / place for key, place in places.items()},
        "downstream_expert.datarc.num_workers": 0,
        "runner.total_steps": 4,
        "runner.gradient_accumulate_steps": 1,
        "runner.eval_step": 2,
        "runner.save_step": 2,
    }
    override = ",,".join(f"config.{key}={value}" for key, value in settings.items())
    flags = ["-u", TINY, "-d", name, "-f", "varan", "--device", "cpu", "-p", str(folder)]
    assert main([*flags, "-o", override]) == 0, capsys.readouterr().err
    result = json.loads((folder / "result.json").read_text())
    metric = result["metric"]
    assert 0 <= result["test"]["test"][metric] <= 200 and "dev" in result
    for written in result["submission"].values():
        assert (folder / written).is_file()
    call = ["-e", str(folder), "-u", TINY, "--device", "cpu"]
    assert main(["-m", "evaluate", "-t", "test", *call]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1][metric] == result["test"]["test"][metric]
    path = next(corpus.glob(clip))
    assert main(["-m", "inference", "-t", str(path), *call]) == 0, capsys.readouterr().err
    (answer,) = map(json.loads, (folder / "inference.jsonl").read_text().splitlines())
    assert "prediction" in answer and answer["file"] == str(path)
