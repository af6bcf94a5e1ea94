"""Speaker verification: embeddings, margin, trials, error rates; parity with s3prl."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from s3prl_varan.corpora.trials import Trial, draw_trials, prepare_trials
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.layerwise.outputs import LayerOutputs
from s3prl_varan.tasks.shapes.base import Item
from s3prl_varan.tasks.sv_voxceleb1 import SpeakerVerification, equal_error_rate, min_dcf
from s3prl_varan.tasks.sv_voxceleb1.corpus import Target
from s3prl_varan.tasks.sv_voxceleb1.heads import XVectorModel
from tests.tasks.corpora import write_noise

SPEAKERS = ["a", "b", "c"]


def make(**model) -> SpeakerVerification:
    """A task that needs no corpus."""
    data = SpeakerVerification.Data(file_path="nowhere", test_meta_data="nowhere")
    return SpeakerVerification(data, SpeakerVerification.Model(**model), outputs=SPEAKERS)


@pytest.fixture
def unpacked(tmp_path):
    """VoxCeleb1 as it is unpacked: 8 speakers to train on, 2 of the test set, trials of these."""
    generator, root = np.random.default_rng(5), tmp_path / "VoxCeleb1"
    clips = {}
    for part, numbers in (("dev", range(1, 9)), ("test", range(20, 22))):
        for number in numbers:
            for take in range(3):
                clip = f"id100{number:02d}/vid{take}/00001.wav"
                write_noise(root / part / "wav" / clip, 0.2, generator)
                clips.setdefault((part, number), []).append(clip)
    one, other = clips["test", 20], clips["test", 21]
    lines = [f"1 {one[0]} {one[1]}", f"1 {other[0]} {other[2]}", f"0 {one[0]} {other[0]}"]
    (root / "voxceleb1_test_v2.txt").write_text("\n".join(lines) + "\n")
    return root


def of(root, **more) -> SpeakerVerification:
    places = {**SpeakerVerification.locate(root), **more}
    return SpeakerVerification(SpeakerVerification.Data(**places), SpeakerVerification.Model())


def test_error_rates_are_those_of_s3prl():
    from s3prl.downstream.sv_voxceleb1.utils import EER

    generator = np.random.default_rng(0)
    for _ in range(5):
        same = generator.random(300) < 0.4
        scores = generator.normal(0.7 * same, 0.5)
        theirs, _ = EER(same.astype(int), scores)
        assert equal_error_rate(same, scores) == pytest.approx(theirs, abs=1e-6)
    assert equal_error_rate([True, False], [0.9, 0.1]) == 0
    assert equal_error_rate([True, False], [0.1, 0.9]) == 1


def test_detection_cost_by_hand():
    # One target is missed at a threshold above all others: cost 0.01 * 1/2 of 0.01.
    same, scores = [True, True, False, False], [0.9, 0.2, 0.5, 0.1]
    assert min_dcf(same, scores) == pytest.approx(0.5)
    assert min_dcf(same, [0.9, 0.8, 0.2, 0.1]) == 0
    assert min_dcf(same, [0.1, 0.2, 0.8, 0.9]) == 1  # to accept nobody costs no more


def test_loss_is_s3prls_margin_softmax():
    from s3prl.downstream.sv_voxceleb1.model import AMSoftmaxLoss

    torch.manual_seed(0)
    task = make(s=30.0, m=0.4)
    embeddings, targets = torch.randn(5, 7), torch.tensor([0, 2, 1, 1, 0])
    theirs = AMSoftmaxLoss(7, 3, s=30.0, m=0.4)
    cosines = F.normalize(embeddings, dim=-1) @ F.normalize(theirs.W, dim=0)
    out = LayerOutputs(torch.cat([embeddings, cosines], dim=-1)[:, None], torch.ones(5))
    ours = task.layer_loss(out, targets)
    assert ours.shape == (5, 1)
    torch.testing.assert_close(ours.mean(), theirs(embeddings, targets), atol=1e-5, rtol=1e-5)


def test_network_is_s3prls_where_there_is_no_padding():
    from s3prl.downstream.sv_voxceleb1.model import Model

    torch.manual_seed(0)
    ours = XVectorModel(16, 24, 0.0).eval()
    hparams = {"agg_dim": 24, "dropout_p": 0.0, "batch_norm": False}
    theirs = Model(16, 24, "SP", "XVector", "UtteranceExtractor", hparams).eval()
    theirs.framelevel_feature_extractor.load_state_dict(ours.frames.state_dict())
    theirs.utterancelevel_feature_extractor.load_state_dict(ours.utterance.state_dict())
    features = torch.randn(3, 40, 16)
    values, _ = ours(features, torch.full((3,), 40))
    mask = torch.zeros(3, 40)
    torch.testing.assert_close(values[:, :16], theirs.inference(features, mask))
    torch.testing.assert_close(values[:, 16:], theirs(features, mask))


@pytest.mark.parametrize("kind", ["linear", "expert"])
def test_an_embedding_does_not_depend_on_the_batch(kind):
    torch.manual_seed(0)
    task = make(input_dim=12, agg_dim=20)
    heads = task.build_heads(8, 2, 320, HeadOptions(kind=kind, dim=12)).eval()
    lengths, alone = torch.tensor([50, 17, 3]), []
    hidden = torch.randn(3, 2, 50, 8)
    whole, _ = heads(hidden, lengths)
    assert whole.shape == (3, 2, 12 + len(SPEAKERS))
    for index, length in enumerate(lengths.tolist()):
        part, _ = heads(hidden[index : index + 1, :, :length], lengths[index : index + 1])
        alone.append(part)
    torch.testing.assert_close(torch.cat(alone), whole, atol=1e-5, rtol=1e-4)


def test_a_dot_product_is_the_weighted_sum_of_cosines():
    torch.manual_seed(0)
    task, layers = make(), 4
    values, logits = torch.randn(2, layers, 6 + len(SPEAKERS)), torch.randn(2, layers)
    one, other = task.combine(LayerOutputs(values, torch.ones(2)), logits, "geometric").values
    q = logits.softmax(dim=-1)
    cosines = F.cosine_similarity(values[0, :, :6], values[1, :, :6], dim=-1)
    torch.testing.assert_close(one @ other, ((q[0] * q[1]).sqrt() * cosines).sum())
    torch.testing.assert_close(one @ one, torch.tensor(1.0))


def test_every_trial_is_scored_once_and_in_order(tmp_path):
    trials = [Trial(True, "x", "y"), Trial(False, "z", "x"), Trial(False, "y", "z")]
    task, embeddings = make(), {"x": [1.0, 0.0], "y": [0.8, 0.6], "z": [0.0, 1.0]}
    records = []
    for name in "zxy":  # in any order
        asked = tuple((place, each) for place, each in enumerate(trials) if each.first == name)
        item = Item(f"clip-{name}", tmp_path, Target(clip=name, trials=asked), speaker=name)
        out = LayerOutputs(torch.tensor([[embeddings[name] + [0.0] * 3]]), torch.ones(1))
        prediction = task.combine(out, torch.zeros(1, 1), "geometric")
        records += task.records(prediction, [item])
    task.write(records, "test", tmp_path)
    predicted = (tmp_path / "test_predict.txt").read_text().split()
    assert predicted[::2] == ["clip-x_clip-y", "clip-z_clip-x", "clip-y_clip-z"]
    assert [float(each) for each in predicted[1::2]] == pytest.approx([0.8, 0.0, 0.6], abs=1e-6)
    assert (tmp_path / "test_truth.txt").read_text().split()[1::2] == ["1", "0", "0"]
    assert task.score(records)["eer"] == 0


# ---- the corpus


def test_dev_is_made_of_speakers_that_are_not_trained_on(unpacked):
    task = of(unpacked)
    people = {split: {item.speaker for item in task.items(split)} for split in task.splits()}
    assert not task.problems(task.splits())
    assert people["test"] == {"id10020", "id10021"} and len(people["dev"]) == 2
    assert len(people["train"]) == 6 and not people["train"] & (people["dev"] | people["test"])
    assert task.outputs == sorted(people["train"])
    assert [item.name for item in of(unpacked).items("dev")] == [i.name for i in task.items("dev")]
    asked = [trial for item in task.items("test") for _, trial in item.target.trials]
    assert len(task.items("test")) == 4 and len(asked) == 3  # clips are embedded once


def test_training_clips_are_cut_and_trials_are_not(unpacked):
    task = of(unpacked, max_timestep=1000)
    for split, length in (("train", 1000), ("test", 3200)):
        item = task.items(split)[0]
        training = split == "train"
        assert len(task.load(item, random.Random(0), training)) == length
        assert task.num_samples(item, training) == length


def test_a_bad_corpus_is_refused_with_every_problem(unpacked):
    trials = unpacked / "voxceleb1_test_v2.txt"
    trials.write_text(trials.read_text() + "2 a b\n1 only-one\n")
    (problem,) = {line[:60] for line in of(unpacked).problems(["test"])[:1]}
    assert "line 4" in of(unpacked).problems(["test"])[0] and problem
    assert "line 5" in of(unpacked).problems(["test"])[1]
    trials.write_text("1 id10020/vid0/00001.wav id10020/gone.wav\n0 id10020/vid0/00001.wav away\n")
    told = of(unpacked).problems(["test"])
    assert len(told) == 2 and "no id10020/gone.wav" in told[0] and "no away" in told[1]
    trials.write_text("1 id10020/vid0/00001.wav id10020/vid1/00001.wav\n")
    assert "of two (0)" in of(unpacked).problems(["test"])[0]


def test_other_speakers_than_the_checkpoints_are_refused(unpacked):
    task = of(unpacked)
    other = SpeakerVerification(task.data, task.model, outputs=["someone", "else"])
    with pytest.raises(UserError, match="not the 2 of the checkpoint"):
        other.items("train")


# ---- preparing any corpus


def test_speakers_are_parted_and_trials_drawn(trials_corpus):
    task = of(trials_corpus)
    people = {split: {item.speaker for item in task.items(split)} for split in task.splits()}
    assert [len(people[split]) for split in ("train", "dev", "test")] == [4, 2, 2]
    assert len(set().union(*people.values())) == 8
    for split in ("dev", "test"):
        trials = [trial for item in task.items(split) for _, trial in item.target.trials]
        same = [trial.same for trial in trials]
        assert len({frozenset((t.first, t.second)) for t in trials}) == len(trials) > 10
        assert 0 < sum(same) < len(same)
        owner = {item.target.clip: item.speaker for item in task.items(split)}
        assert all((owner[t.first] == owner[t.second]) == t.same for t in trials)


def test_the_same_seed_draws_the_same_and_bad_rows_are_listed(trials_corpus, tmp_path):
    for out, seed in (("one", 0), ("two", 0), ("three", 1)):
        prepare_trials(trials_corpus, tmp_path / out, trials=30, seed=seed)
    texts = [(tmp_path / out / "test_trials.txt").read_text() for out in ("one", "two", "three")]
    assert texts[0] == texts[1] != texts[2]
    table = tmp_path / "table.tsv"
    table.write_text("path\tspeaker\nx.wav\t\ny.wav\tme\ny.wav\tme\n")
    with pytest.raises(UserError) as caught:
        prepare_trials(table, tmp_path / "four")
    text = str(caught.value)
    assert "line 2: no path, or no speaker" in text and "y.wav: listed twice" in text
    assert not list((tmp_path / "four").glob("*"))
    names = {"a": ["a1", "a2"], "b": ["b1", "b2"]}
    assert len(draw_trials(names, 100, random.Random(0))) == 6  # there are no more
