"""Every example of the pages in docs/ is written out, every command there is run as it stands.

Those of your-own-labels.md train for fewer steps, by a further -o.
"""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
FILE = re.compile(r"`([\w.]+\.(?:py|yaml))`[^`]*:\n\n```(?:python|yaml)\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
WORDS = {"low": 300, "middle": 700, "high": 1500}  # pitch in Hz


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def examples(name: str) -> dict[str, str]:
    return dict(FILE.findall(page(name)))


def commands(name: str) -> list[list[str]]:
    lines = [line for block in CONSOLE.findall(page(name)) for line in block.splitlines()]
    return [shlex.split(line) for line in lines]


def run(command: list[str]) -> int:
    import prepare_data

    from s3prl_varan.app import cli
    from s3prl_varan.report import cli as report
    from s3prl_varan.sweep import cli as sweep

    python, script, *argv = command
    assert python == "python"
    entries = {
        "prepare_data.py": prepare_data,
        "run_downstream.py": cli,
        "report.py": report,
        "sweep.py": sweep,
    }
    return entries[script].main(argv)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with words.tsv, its clips, and the examples of the task's page."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    rows = ["path\tlabel\tsplit"]
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        for word, pitch in WORDS.items():
            for number in range(count):
                time = np.arange(6400) / 16000
                wave = 0.3 * np.sin(2 * np.pi * pitch * generator.uniform(0.97, 1.03) * time)
                name = f"{split}_{word}_{number}.wav"
                soundfile.write(name, wave.astype("float32"), 16000)
                rows.append(f"{name}\t{word}\t{split}")
    Path("words.tsv").write_text("\n".join(rows) + "\n")
    Path("test_low_0.wav").with_name("clip.wav").write_bytes(Path("test_low_0.wav").read_bytes())
    write_examples("adding-a-task.md")
    return tmp_path


def write_examples(name: str) -> None:
    for file, text in examples(name).items():
        Path(file).write_text(text)


def result(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def board(folder: str) -> str:
    return (Path(folder) / "leaderboard.md").read_text()


@pytest.mark.slow
def test_a_task(place, capsys):
    assert len(examples("adding-a-task.md")["words.py"].splitlines()) <= 60
    for command in commands("adding-a-task.md"):
        assert run(command) == 0, capsys.readouterr().err
    figures = result("varan")
    assert figures["downstream"] == "words.py:Words" and figures["title"] == "spoken words"
    assert figures["test"]["test"]["acc"] > 60  # three pitches
    answer = json.loads(Path("varan/inference.jsonl").read_text().splitlines()[-1])
    assert set(answer["probabilities"]) == set(WORDS)
    assert "varan" in board("report") and "weighted_sum" in board("report")
    assert len(list(Path("sweep").glob("*/result.json"))) == 4
    assert "last_layer" in board("sweep_report")


@pytest.mark.slow
def test_a_featurizer(place, capsys):
    assert len(examples("adding-a-featurizer.md")["last_mean.py"].splitlines()) <= 30
    write_examples("adding-a-featurizer.md")
    for command in commands("adding-a-featurizer.md"):
        assert run(command) == 0, capsys.readouterr().err
    assert result("mean")["layers"] == [10, 11, 12]
    assert result("mean")["settings"]["config.last_mean.count"] == 3
    assert "last_mean" in board("report")
    assert len(list(Path("sweep").glob("*/result.json"))) == 3
    assert "last_mean" in board("sweep_report")


@pytest.mark.slow
def test_an_upstream(place, capsys):
    write_examples("adding-an-upstream.md")
    for command in commands("adding-an-upstream.md"):
        assert run(command) == 0, capsys.readouterr().err
    assert result("own")["test"]["test"]["acc"] > 60


@pytest.mark.slow
def test_your_own_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    labels, texts = ["path\tlabel\tspeaker"], ["path\ttext\tspeaker\tsplit"]
    time = np.arange(6400) / 16000
    for speaker, split in enumerate(["train"] * 4 + ["dev", "test"]):
        for word, pitch in WORDS.items():
            for number in range(2):
                wave = 0.3 * np.sin(2 * np.pi * pitch * generator.uniform(0.97, 1.03) * time)
                name = f"{word}_{speaker}_{number}.wav"
                soundfile.write(name, wave.astype("float32"), 16000)
                labels.append(f"{name}\t{word}\t{speaker}")
                texts.append(f"{name}\t{word.title()}!\t{speaker}\t{split}")
    Path("labels.tsv").write_text("\n".join(labels) + "\n")
    Path("texts.tsv").write_text("\n".join(texts) + "\n")
    Path("clip.wav").write_bytes(Path("low_0_0.wav").read_bytes())
    short = "config.runner.total_steps=40,,config.runner.eval_step=20,,config.runner.save_step=20"
    short += ",,config.downstream_expert.datarc.num_workers=0"
    for command in commands("your-own-labels.md"):
        trains = "run_downstream.py" in command and "inference" not in command
        assert run([*command, *(["-o", short] if trains else [])]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    for said in ("-d classification -f varan --data", "-d asr -f varan --data"):
        assert f"train on it: python run_downstream.py -u wavlm {said} {tmp_path}" in out
    assert result("varan")["test"]["test"]["acc"] > 60 and result("varan")["fold"] == "fold1"
    assert len(list(Path("folds").glob("*/fold?/result.json"))) == 10
    assert "weighted_sum" in board("report") and "varan" in board("report")
    assert result("asr")["test"].keys() == {"test"}


def test_every_page_linked_from_contributing_is_run_here():
    linked = re.findall(r"\(docs/([\w-]+\.md)\)", (ROOT / "CONTRIBUTING.md").read_text())
    tested = Path(__file__).read_text()
    assert linked and all(name in tested for name in linked)
