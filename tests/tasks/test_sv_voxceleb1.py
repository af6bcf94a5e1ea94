"""Speaker verification: s3prl's loss and figures, embeddings, dev lists, and what is refused."""

import json
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from s3prl_varan.app.cli import main
from s3prl_varan.audio import read_audio
from s3prl_varan.corpora.trials import LISTS, Trial, prepare_trials, read_trials
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.report.cli import main as report
from s3prl_varan.tasks.sv_voxceleb1 import SpeakerVerification, equal_error_rate, min_dcf
from s3prl_varan.tasks.sv_voxceleb1.corpus import UNSEEN, Target
from s3prl_varan.training.loop import Trainer
from tests.conftest import TINY

SPLITS = ["train", "dev", "test"]
DIM, SPEAKERS = 12, ["ann", "bob", "cyd", "dan", "eve"]
SMALL = {"input_dim": 16, "agg_dim": 24}


def make(root: Path, outputs=None, model=None, **data) -> SpeakerVerification:
    given = {"test_meta_data": str(root / "voxceleb1_test_v2.txt"), "dev_trials": 50, **data}
    options = SpeakerVerification.Data(file_path=str(root), **given)
    model = SpeakerVerification.Model(**(model or SMALL))
    return SpeakerVerification(options, model, outputs=outputs)


def heads_of(task: SpeakerVerification, kind="expert", layers=1, **options) -> nn.Module:
    torch.manual_seed(0)
    return task.build_heads(DIM, layers, 320, HeadOptions(kind=kind, dim=16, **options))


def features(batch: int, layers: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch + frames)
    return torch.randn(batch, layers, frames, DIM, generator=generator)


# ---- against s3prl


@pytest.mark.parametrize(("s", "m"), [(30.0, 0.4), (15.0, 0.0)])
def test_loss_and_embedding_are_s3prls(s, m, tmp_path):
    from s3prl.downstream.sv_voxceleb1.model import AMSoftmaxLoss, Model

    torch.manual_seed(1)
    connector, hparams = nn.Linear(DIM, 16), {"agg_dim": 24, "dropout_p": 0.0, "batch_norm": False}
    network = Model(16, 24, "SP", "XVector", "UtteranceExtractor", hparams)
    loss = AMSoftmaxLoss(16, len(SPEAKERS), s=s, m=m)
    task = make(tmp_path, SPEAKERS, {**SMALL, "s": s, "m": m})
    heads = heads_of(task)
    ours = heads.encoder.models[0]
    heads.encoder.projectors[0].load_state_dict(connector.state_dict())
    ours.frames.load_state_dict(network.framelevel_feature_extractor.state_dict())
    ours.utterance.load_state_dict(network.utterancelevel_feature_extractor.state_dict())
    heads.directions.data[0] = loss.W.data
    hidden, labels = features(4, 1, 40), torch.tensor([0, 3, 3, 4])
    mask = torch.zeros(4, 40 - 14)  # nothing is padded: there s3prl counts a frame too many
    expected = loss(network(connector(hidden[:, 0]), mask), labels)
    out = LayerOutputs(*heads(hidden, torch.full((4,), 40)))
    found = task.layer_loss(out, labels)
    assert found.shape == (4, 1)
    torch.testing.assert_close(found.mean(), expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    found.mean().backward()
    theirs = network.framelevel_feature_extractor.module[0].kernel.weight.grad
    mine = ours.frames.module[0].kernel.weight.grad
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(heads.directions.grad[0], loss.W.grad, atol=1e-5, rtol=1e-4)
    embeddings = nn.functional.normalize(network.inference(connector(hidden[:, 0]), mask), dim=-1)
    prediction = task.combine(out, torch.zeros(4, 1), "geometric").values
    torch.testing.assert_close(prediction, embeddings, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_s3prls(seed):
    from s3prl.downstream.sv_voxceleb1.utils import EER
    from s3prl.metric import compute_minDCF

    generator = np.random.default_rng(seed)
    same = generator.random(300) < (0.5, 0.1, 0.9, 0.5)[seed]
    scores = generator.standard_normal(300) + (0.8, 2.0, 0.1, -0.5)[seed] * same
    if seed == 3:
        scores = scores.round(1)  # many alike
    assert equal_error_rate(same, scores) == pytest.approx(float(EER(same, scores)[0]), abs=1e-9)
    assert min_dcf(same, scores) == pytest.approx(compute_minDCF(same, scores)[0], abs=1e-9)


def test_extremes_of_the_figures():
    same, scores = [True, True, False, False], [0.9, 0.8, 0.2, 0.1]
    assert equal_error_rate(same, scores) == min_dcf(same, scores) == 0
    assert equal_error_rate(same, scores[::-1]) == min_dcf(same, scores[::-1]) == 1


# ---- embeddings


@pytest.mark.parametrize("kind", ["expert", "linear"])
@pytest.mark.parametrize("shared", [False, True])
def test_an_embedding_does_not_depend_on_the_batch(kind, shared, tmp_path):
    task = make(tmp_path, SPEAKERS)
    heads = heads_of(task, kind, layers=3, shared=shared).eval()
    assert heads.pooled == (kind == "linear")
    lengths = torch.tensor([3, 60, 16, 15, 31])  # some shorter than the network looks
    hidden = features(5, 3, 60)
    together = heads(hidden.clone(), lengths)[0]
    assert together.shape == (5, 3, 16 + len(SPEAKERS)) and together.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone = heads(hidden[row : row + 1, :, :length].clone(), lengths[row : row + 1])[0][0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)
        wider = nn.functional.pad(hidden[row : row + 1, :, :length], (0, 0, 0, 9), value=5.0)
        torch.testing.assert_close(heads(wider, lengths[row : row + 1])[0][0], alone)


@pytest.mark.parametrize("kind", ["expert", "linear"])
def test_gradients_are_finite_where_a_unit_is_silent(kind, tmp_path):
    task = make(tmp_path, SPEAKERS)
    heads = heads_of(task, kind, layers=2).train()
    hidden = torch.zeros(2, 2, 20, DIM)  # every unit is constant over time
    out = LayerOutputs(*heads(hidden, torch.tensor([20, 5])))
    task.layer_loss(out, torch.tensor([1, 2])).sum().backward()
    assert all(each.grad.isfinite().all() for each in heads.parameters() if each.grad is not None)


def test_scores_are_weighted_cosines(tmp_path):
    task = make(tmp_path, SPEAKERS)
    values = torch.randn(2, 3, 8 + len(SPEAKERS), generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, -1.0, 0.0]])
    out = LayerOutputs(values, torch.ones(2))
    one, other = task.combine(out, logits, "geometric").values
    cosines = nn.functional.cosine_similarity(values[0, :, :8], values[1, :, :8], dim=-1)
    weights = (logits[0].softmax(0) * logits[1].softmax(0)).sqrt()
    torch.testing.assert_close(one @ other, (weights * cosines).sum())
    torch.testing.assert_close(one @ one, torch.tensor(1.0))


def test_an_unseen_speaker_has_no_loss(tmp_path):
    task = make(tmp_path, SPEAKERS)
    out = LayerOutputs(torch.randn(2, 3, 8 + len(SPEAKERS)), torch.ones(2))
    loss = task.layer_loss(out, task.collate([Target(1), Target()]))
    assert Target().speaker == UNSEEN and (loss[1] == 0).all() and (loss[0] != 0).all()


def test_dropout_belongs_to_linear_heads(tmp_path):
    task = make(tmp_path, SPEAKERS)
    with pytest.raises(UserError, match=r"heads\.dropout"):
        heads_of(task, "expert", dropout=0.1)
    heads, hidden = heads_of(task, "linear", dropout=0.5), features(2, 1, 4)
    lengths = torch.full((2,), 4)
    first, second = heads(hidden, lengths)[0], heads(hidden, lengths)[0]
    assert torch.equal(first[..., :16], second[..., :16]) and not torch.equal(first, second)


# ---- the corpus


def test_dev_is_held_out_of_training_where_none_is_given(voices_corpus):
    task, again = make(voices_corpus), make(voices_corpus)
    assert task.splits() == SPLITS and task.problems(SPLITS) == []
    heard = {split: {item.speaker for item in task.items(split)} for split in SPLITS}
    assert len(heard["dev"]) == 2 and len(heard["train"]) == 3
    assert sum(map(len, heard.values())) == len(set.union(*heard.values())) == 8
    assert task.outputs == sorted(heard["train"])
    for split in SPLITS:
        assert task.items(split) == again.items(split)
    trials = [each for item in task.items("dev") for each in item.target.trials]
    assert {trial.same for _, trial in trials} == {True, False}
    for _, trial in trials:
        assert trial.same == (trial.first[:7] == trial.second[:7]) and trial.first != trial.second
    assert len({frozenset((each.first, each.second)) for _, each in trials}) == len(trials)
    odd = task.warnings({split: task.items(split) for split in SPLITS})
    assert not any("speakers in" in line for line in odd)


def test_each_clip_of_the_trials_is_an_item_once(voices_corpus):
    task = make(voices_corpus)
    trials = read_trials(voices_corpus / "voxceleb1_test_v2.txt")
    items = task.items("test")
    assert len(trials) == 66 and len(items) == 12 == len({item.path for item in items})
    assert "id10270-vid0-00001" in {item.name for item in items}  # as s3prl writes it
    asked = [each for item in items for each in item.target.trials]
    assert [trial for _, trial in sorted(asked, key=lambda each: each[0])] == trials


def test_speakers_of_a_dev_list_are_not_trained_on(voices_corpus, tmp_path):
    listed = tmp_path / "dev.txt"
    one, other = "id10002/vid0/00000.wav", "id10002/vid1/00003.wav"
    listed.write_text(f"1 {one} {other}\n\n0 {one} id10004/vid0/00001.wav\n")
    task = make(voices_corpus, dev_meta_data=str(listed))
    assert task.outputs == ["id10001", "id10003", "id10005"]
    assert [item.speaker for item in task.items("dev")] == ["id10002", "id10002", "id10004"]
    assert len(task.items("train")) == 12
    for item in task.items("train"):
        assert task.outputs[item.target.speaker] == item.speaker


def test_only_training_clips_are_cut(voices_corpus):
    task = make(voices_corpus, max_timestep=1700)
    item = max(task.items("train"), key=lambda each: task.num_samples(each, False))
    whole = read_audio(item.path)
    starts = set()
    for seed in range(5):
        part = task.load(item, random.Random(seed), training=True)
        assert len(part) == 1700 == task.num_samples(item, training=True)
        (start,) = (whole.unfold(0, 1700, 1) == part).all(dim=1).nonzero()[:, 0].tolist()
        starts.add(start)
    assert len(starts) > 2
    assert torch.equal(task.load(item, random.Random(0), training=False), whole)
    uncut = make(voices_corpus, max_timestep=None)
    assert torch.equal(uncut.load(item, random.Random(0), training=True), whole)
    stretch = replace(item, start=0.02, end=0.08)
    found = uncut.load(stretch, random.Random(0), training=True)
    assert torch.equal(found, whole[320:1280]) and uncut.num_samples(stretch, True) == 960
    short = make(voices_corpus, max_timestep=500)
    part = short.load(stretch, random.Random(1), training=True)
    assert (whole[320:1280].unfold(0, 500, 1) == part).all(dim=1).any()


def test_problems_come_all_at_once(voices_corpus, tmp_path):
    root = shutil.copytree(voices_corpus, tmp_path / "vox")
    task = make(root)
    torn = task.items("train")[0].path
    torn.write_bytes(torn.read_bytes()[:100])
    for number in (0, 3):
        next(root.glob(f"test/wav/id10272/*/0000{number}.wav")).unlink()
    problems = make(root).problems(SPLITS)
    assert len([line for line in problems if "voxceleb1_test_v2.txt lists it" in line]) == 2
    (problem,) = make(root).problems(["dev"])[:1]
    assert "id10272/vid" in problem and str(root) in problem
    shutil.copytree(voices_corpus / "test", root / "test", dirs_exist_ok=True)
    (problem,) = make(root).problems(SPLITS)
    assert problem.startswith(str(torn)) and "broken off" in problem
    (root / "voxceleb1_test_v2.txt").write_text("1 a b\n2 a b\n1 a\n")
    problems = make(root).problems(SPLITS)
    assert len(problems) == 2 and "line 2: expected 1 or 0" in problems[0]
    (root / "voxceleb1_test_v2.txt").write_text("1 a b\n")
    (problem,) = make(root).problems(SPLITS)
    assert "expected trials of one speaker (1) and of two (0)" in problem


def test_a_checkpoint_of_other_speakers_is_told(voices_corpus):
    task = make(voices_corpus, outputs=["id1", "id2"])
    assert len(task.items("test")) == 12  # which need not know them
    with pytest.raises(UserError, match="3 training speakers, not the 2 of the checkpoint"):
        task.items("train")


# ---- results


def test_figures_and_files(voices_corpus, tmp_path):
    task = make(voices_corpus)
    items = task.items("test")
    ids = {name: place for place, name in enumerate(sorted({item.speaker for item in items}))}
    values = torch.eye(3)[[ids[item.speaker] for item in items]]
    values[0] = values[-1]  # one clip is taken for another speaker's
    records = task.records(Prediction(values, torch.ones(12)), items)
    figures = task.score(random.Random(0).sample(records, 12))  # in any order
    trials = read_trials(voices_corpus / "voxceleb1_test_v2.txt")
    missed = 3 / sum(trial.same for trial in trials)
    accepted = 4 / sum(not trial.same for trial in trials)
    assert figures["mindcf"] == pytest.approx(min(1, (0.01 * missed + 0.99 * accepted) / 0.01))
    assert 100 * accepted < figures["eer"] < 100 * missed
    task.write(records, "test", tmp_path)
    assert task.submission() == {"sv_public/predict.txt": "test_predict.txt"}
    truth = (tmp_path / "test_truth.txt").read_text().splitlines()
    first = trials[0]
    pair = "_".join(each[:-4].replace("/", "-") for each in (first.first, first.second))
    assert truth[0] == f"{pair} {int(first.same)}" and len(truth) == 66
    scores = (tmp_path / "test_predict.txt").read_text().splitlines()
    assert [line.split()[0] for line in scores] == [line.split()[0] for line in truth]
    given = [float(line.split()[1]) for line in scores]
    assert sum(score != trial.same for score, trial in zip(given, trials, strict=True)) == 7
    assert all(np.isnan(value) for value in task.score([]).values())


def test_answers_are_embeddings(tmp_path):
    task = make(tmp_path, SPEAKERS)
    (answer,) = task.answers(Prediction(torch.tensor([[0.6, -0.8, 0.0, 0.0, 0.0]]), torch.ones(1)))
    assert answer["prediction"] == pytest.approx([0.6, -0.8, 0, 0, 0])
    assert json.dumps(answer) and task.text(answer).startswith(
        "embedding of 5 numbers  0.600  -0.8"
    )


# ---- real speech


@pytest.fixture(scope="module")
def digits(shared_dir, tmp_path_factory) -> Path:
    """FSDD in VoxCeleb1's layout: four speakers in dev, two in test, twelve clips each."""
    root = tmp_path_factory.mktemp("digits")
    paths = sorted((shared_dir / "data" / "fsdd").rglob("[0-3]_*_[0-2].*"))
    names = sorted({path.stem.split("_")[1] for path in paths})
    heard: dict[str, list[str]] = {}
    for path in paths:
        digit, name, take = path.stem.split("_")
        speaker = f"id1{names.index(name):04d}"
        clip = f"{speaker}/digit{digit}/{int(take):05d}.wav"
        part = "dev" if names.index(name) < 4 else "test"
        target = root / part / "wav" / clip
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, read_audio(path).numpy(), 16000)
        if part == "test":
            heard.setdefault(speaker, []).append(clip)
    one, other = heard.values()
    lines = [f"1 {a} {b}\n" for mine in (one, other) for a, b in zip(mine, mine[1:], strict=False)]
    lines += [f"0 {a} {b}\n" for a, b in zip(one, other, strict=True)]
    (root / "veri_test2.txt").write_text("".join(lines))
    return root


def test_real_speech_train_stop_resume_evaluate_infer_report(digits, tmp_path, monkeypatch, capsys):
    settings = {
        "downstream_expert.datarc.num_workers": 0,
        "downstream_expert.datarc.eval_batch_size": 6,
        "downstream_expert.datarc.max_timestep": 6000,
        "downstream_expert.modelrc.input_dim": 16,
        "downstream_expert.modelrc.agg_dim": 32,
        "runner.total_steps": 6,
        "runner.eval_step": 3,
        "runner.save_step": 3,
        "runner.log_step": 2,
        "runner.max_keep": 9,
        "runner.gradient_accumulate_steps": 1,
    }
    override = ",,".join(f"config.{key}={value}" for key, value in settings.items())
    run = [
        "-u",
        TINY,
        "-d",
        "sv_voxceleb1",
        "-f",
        "varan",
        "--data",
        str(digits),
        "--device",
        "cpu",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*run, "-o", override, "-p", str(whole)]) == 0, capsys.readouterr().err
    train_step = Trainer._step

    def stopping(self):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self)

    monkeypatch.setattr(Trainer, "_step", stopping)
    args = [*run, "-o", override, "-p", str(parts), "-a"]
    assert main(args) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert main(args) == 0, capsys.readouterr().err
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    result = json.loads((parts / "result.json").read_text())
    assert result["metric"] == "eer" and result["corpus"] == digits.name and not result["confusion"]
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    dev = [row for row in rows if row["split"] == "dev" and not row.get("final")]
    assert result["dev"]["eer"] == min(row["eer"] for row in dev) and "loss" not in dev[0]
    assert all(row["loss"] > 0 for row in rows if row["split"] == "train")
    weights = (parts / "layer_weights.csv").read_text().splitlines()
    assert len(weights) == 25 and weights[1].split(",")[2].startswith("id1000")
    call = ["-e", str(parts), "-u", TINY, "--device", "cpu"]
    assert main(["-m", "evaluate", "-t", "test", *call]) == 0, capsys.readouterr().err
    last = json.loads((parts / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eer"] == result["test"]["test"]["eer"]
    # The dot product of what inference says of two clips is their score.
    name, score = (parts / "test_predict.txt").read_text().split()[:2]
    files = [digits / "test" / "wav" / f"{each.replace('-', '/')}.wav" for each in name.split("_")]
    assert main(["-m", "inference", "-t", ",".join(map(str, files)), *call]) == 0
    rows = [json.loads(line) for line in (parts / "inference.jsonl").read_text().splitlines()]
    one, other = (np.array(row["prediction"]) for row in rows)
    assert one @ other == pytest.approx(float(score), abs=1e-5) and len(one) == 4 * 16
    assert main(["-m", "evaluate", "-t", "train", *call]) == 2
    assert "train: eer is nan, no figure" in capsys.readouterr().err
    assert report([str(whole), str(parts), "--out", str(tmp_path / "report")]) == 0


def test_what_trials_prepares_is_trained_on(shared_dir, tmp_path, capsys):
    source = tmp_path / "ravdess"
    for actor in range(1, 8):
        folder = shared_dir / "data" / "ravdess" / f"Actor_{actor:02d}"
        (source / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:3]:
            (source / folder.name / path.name).symlink_to(path)
    prepare_trials(source)
    settings = "runner.total_steps=2", "heads.kind=linear", "downstream_expert.datarc.num_workers=0"
    override = ",,".join(f"config.{each}" for each in settings)
    run = ["-u", TINY, "-d", "sv_voxceleb1", "-f", "weighted_sum", "--data", str(source)]
    flags = ["--device", "cpu", "--cache", str(tmp_path / "cache"), "-o", override]
    assert main([*run, *flags, "-p", str(tmp_path / "exp")]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "exp" / "result.json").read_text())
    assert result["corpus"] == "ravdess" and 0 <= result["test"]["test"]["eer"] <= 100
    lines = (tmp_path / "exp" / "dev_truth.txt").read_text().splitlines()
    assert len(lines) == len((source / "meta_data" / LISTS["dev"]).read_text().splitlines())
    assert isinstance(read_trials(source / "meta_data" / LISTS["dev"])[0], Trial)
