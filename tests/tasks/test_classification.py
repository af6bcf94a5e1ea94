"""Your own labels through the command line; --data ROOT, which sets the paths of every task."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_varan.app.cli import main, parse_args
from s3prl_varan.config.reading import config_root
from s3prl_varan.config.resolve import resolve
from s3prl_varan.config.settings import RunSettings, Stored
from s3prl_varan.corpora.emodb import prepare_emodb
from s3prl_varan.corpora.labels import TABLE, prepare_labels
from s3prl_varan.corpora.manifest import prepare_manifest
from s3prl_varan.errors import UserError
from s3prl_varan.tasks import find_task, task_names
from s3prl_varan.tasks.classification import Classification
from tests.conftest import TINY

PITCHES = {"low": 300, "middle tone": 700, "high": 1500}  # Hz
SHORT = ",,".join(
    f"config.{key}={value}"
    for key, value in {
        "runner.total_steps": 40,
        "runner.eval_step": 20,
        "runner.save_step": 20,
        "optimizer.lr": 0.02,
        "downstream_expert.datarc.num_workers": 0,
    }.items()
)


@pytest.fixture(scope="module")
def stretches(tmp_path_factory) -> Path:
    """Six speakers, two recordings each, in each of which every pitch is heard twice: prepared."""
    root = tmp_path_factory.mktemp("stretches")
    generator = np.random.default_rng(0)
    rows = ["path,label,speaker,start,end"]
    time = np.arange(6400) / 16000
    for number in range(12):
        waves = []
        for place, (label, pitch) in enumerate(list(PITCHES.items()) * 2):
            waves.append(0.3 * np.sin(2 * np.pi * pitch * generator.uniform(0.97, 1.03) * time))
            start = f"{0.4 * place:.1f},{0.4 * place + 0.4:.1f}"
            rows.append(f"{number}.wav,{label},speaker{number % 6},{start}")
        soundfile.write(root / f"{number}.wav", np.concatenate(waves).astype("float32"), 16000)
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    prepare_labels(root / "labels.csv", root / "prepared", folds=3)
    return root / "prepared"


def task_on(root: Path, fold: str | None = None) -> Classification:
    return Classification(Classification.Data(root=str(root)), Classification.Model(), fold=fold)


def edited(source: Path, target: Path, change) -> Path:
    target.mkdir()
    table = (source / TABLE).read_text()
    assert change(table) != table
    (target / TABLE).write_text(change(table))
    return target


def test_train_evaluate_infer(stretches, tmp_path, capsys):
    exp = tmp_path / "exp"
    flags = ["-u", TINY, "--device", "cpu"]
    train = [*flags, "-d", "classification", "--data", str(stretches), "-v", "fold2", "-o", SHORT]
    assert main([*train, "-p", str(exp)]) == 0, capsys.readouterr().err
    result = json.loads((exp / "result.json").read_text())
    figures = result["test"]["test"]
    assert {"acc", "uar", "f1"} <= set(figures) and figures["acc"] > 60
    assert result["args"]["data"] == str(stretches) and result["fold"] == "fold2"
    assert result["confusion"]["test"]["labels"] == sorted(PITCHES)
    truth = (exp / "test_fold2_truth.txt").read_text().splitlines()
    assert len(truth) == 24 and "0.wav:0.4-0.8 middle tone" in truth
    # The corpus has moved since.
    moved = shutil.copytree(stretches, tmp_path / "moved")
    call = ["-m", "evaluate", "-t", "test", "-e", str(exp), *flags, "--data", str(moved)]
    assert main(call) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (exp / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["acc"] == figures["acc"]
    shutil.rmtree(moved)
    clip = str(stretches.parent / "0.wav")
    assert main(["-m", "inference", "-t", clip, "-e", str(exp), *flags]) == 0
    (answer,) = map(json.loads, (exp / "inference.jsonl").read_text().splitlines())
    assert set(answer["probabilities"]) == set(PITCHES)


def test_all_folds(stretches, tmp_path, capsys):
    call = ["-u", TINY, "-d", "classification", "--data", str(stretches), "--folds", "all"]
    call += ["-p", str(tmp_path / "exp"), "--device", "cpu", "-o", SHORT]
    assert main(call) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "exp" / "summary.json").read_text())
    assert list(summary["folds"]) == ["fold1", "fold2", "fold3"]


def test_stretches_are_read_as_such(stretches):
    task = task_on(stretches)
    assert task.fold == "fold1" and task.folds() == ["fold1", "fold2", "fold3"]
    items = [item for split in task.splits() for item in task.items(split)]
    assert len(items) == 72 and task.problems(task.splits()) == []
    assert task.outputs == ["high", "low", "middle tone"]
    for item in items[:6]:
        wave = task.load(item, None, training=False)
        assert len(wave) == task.num_samples(item, training=False) == 6400
        pitch = float(torch.fft.rfft(wave).abs().argmax()) * 16000 / 6400
        label = task.outputs[item.target]
        assert PITCHES[label] * 0.96 < pitch < PITCHES[label] * 1.04
    speakers = [{item.speaker for item in task.items(split)} for split in task.splits()]
    assert sum(map(len, speakers)) == 6 == len(set.union(*speakers))


def test_a_label_that_training_lacks_is_refused(stretches, tmp_path):
    def change(text: str) -> str:
        row = next(line for line in text.splitlines() if line.split("\t")[6] == "test")
        return text.replace(row, row.replace("\thigh\t", "\tnew\t").replace("\tlow\t", "\tnew\t"))

    task = task_on(edited(stretches, tmp_path / "other", change))
    (problem,) = task.problems(["train", "dev", "test"])
    assert "labels in test that training lacks (clips): 'new' (1)" in problem


def test_folds_and_tables_that_are_not_there(stretches, tmp_path):
    (problem,) = task_on(stretches, "fold4").problems(["train"])
    assert "no fold4, there are fold1, fold2, fold3" in problem
    one = edited(
        stretches,
        tmp_path / "one",
        lambda text: (
            "\n".join(line.rpartition("\t")[0] for line in text.splitlines())
            .replace("fold1\tfold2", "split\tfold2")
            .replace("\tfold2", "")
        ),
    )
    rows = [line.split("\t") for line in (one / TABLE).read_text().splitlines()]
    (one / TABLE).write_text("\n".join("\t".join(row[:7]) for row in rows))
    task = task_on(one)
    assert task.fold is None and task.folds() == [] and task.file_stem("test") == "test"
    assert len(task.items("train")) == len(task_on(stretches).items("train"))
    (problem,) = task_on(one, "fold1").problems(["train"])
    assert "it has one split and no folds: leave out -v" in problem
    (problem,) = task_on(tmp_path).problems(["train", "dev"])
    assert f"{TABLE}: cannot be read" in problem
    (tmp_path / TABLE).write_text("path\tlabel\na.wav\thigh\n")
    (problem,) = task_on(tmp_path).problems(["train", "dev"])
    assert "not a table that `prepare_data.py labels` wrote (no column name, speaker" in problem
    torn = edited(stretches, tmp_path / "torn", lambda text: text[: len(text) - 40])
    (problem,) = task_on(torn).problems(["train", "dev"])
    assert "rows are missing or torn" in problem


def test_a_split_without_clips_is_told(stretches, tmp_path):
    bare = edited(stretches, tmp_path / "bare", lambda text: text.replace("\tdev", "\ttrain"))
    (problem,) = task_on(bare).problems(["train", "dev"])
    assert "no dev clips" in problem


# ---- --data


def settings_of(*args: object) -> RunSettings:
    return resolve(parse_args(["-u", "wavlm", *map(str, args)]))


CORPORA = {
    "emotion": "tone_corpus",
    "asr": "letters_corpus",
    "speech_commands": "commands_corpus",
    "fluent_commands": "intents_corpus",
    "voxceleb1": "speakers_corpus",
    "sv_voxceleb1": "voices_corpus",
    "classification": "stretches",
}


def test_every_task_says_where_its_files_lie():
    assert set(CORPORA) <= set(task_names())
    for name in task_names():
        assert "locate" in vars(find_task(name)), name


@pytest.mark.parametrize("name", CORPORA)
def test_data_sets_all_paths(name, request):
    root = request.getfixturevalue(CORPORA[name])
    for config in sorted((config_root() / name).glob("*.yaml")):
        settings = settings_of("-d", name, "--data", root, "-c", config)
        settings.check_corpus()
        assert settings.flags.data == str(root) and str(root) in str(settings.task.data)
        assert all(settings.task.items(split) for split in settings.splits_read)


def test_the_archives_names_are_found(commands_corpus, speakers_corpus, tmp_path):
    for name, place in (
        ("speech_commands_v0.01", "train"),
        ("speech_commands_test_set_v0.01", "test"),
    ):
        (tmp_path / name).symlink_to(commands_corpus / place)
    settings_of("-d", "speech_commands", "--data", tmp_path).check_corpus()
    for place in ("dev", "test"):
        (tmp_path / place).symlink_to(speakers_corpus / place)
    (tmp_path / "veri_test_class.txt").symlink_to(speakers_corpus / "iden_split.txt")
    settings_of("-d", "voxceleb1", "--data", tmp_path).check_corpus()


def test_data_yields_to_o_and_is_stored(letters_corpus, tone_corpus):
    override = "config.downstream_expert.datarc.train=[dev]"
    settings = settings_of("-d", "asr", "--data", letters_corpus, "-o", override)
    assert settings.task.data.split_tables["train"] == ["dev"]
    stored = settings.stored()
    kept = Stored(stored["args"], stored["config"], None, Path("x"))
    again = resolve(parse_args(["-m", "evaluate", "-e", "x"]), kept)
    assert again.id == settings.id and again.stored() == stored
    spelled = (
        f"config.downstream_expert.datarc.root={tone_corpus},,"
        f"config.downstream_expert.datarc.meta_data={tone_corpus}/meta_data"
    )
    by_data = settings_of("-d", "emotion", "--data", tone_corpus)
    assert by_data.id == settings_of("-d", "emotion", "-o", spelled).id


def test_splits_are_the_tables_found(letters_corpus, tmp_path):
    settings = settings_of("-d", "asr", "--data", letters_corpus)
    assert settings.task.splits() == ["train", "dev", "test"]
    assert settings.config.runner.eval_dataloaders == ["dev"]
    tables = tmp_path / "meta_data"
    tables.mkdir()
    for name in ("train-clean-100", "train-other-500", "dev-clean", "test-clean"):
        (tables / f"{name}.csv").write_text("")
    settings = settings_of("-d", "asr", "--data", tmp_path)
    assert settings.task.data.split_tables == {
        "train": ["train-clean-100"],
        "dev-clean": ["dev-clean"],
        "test-clean": ["test-clean"],
    }
    assert settings.config.runner.eval_dataloaders == ["dev-clean"]
    (tables / "train-clean-100.csv").rename(tables / "train-clean-360.csv")
    settings = settings_of("-d", "asr", "--data", tmp_path)
    assert settings.task.data.split_tables["train"] == ["train-clean-360", "train-other-500"]
    (tables / "dev-clean.csv").unlink()
    with pytest.raises(UserError, match="unknown split 'dev-clean'"):
        settings_of("-d", "asr", "--data", tmp_path)
    override = "config.runner.eval_dataloaders=[dev-cleen]"
    with pytest.raises(UserError, match="unknown split 'dev-cleen'"):
        settings_of("-d", "asr", "--data", letters_corpus, "-o", override)


def test_a_manifest_is_trained_on_as_it_is_prepared(letters_corpus, tmp_path):
    lines = ["path\ttext\tspeaker\tsplit"]
    for split in ("train", "dev", "test"):
        for text in letters_corpus.glob(f"{split}/*/*/*.trans.txt"):
            for line in text.read_text().splitlines():
                name, _, words = line.partition(" ")
                lines.append(f"{text.parent / name}.flac\t{words}\tanna\t{split}")
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    out = tmp_path / "out"
    prepare_manifest(tmp_path / "list.tsv", out, build_dict=True)
    settings = settings_of("-d", "asr", "--data", out)
    settings.check_corpus()
    assert settings.task.data.dict_path == str(out / "char.dict")
    assert len(settings.task.items("test")) == 5


def test_emodb_is_found_from_its_root(tmp_path):
    time = np.arange(1600) / 16000
    for speaker in ("03", "08", "09", "10"):
        for letter in "WFN":
            wave = 0.1 * np.sin(440 * time).astype("float32")
            soundfile.write(tmp_path / f"{speaker}a01{letter}a.wav", wave, 16000)
    prepare_emodb(tmp_path)
    settings = settings_of("-d", "classification", "--data", tmp_path)
    settings.check_corpus()
    assert settings.task.outputs == ["anger", "happiness", "neutral"]
    assert settings.task.corpus == tmp_path.name


def test_what_data_refuses(tmp_path):
    with pytest.raises(UserError, match="--data: no folder .*nowhere"):
        settings_of("-d", "emotion", "--data", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no tables .* in it or in meta_data"):
        settings_of("-d", "asr", "--data", tmp_path)
    code = (
        "from s3prl_varan import UtteranceTask\n"
        "class Mine(UtteranceTask):\n"
        "    name = 'mine'\n"
        "    def items(self, split): return []\n"
        "    def read_outputs(self): return ['a', 'b']\n"
    )
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UserError, match="-d mine does not say where its files lie"):
        settings_of("-d", f"{tmp_path}/mine.py:Mine", "--data", tmp_path)
    located = "    @classmethod\n    def locate(cls, root): return {'num_workers': 3}\n"
    (tmp_path / "other.py").write_text(code + located)
    settings = settings_of("-d", f"{tmp_path}/other.py:Mine", "--data", tmp_path)
    assert settings.task.data.num_workers == 3
