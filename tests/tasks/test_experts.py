"""Experts of s3prl as they are: the loss and figures of s3prl's own code, resuming, refusals."""

import configparser
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from s3prl_varan import compat
from s3prl_varan.app.build import build_model
from s3prl_varan.app.cli import main, parse_args
from s3prl_varan.config.reading import config_root
from s3prl_varan.config.resolve import resolve
from s3prl_varan.errors import UserError
from s3prl_varan.report import cli as report
from s3prl_varan.tasks.shapes.expert import KNOWN, expert_names
from s3prl_varan.training.experts import ExpertLoaders
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
OWN = f"{ROOT / 'tests' / 'tiny_downstream.py'}:DownstreamExpert"
ONE_STREAM = ("weighted_sum", "dynamic_sum", "hconv", "lap", "last_layer")
SHIPPED = sorted((config_root() / "s3prl").glob("*.yaml"))
RUNNER = {"total_steps": 6, "log_step": 3, "eval_step": 3, "save_step": 3, "max_keep": 9}


@pytest.fixture
def own_args(tmp_path):
    """Command line of a short run of the tests' own expert: -f's name, further flags and config."""

    def build(featurizer="weighted_sum", *flags, expert=OWN, **section):
        config = {
            "runner": RUNNER,
            "optimizer": {"name": "AdamW", "lr": 0.02},
            "downstream_expert": {"datarc": {"batch_size": 6}, "metric": "acc", **section},
        }
        config["downstream_expert"].setdefault("higher_is_better", True)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        args = ["-u", TINY, "-d", expert, "-f", featurizer, "-c", path, "--device", "cpu", *flags]
        return [str(each) for each in args]

    return build


@pytest.fixture
def tone_args(tone_corpus, tmp_path):
    """The same of s3prl's emotion expert, on tones."""

    def build(featurizer):
        section = {
            "datarc": {
                "root": str(tone_corpus),
                "meta_data": str(tone_corpus / "meta_data"),
                "pre_load": True,
                "valid_ratio": 0.2,
                "train_batch_size": 8,
                "eval_batch_size": 8,
                "num_workers": 0,
            },
            "modelrc": {
                "projector_dim": 16,
                "select": "UtteranceLevel",
                "UtteranceLevel": {"pooling": "MeanPooling"},
            },
        }
        path = tmp_path / "emotion.yaml"
        path.write_text(yaml.safe_dump({"runner": RUNNER, "downstream_expert": section}))
        return ["-u", TINY, "-d", "s3prl:emotion", "-f", featurizer, "-c", str(path)]

    return build


def rows(folder: Path, split: str) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def refused(capsys, *args) -> str:
    assert main([str(each) for each in args]) == 2
    return capsys.readouterr().err


# ---- the same as s3prl's own code


class S3prlLog:
    """What s3prl's expert logs."""

    def __init__(self):
        self.values = {}

    def add_scalar(self, name, value, **_):
        self.values[name.split("-")[-1]] = value


@pytest.fixture
def theirs(tone_args, tmp_path):
    """s3prl's Featurizer and emotion expert, built as its runner does."""
    from s3prl.upstream.interfaces import Featurizer

    settings = resolve(parse_args(tone_args("weighted_sum")))
    model = build_model(settings)
    upstream = model.upstream.expert
    featurizer = Featurizer(upstream, upstream_device="cpu")
    expert = compat.import_downstream("emotion").DownstreamExpert(
        upstream_dim=featurizer.output_dim,
        upstream_rate=featurizer.downsample_rate,
        downstream_expert=settings.task.given,
        expdir=str(tmp_path),
        downstream_variant=None,
    )
    return upstream, featurizer, expert


def whole_frames(wavs) -> list[Tensor]:
    """Cut to frames of the tiny upstream: s3prl rounds the length of a rest."""
    return [torch.as_tensor(wav)[: len(wav) // 320 * 320].float() for wav in wavs]


def test_the_loss_gradients_and_figures_are_those_of_s3prls_runner(tone_args, theirs, tmp_path):
    upstream, their_featurizer, their_expert = theirs
    settings = resolve(parse_args(tone_args("weighted_sum")))
    settings.task.expdir = tmp_path
    model = build_model(settings)
    expert = model.downstream.heads
    their_expert.load_state_dict(expert.state_dict())
    batch = next(iter(ExpertLoaders(settings.task, 3).train("train", 0)))
    wavs = whole_frames(batch.wavs)
    step = model.train()(wavs, batch.targets)
    step.terms.loss.backward()
    records = defaultdict(list)
    with torch.no_grad():
        hidden = upstream(wavs)
    features = their_featurizer(wavs, hidden)
    loss = their_expert("train", features, *batch.targets.others, records=records)
    loss.backward()
    assert step.terms.loss.item() == pytest.approx(loss.item(), abs=1e-6)
    assert dict(records) == dict(batch.targets.records)
    grads = dict(their_expert.named_parameters())
    for name, ours in expert.named_parameters():
        torch.testing.assert_close(ours.grad, grads[name].grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        model.featurizer.weights.grad, their_featurizer.weights.grad, atol=1e-6, rtol=1e-5
    )

    # A whole split: what it logs is what `score` gives.
    log, records, seen = S3prlLog(), defaultdict(list), []
    model.eval()
    their_expert.eval()
    with torch.no_grad():
        for batch in ExpertLoaders(settings.task, 3).evaluation("test"):
            wavs = whole_frames(batch.wavs)
            prediction = model(wavs, batch.targets).prediction
            seen += settings.task.records(prediction, batch.items)
            features = their_featurizer(wavs, upstream(wavs))
            their_expert("test", features, *batch.targets.others, records=records)
    their_expert.log_records("test", records, log, global_step=0)
    assert settings.task.score(seen)["acc"] == pytest.approx(log.values["acc"], abs=1e-6)
    predicted = (tmp_path / "test_fold1_predict.txt").read_text().splitlines()
    assert len(seen) == len(predicted) == 32


@pytest.mark.parametrize("posterior", ["input", "static"])
def test_the_kl_of_dynamic_sum_is_in_the_loss(posterior, own_args, tmp_path):
    own = f"config.dynamic_sum.posterior={posterior},,config.dynamic_sum.kl_beta=0.3"
    settings = resolve(parse_args(own_args("dynamic_sum", "-o", own)))
    settings.task.expdir = tmp_path
    model = build_model(settings).eval()
    batch = next(iter(ExpertLoaders(settings.task, 0).evaluation("dev")))
    step = model(batch.wavs, batch.targets)
    feats = model.featurizer(model.encode(batch.wavs))
    clips = [each[:length] for each, length in zip(feats.hidden[:, 0], feats.lengths, strict=True)]
    by_hand = model.downstream.heads(
        "dev", clips, *batch.targets.others, records=defaultdict(list), batch_id=0
    )
    assert step.terms.nll.item() == pytest.approx(by_hand.item(), abs=1e-6)
    kl, beta = feats.inner_kl.mean(), settings.config.featurizer.kl_beta
    assert beta == 0.3 and kl > 0.01
    assert step.terms.loss.item() == pytest.approx((by_hand + beta * kl).item(), abs=1e-6)
    step.terms.loss.backward()
    learned = [each.grad for each in model.featurizer.parameters()]
    assert any(grad is not None and grad.abs().max() > 0 for grad in learned)


# ---- the command


def test_a_run_goes_on_as_if_it_had_not_stopped(own_args, tmp_path, capsys):
    """Crops, order and dropout included; evaluating and reporting what came out."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(own_args("dynamic_sum", "-p", str(whole))) == 0
    parts.mkdir()
    for name in ("states-3.ckpt", "dev-best.ckpt"):
        shutil.copy(whole / name, parts)
    # The best so far was that of step 3.
    named = ["-u", TINY, "-d", OWN]
    assert main(["-m", "train", "-e", str(parts), *named, "--device", "cpu"]) == 0
    assert rows(parts, "train") == [row for row in rows(whole, "train") if row["step"] > 3]
    assert rows(parts, "dev")[0] == rows(whole, "dev")[1]
    assert len({row["loss"] for row in rows(whole, "train")}) == 2
    assert (parts / "dev.log").read_text() == "6\n"  # written where the expert was told to

    result = json.loads((whole / "result.json").read_text())
    assert result["metric"] == "acc" and result["dev"]["acc"] <= 1.0
    assert result["test"]["test"]["acc"] == pytest.approx(rows(whole, "test")[-1]["acc"])
    assert result["confusion"] == {} and sum(result["layer_weights"]["test"]) == pytest.approx(1)
    capsys.readouterr()
    assert main(["-m", "evaluate", "-t", "dev", "-e", str(whole), *named]) == 0
    assert rows(whole, "dev")[-1]["acc"] == result["dev"]["acc"]
    assert report.main([str(whole), "--out", str(tmp_path / "report"), "--no_figures"]) == 0
    assert "tiny_downstream.py:DownstreamExpert" in (tmp_path / "report/leaderboard.md").read_text()

    # Its code is named by the command line, never by a checkpoint alone; it speaks of its splits.
    assert "name it yourself" in refused(
        capsys, "-m", "evaluate", "-t", "dev", "-e", whole, *named[:2]
    )
    single = refused(capsys, "-m", "inference", "-t", wave(tmp_path), "-e", whole, *named)
    assert "-m evaluate -t SPLIT" in single


def wave(folder: Path) -> Path:
    import soundfile

    soundfile.write(folder / "clip.wav", torch.randn(4000).numpy(), 16000)
    return folder / "clip.wav"


@pytest.mark.parametrize("tuning", ["--lora", "--upstream_trainable"])
def test_the_upstream_learns_from_an_experts_loss(tuning, own_args, tmp_path):
    args = own_args("last_layer", tuning, "-p", str(tmp_path / "run"))
    args[1] = "micro_wavlm"
    args += ["-o", "config.runner.total_steps=1"]
    before = build_model(resolve(parse_args(args))).upstream.state_dict()
    assert main(args) == 0
    content = torch.load(tmp_path / "run" / "states-1.ckpt", weights_only=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["parameters"]["upstream"]["trainable"] > 0
    if tuning == "--lora":
        changed = [each for name, each in content["lora"]["state"].items() if "lora_B" in name]
        changed = changed or list(content["lora"]["state"].values())
        assert any(each.abs().max() > 0 for each in changed)
    else:
        assert any(
            not torch.equal(each, before[name]) for name, each in content["Upstream"].items()
        )


@pytest.mark.parametrize("featurizer", ["hconv", "lap", "layer"])
def test_other_featurizers_of_one_stream_and_a_cache(featurizer, own_args, tmp_path, capsys):
    layer = ["-l", "2"] if featurizer == "layer" else []
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    short = ["-o", "config.runner.total_steps=2", *layer]
    assert main(own_args(featurizer, "-p", str(plain), *short)) == 0
    if featurizer == "layer":
        extra = ["--cache", str(tmp_path / "cache")]
        assert main(own_args(featurizer, "-p", str(cached), *short, *extra)) == 0
        assert "clips of unknown length" in capsys.readouterr().err
        ours, other = (rows(folder, "test")[-1]["nll"] for folder in (plain, cached))
        assert ours == pytest.approx(other, abs=0.01)


def test_the_template_of_s3prl_runs_as_the_page_says(tmp_path, monkeypatch, capsys):
    """The command of docs/s3prl-experts.md that needs no corpus, with fewer and shorter clips."""
    page = (ROOT / "docs" / "s3prl-experts.md").read_text()
    command = re.search(r"^    python run_downstream.py (.*s3prl:example.*)$", page, re.MULTILINE)
    module = compat.import_downstream("example")
    dataset = __import__(module.__package__ + ".dataset", fromlist=["x"])
    monkeypatch.setattr(dataset, "EXAMPLE_DATASET_SIZE", 8)
    monkeypatch.setattr(dataset, "EXAMPLE_WAV_MIN_SEC", 1)
    monkeypatch.setattr(dataset, "EXAMPLE_WAV_MAX_SEC", 1)
    args = [*command[1].split(), "-p", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*args, "-o", "config.runner.total_steps=2"]) == 0, capsys.readouterr().err
    assert "acc" in json.loads((tmp_path / "run/result.json").read_text())["test"]["test"]


# ---- query by example: evaluated, never trained


@pytest.fixture
def queries(tmp_path):
    """QUESST 2014's layout: six documents, each a sequence of pitches, and two queries from them.

    A query is the middle of documents 1 and 4.
    """
    import soundfile

    def melody(pitches):
        time = torch.arange(3200) / 16000
        notes = [torch.sin(2 * torch.pi * pitch * time) for pitch in pitches]
        return (0.3 * torch.cat(notes) + 0.001 * torch.randn(3200 * len(pitches))).numpy()

    generator = torch.Generator().manual_seed(0)
    scoring, audio = tmp_path / "scoring", tmp_path / "Audio"
    scoring.mkdir()
    audio.mkdir()
    lists = {"utterances": [], "dev": []}
    for number in range(6):
        pitches = (200 + 200 * torch.randint(0, 18, (8,), generator=generator)).tolist()
        soundfile.write(audio / f"doc{number}.wav", melody(pitches), 16000)
        lists["utterances"].append(f"quesst/Audio/doc{number}.wav nnenglish")
        if number in (1, 4):
            soundfile.write(audio / f"query{number}.wav", melody(pitches[2:6]), 16000)
            lists["dev"].append(f"quesst/Audio/query{number}.wav nnenglish")
    for name, lines in lists.items():
        (scoring / f"language_key_{name}.lst").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_queries_are_found_and_nothing_is_trained(queries, tmp_path, capsys):
    pytest.importorskip("dtw", reason="the extra `experts` is not installed")
    etree = pytest.importorskip("lxml.etree", reason="the extra `experts` is not installed")
    section = "config.downstream_expert."
    keys = f"{section}datarc.dataset_root={queries},,{section}datarc.num_workers=0"
    base = ["-u", TINY, "-d", "s3prl:quesst14_dtw", "-p", str(tmp_path / "run")]
    base += ["-o", f"{keys},,{section}max_workers=1"]
    assert main(["-m", "evaluate", "-t", "dev", *base, "-f", "layer", "-l", "0"]) == 0
    tree = etree.parse(str(tmp_path / "run" / "benchmark.stdlist.xml"))
    found = {}
    for query in tree.iter("detected_termlist"):
        scores = {term.get("file"): float(term.get("score")) for term in query.iter("term")}
        assert len(scores) == 6
        found[query.get("termid")] = max(scores, key=scores.__getitem__)
    assert found == {"query1": "doc1", "query4": "doc4"}
    assert not list((tmp_path / "run").glob("*.ckpt"))

    assert "nothing is trained" in refused(capsys, *base, "-f", "layer", "-l", "0")
    for featurizer in ("varan", "weighted_sum"):
        said = refused(capsys, "-m", "evaluate", "-t", "dev", *base, "-f", featurizer)
        assert "use -f layer -l N" in said


# ---- what is refused, and how


@pytest.mark.parametrize("featurizer", ["varan", "ensemble"])
def test_a_head_on_every_layer_is_refused(featurizer, own_args, capsys):
    said = refused(capsys, *own_args(featurizer))
    assert "one stream of features" in said and "-f dynamic_sum" in said
    for name in ONE_STREAM:
        assert name in said


def test_an_unknown_expert_is_told_the_like(own_args, capsys):
    said = refused(capsys, *own_args(expert="s3prl:emotoin"))
    assert "no downstream 'emotoin'" in said and "'emotion'" in said
    assert "does not take what" in refused(capsys, *own_args(expert="s3prl:voxceleb1_framelevel"))


def test_a_class_that_is_neither_task_nor_expert_is_refused(own_args, tmp_path, capsys):
    (tmp_path / "odd.py").write_text("class Odd:\n    pass\n")
    said = refused(capsys, *own_args(expert=f"{tmp_path / 'odd.py'}:Odd"))
    assert "expected a subclass of s3prl_varan.Task" in said


def test_all_problems_of_the_section_at_once(own_args, capsys):
    section = {
        "metric": "wer_of_mine",
        "higher_is_better": "yes",
        "splits": ["train", "dev"],
        "modelrc": {"select": "__import__('os').system('true')"},
    }
    said = refused(capsys, *own_args(**section))
    assert "higher_is_better: expected bool" in said
    assert "modelrc.select" in said and "an expert could run" in said
    evil = ["dev', x)", "train"]
    assert "expected names of splits" in refused(capsys, *own_args(splits=evil))
    run = ["-u", TINY, "-d", OWN, "-f", "last_layer"]
    assert "downstream_expert: missing" in refused(capsys, *run)


def test_a_metric_of_unknown_direction_is_asked_for(own_args, tmp_path, capsys):
    args = own_args(metric="wer_of_mine")
    path = tmp_path / "config.yaml"
    content = yaml.safe_load(path.read_text())
    del content["downstream_expert"]["higher_is_better"]
    path.write_text(yaml.safe_dump(content))
    assert "higher_is_better: missing" in refused(capsys, *args)


def test_a_metric_that_is_not_logged_is_told_what_is(own_args, tmp_path, capsys):
    args = own_args("last_layer", "-p", str(tmp_path / "run"), metric="accuracy")
    said = refused(capsys, *args)
    assert "logs no 'accuracy' of dev" in said and "acc" in said


def test_splits_and_keys_that_are_not_there_are_named_before_training(own_args, tmp_path, capsys):
    folder = ["-p", str(tmp_path / "run")]
    said = refused(capsys, *own_args("last_layer", *folder, splits=["train", "dev", "test2"]))
    assert "has no split 'test2'" in said and "downstream_expert.splits" in said
    said = refused(capsys, *own_args("last_layer", *folder, datarc={}))
    assert "KeyError: 'batch_size'" in said and "tiny_downstream.py" in said
    args = own_args("last_layer", *folder, "-o", "config.heads.kind=linear")
    assert "has its own model" in refused(capsys, *args)
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_several_processes_and_a_missing_gpu_are_refused(own_args, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ".cuda()" in refused(capsys, *own_args(expert="s3prl:atis"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "use one process" in refused(capsys, *own_args())


# ---- packages


def test_the_extra_is_what_messages_name():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert tuple(setup["options.extras_require"]["experts"].split()) == compat.EXTRA


@pytest.mark.parametrize("package", ["h5py", "fairseq"])
def test_missing_packages_are_named_with_what_brings_them(package, monkeypatch):
    import sys

    name = {"h5py": "diarization", "fairseq": "speech_translation"}[package]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"s3prl.downstream.{name}.expert", raising=False)
    with pytest.raises(UserError) as caught:
        compat.import_downstream(name)
    said = str(caught.value)
    assert f"needs the package '{package}'" in said
    expected = [*compat.EXTRA, "[experts]"] if package == "h5py" else ["fairseq-fixed"]
    assert all(each in said for each in expected)


def test_the_page_has_every_expert_that_s3prl_has():
    page = (ROOT / "docs" / "s3prl-experts.md").read_text().partition("## Which run")[2]
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\| `?([\w ]*?)`? *\|(.*)\|$", page, re.MULTILINE)
    about = yaml.safe_load(KNOWN.read_text())
    assert [name for name, _, _ in rows] == sorted(about) == expert_names()
    for name, metric, said in rows:
        assert metric == about[name].get("metric", ""), name
        assert said.strip().startswith("refused") == ("refused" in about[name]), name


# ---- configs


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_found_and_are_valid(path):
    for package in () if path.stem == "example" else ("asteroid", "dtw"):
        pytest.importorskip(package, reason="the extra `experts` is not installed")
    first = path.read_text().splitlines()[0].removeprefix("# python run_downstream.py ")
    args = parse_args(first.split())
    assert args.downstream == f"s3prl:{path.stem}"
    settings = resolve(args)
    assert Path(settings.flags.config) == path
    kept = settings.stored()["config"]["downstream_expert"]
    assert kept["splits"] == ["train", "dev", "test"] and kept["metric"] == settings.task.metric
