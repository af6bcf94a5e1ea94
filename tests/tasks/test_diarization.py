"""Speaker diarization: s3prl's loss, labels, files; one order for all layers; md-eval's rates."""

import json
import random
import runpy
import shutil
import signal
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_varan.app.cli import main
from s3prl_varan.corpora.kaldi import Turn, read_kaldi
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.layerwise.objective import elbo
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.tasks.diarization import Diarization
from s3prl_varan.tasks.diarization.scoring import error_rates, errors, turns_of
from tests.conftest import TINY

DIM, RATE = 12, 320


def make(root: Path = Path("none"), **data) -> Diarization:
    model = Diarization.Model(rnn_layers=1, hidden_size=8)
    return Diarization(Diarization.Data(**{**Diarization.locate(root), **data}), model)


def scattered(generator: random.Random, seconds: float, names: str, count: int) -> list[Turn]:
    """Turns anywhere, a speaker's own overlapping too."""
    found = []
    for _ in range(count):
        start = generator.uniform(0, 0.9 * seconds)
        end = generator.uniform(start + 0.05, seconds)
        found.append(Turn(generator.choice(names), round(start, 4), round(end, 4)))
    return found


def batch(task: Diarization, layers: int, seconds=(2.0, 1.1, 1.62), seed=0):
    """Outputs of random heads on random features, and turns."""
    torch.manual_seed(seed)
    generator = random.Random(seed)
    lengths = torch.tensor([round(50 * each) for each in seconds])
    hidden = torch.randn(len(seconds), layers, int(lengths.max()), DIM)
    names = "abcdef"[: task.data.num_speakers]
    turns = [scattered(generator, each, names, 4) for each in seconds]
    heads = task.build_heads(DIM, layers, RATE, HeadOptions())
    return LayerOutputs(*heads(hidden, lengths)), turns, heads, hidden


# ---- loss


@pytest.mark.parametrize("speakers", [1, 2, 3])
def test_loss_of_one_layer_is_s3prls(speakers):
    from s3prl.downstream.diarization.utils import pit_loss

    task = make(num_speakers=speakers)
    out, turns, *_ = batch(task, 1)
    targets = task.collate(turns)
    labels = task.labels(targets, out.values.size(2))
    theirs, best, orders = pit_loss(4 * out.values[:, 0], labels, out.lengths)
    nll = task.layer_loss(LayerOutputs(4 * out.values, out.lengths), targets)
    assert nll.shape == (3, 1, len(orders)) and len(orders) == len(
        list(permutations([0] * speakers))
    )
    terms = elbo(nll, torch.zeros(3, 1), torch.ones(1), 0.0)
    assert terms.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert nll[:, 0].argmin(dim=-1).tolist() == best.tolist()


def test_all_layers_share_one_order():
    """Two layers, each sure of another order: one of them has to be wrong."""
    task = make()
    task.build_heads(DIM, 2, RATE, HeadOptions())
    frames = 20
    first = torch.tensor([5.0, -5.0]).expand(1, 1, frames, 2)  # speaker 0 speaks
    values = torch.cat([first, first.flip(-1)], dim=1)
    targets = task.collate([[Turn("a", 0.0, frames * RATE / 16000)]])
    nll = task.layer_loss(LayerOutputs(values, torch.tensor([frames])), targets)
    right, wrong = np.log1p(np.exp(-5)), np.log1p(np.exp(5))
    assert nll[0].numpy() == pytest.approx(np.array([[right, wrong], [wrong, right]]), rel=1e-4)
    for share in (0.7, 0.2):
        q = torch.tensor([[share, 1 - share]])
        loss = float(elbo(nll, q.log(), torch.full((2,), 0.5), 0.0).loss)
        most = max(share, 1 - share)
        assert loss == pytest.approx(most * right + (1 - most) * wrong, rel=1e-4)
        assert loss > 0.9 > right  # what the least of each layer would give


def test_gradients_lead_the_layers_to_one_order():
    """What lets prediction average the layers: from opposite orders they come to agree."""
    task = make()
    task.build_heads(DIM, 2, RATE, HeadOptions())
    weight = torch.tensor([[1.0, -1.0], [-0.5, 0.5]], requires_grad=True)
    targets, lengths = task.collate([[Turn("a", 0.0, 0.4)]]), torch.tensor([20])
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        out = LayerOutputs(weight[None, :, None].expand(1, 2, 20, 2), lengths)
        nll = task.layer_loss(out, targets)
        elbo(nll, torch.zeros(1, 2), torch.full((2,), 0.5), 0.0).loss.backward()
        optimizer.step()
    assert (weight.sign() == torch.tensor([1.0, -1.0])).all()


def test_silence_and_chunks_without_turns_are_learned_from():
    task = make()
    task.build_heads(DIM, 1, RATE, HeadOptions())
    out = LayerOutputs(torch.full((2, 1, 10, 2), -3.0), torch.tensor([10, 10]))
    for turns in ([[], []], [[], [Turn("a", 0, 0.01)]]):  # less than half a frame
        nll = task.layer_loss(out, task.collate(turns))
        assert nll.numpy() == pytest.approx(np.log1p(np.exp(-3)))


# ---- padding


@pytest.mark.parametrize("kind", ["expert", "linear"])
def test_padding_changes_nothing(kind):
    task = make()
    _, turns, _, hidden = batch(task, 3)
    heads = task.build_heads(DIM, 3, RATE, HeadOptions(kind=kind, dim=6)).eval()
    lengths = torch.tensor([100, 55, 81])
    out = LayerOutputs(*heads(hidden.clone(), lengths))
    logits = torch.randn(3, 3)
    nll = task.layer_loss(out, task.collate(turns))
    together = task.turns(task.combine(out, logits, "geometric"))
    for row, length in enumerate(lengths.tolist()):
        alone = LayerOutputs(*heads(hidden[row : row + 1, :, :length].clone(), lengths[row, None]))
        torch.testing.assert_close(alone.values[0], out.values[row, :, :length])
        single = task.layer_loss(alone, task.collate(turns[row : row + 1]))
        # A batch's mean number of frames is what it is divided by.
        torch.testing.assert_close(single[0] * length, nll[row] * lengths.float().mean())
        assert task.turns(task.combine(alone, logits[row, None], "geometric")) == [together[row]]
        ruined = out.values.clone()
        ruined[row, :, length:] = 1e4
        again = task.layer_loss(LayerOutputs(ruined, lengths), task.collate(turns))
        torch.testing.assert_close(again, nll)


# ---- prediction


def test_prediction_rules():
    logits = torch.randn(2, 3, 7, 2)
    q = torch.randn(2, 3).softmax(dim=-1)
    task, out = make(), LayerOutputs(logits, torch.tensor([7, 7]))
    mean = torch.einsum("bl,bltn->btn", q, logits)
    torch.testing.assert_close(task.combine(out, q.log(), "geometric").values, mean)
    mixed = torch.einsum("bl,bltn->btn", q, logits.sigmoid())
    torch.testing.assert_close(task.combine(out, q.log(), "mixture").values.sigmoid(), mixed)
    # Bernoullis' geometric mean, normalised
    speaks, silent = (
        torch.einsum("bl,bltn->btn", q, each.sigmoid().log()).exp() for each in (logits, -logits)
    )
    torch.testing.assert_close(mean.sigmoid(), speaks / (speaks + silent))
    extreme = LayerOutputs(torch.tensor([200.0, -200.0]).view(1, 2, 1, 1), torch.tensor([1]))
    assert float(task.combine(extreme, torch.zeros(1, 2), "mixture").values) == pytest.approx(0)


def test_turns_are_those_of_a_median_over_eleven_frames():
    from scipy.signal import medfilt

    generator = np.random.default_rng(0)
    for frames in (11, 12, 400):
        active = generator.random((frames, 2)).repeat(5, axis=0)[:frames] > 0.5
        median = medfilt(active.astype(float), (11, 1)) > 0.5  # as s3prl's make_rttm.py
        rebuilt = np.zeros_like(median)
        for turn in turns_of(active, "ab", 0.02):
            first, end = round(turn.start / 0.02), round(turn.end / 0.02)
            assert first < end and not rebuilt[first:end, "ab".index(turn.speaker)].any()
            rebuilt[first:end, "ab".index(turn.speaker)] = True
        assert (rebuilt == median).all()
    assert turns_of(np.zeros((20, 2), bool), "ab", 0.02) == []
    # Outside there is silence.
    assert turns_of(np.ones((5, 1), bool), "a", 0.02) == []
    assert turns_of(np.ones((6, 1), bool), "a", 0.02) == [Turn("a", 0.0, 0.12)]


# ---- error rate

TRUTH = [Turn("A", 0.31, 4.72), Turn("B", 3.9, 9.25), Turn("A", 9.05, 12.4), Turn("B", 14.0, 15.5)]
GUESS = [
    *(Turn("0", 0.2, 4.5), Turn("1", 4.1, 8.98), Turn("1", 9.3, 12.0)),
    *(Turn("0", 13.8, 15.2), Turn("1", 16.0, 16.4)),
]
# By md-eval's rules as the package mdeval 0.1.3 follows them, without a collar: seconds.
MD_EVAL = {"speech": 14.61, "missed": 1.64, "falarm": 0.71, "confused": 3.9}


@pytest.mark.parametrize(
    ("guess", "expected"),
    [
        (GUESS, MD_EVAL),
        (TRUTH, {"speech": 14.61, "missed": 0, "falarm": 0, "confused": 0}),
        ([], {"speech": 14.61, "missed": 14.61, "falarm": 0, "confused": 0}),
        # All of it by one: right for B's 6.85 s, beside whom A is missed for 0.82 + 0.2 s; A's
        # 7.76 s less those are confused. 20 - 13.59 s of silence are filled.
        ([Turn("x", 0, 20)], {"speech": 14.61, "missed": 1.02, "falarm": 6.41, "confused": 5.83}),
        # An extra speaker beside A: of his three, one is matched.
        (
            [Turn("x", 0.31, 1.31), Turn("y", 0.31, 1.31), Turn("z", 1.31, 1.81)],
            {"speech": 14.61, "missed": 13.11, "falarm": 1.0, "confused": 0.5},
        ),
    ],
)
def test_errors_by_hand_and_by_md_eval(guess, expected):
    assert errors(TRUTH, guess) == pytest.approx(expected)


def test_rates_are_of_all_recordings_together():
    pairs = [(TRUTH, GUESS), ([Turn("c", 0, 1)], [Turn("0", 0, 0.5)])]
    missed, speech = 1.64 + 0.5, 15.61
    rates = error_rates(pairs)
    assert rates["missed"] == pytest.approx(100 * missed / speech)
    assert rates["der"] == pytest.approx(100 * (missed + 0.71 + 3.9) / speech)


def test_errors_in_whole_frames_are_s3prls():
    from s3prl.downstream.diarization.utils import calc_diarization_error

    generator = np.random.default_rng(1)
    for _ in range(20):
        truth, guess = (generator.random((2, 25, 2)) > 0.5).repeat(12, axis=1)
        turns = [turns_of(each, "ab", 0.02) for each in (truth, guess)]  # runs of 12: no median
        ours = errors(*turns)
        theirs = []
        for order in ([0, 1], [1, 0]):
            _, _, _, _, _, speech, missed, falarm, error = calc_diarization_error(
                torch.tensor(guess[None] * 2.0 - 1), torch.tensor(truth[None, :, order]).float(),
                torch.tensor([300]),
            )  # fmt: skip
            counts = {"speech": speech, "missed": missed, "falarm": falarm, "confused": error}
            theirs.append({name: 0.02 * count for name, count in counts.items()})
        assert ours == pytest.approx(min(theirs, key=lambda each: each["confused"]))


# ---- the corpus


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_chunks_and_labels_are_s3prls(split, mixtures_corpus, monkeypatch):
    from s3prl_varan.compat import patch_torchaudio

    patch_torchaudio()
    from s3prl.downstream.diarization.dataset import DiarizationDataset

    chunk = 40 if split == "train" else 100000  # frames
    task = make(mixtures_corpus, chunk_size=chunk)
    task.build_heads(DIM, 1, RATE, HeadOptions())
    folder = mixtures_corpus / split
    monkeypatch.chdir(folder)  # theirs takes paths from there
    theirs = DiarizationDataset("train", ".", chunk_size=chunk, frame_shift=RATE, num_speakers=2)
    items = task.items(split)
    assert len(items) - len(theirs) in (0, 1, 2, 3)  # they leave out what is under a frame
    assert (len(items) > 6) == (split == "train")
    starts = {(rec, first * RATE / 16000): index
              for index, (rec, first, _) in enumerate(theirs.chunk_indices)}  # fmt: skip
    compared = spanned = 0
    for item in items:
        name = item.name.rpartition("-")[0] if split == "train" else item.name
        if (name, item.start) not in starts:
            continue
        wave, labels = theirs[starts[name, item.start]]
        ours = task.labels(task.collate([item.target]), len(labels))[0].numpy()
        # Theirs takes no note of a turn that begins before a chunk and ends behind it, ours does;
        # columns are in the order of the recording's speakers, ours of the chunk's.
        if any(turn.start == 0 and turn.end > 0.8 - 1e-9 for turn in item.target):
            spanned += 1
            continue
        fits = [np.array_equal(ours[:, order], labels) for order in ([0, 1], [1, 0])]
        assert any(fits), item.name
        loaded = task.load(item, random.Random(0), training=True).numpy()
        assert np.allclose(loaded[: len(wave)], wave, atol=1e-6)
        compared += 1
    assert compared >= 3 and compared > spanned


def test_a_turn_that_fills_a_chunk_is_in_it(mixtures_corpus):
    task = make(mixtures_corpus, chunk_size=5)
    for item in task.items("train"):
        (whole,) = [r for r in read_kaldi(mixtures_corpus / "train", "segments")
                    if r.name == item.name.rpartition("-")[0]]  # fmt: skip
        middle = (item.start + item.end) / 2
        spoken = {turn.speaker for turn in whole.turns if turn.start <= middle < turn.end}
        at = middle - item.start
        assert spoken == {turn.speaker for turn in item.target if turn.start <= at < turn.end}
        assert all(0 <= turn.start < turn.end <= 0.1 + 1e-9 for turn in item.target)


def test_turns_come_from_either_file(mixtures_corpus, tmp_path):
    root = tmp_path / "corpus"
    shutil.copytree(mixtures_corpus, root)
    both = read_kaldi(root / "test", "rttm")
    (root / "test" / "rttm").unlink()
    only = read_kaldi(root / "test", "rttm")
    assert [(r.name, r.path) for r in only] == [(r.name, r.path) for r in both]
    for one, other in zip(both, only, strict=True):
        for turn, same in zip(one.turns, other.turns, strict=True):
            assert turn.speaker == same.speaker
            assert (turn.start, turn.end) == pytest.approx((same.start, same.end), abs=1e-9)


def test_all_that_is_wrong_is_said_at_once(mixtures_corpus, tmp_path):
    root = tmp_path / "corpus"
    shutil.copytree(mixtures_corpus, root)
    evil = tmp_path / "evil"
    with open(root / "train" / "wav.scp", "a") as file:
        file.write(f"piped touch {evil} |\nalone\ntrain-00000 wav/train-00000.wav\n")
    with open(root / "train" / "segments", "a") as file:
        file.write("x-1 train-00000 0 1\n")
    lines = (root / "dev" / "rttm").read_text().splitlines()
    fields = [line.split() for line in lines]
    fields[0][3] = "soon"
    fields[1][4] = "-1.0"
    fields[2][1] = "elsewhere"
    fields += [["SPEAKER", "dev-00001"]]
    (root / "dev" / "rttm").write_text("\n".join(" ".join(each) for each in fields))
    with open(root / "test" / "rttm", "a") as file:
        file.write("SPEAKER test-00000 1 0.1 0.5 <NA> <NA> third <NA> <NA>\n")
        file.write("SPEAKER test-00001 1 0.1 900 <NA> <NA> third <NA> <NA>\n")
    (root / "test" / "wav" / "test-00002.wav").unlink()
    found = "\n".join(make(root).problems(["train", "dev", "test"]))
    for part in (
        f"{root}/train/wav.scp, line 7: a command, which is not run",
        "line 8: expected RECORDING PATH, found 'alone'",
        "line 9: train-00000 is listed twice",
        "x-1 has no speaker in utt2spk",
        f"{root}/train/segments: nobody speaks in piped",
        f"{root}/dev/rttm, line 1: ",
        "expected seconds, the end after the start",
        "recording elsewhere is not in wav.scp",
        "expected SPEAKER RECORDING CHANNEL START DURATION",
        "test-00000 has 3 speakers, config.downstream_expert.datarc.num_speakers is 2",
        "test-00001 has turns behind its end",
    ):
        assert part in found
    assert not evil.exists()
    (root / "test" / "rttm").unlink()
    assert "test-00002.wav: no such file" in "\n".join(make(root).problems(["test"]))
    (root / "test" / "segments").unlink()
    assert f"{root}/test/rttm: cannot be read" in "\n".join(make(root).problems(["test"]))


def test_speakers_of_training_in_test_are_warned_of(mixtures_corpus, tmp_path):
    task = make(mixtures_corpus)
    splits = {split: task.items(split) for split in task.splits()}
    assert not [line for line in task.warnings(splits) if line.startswith("speakers")]
    splits["test"] = [item for item in splits["train"] if item.target]
    assert [line for line in task.warnings(splits) if line.startswith("speakers in train")]


def test_heads_follow_the_upstreams_frames(mixtures_corpus):
    """The same turns at 10 ms and at 20 ms."""
    task = make(mixtures_corpus)
    (item, *_) = task.items("test")
    for rate in (160, 320):
        task.build_heads(DIM, 1, rate, HeadOptions())
        frames = 16000 * 3 // rate
        labels = task.labels(task.collate([item.target]), frames)
        out = LayerOutputs((labels * 2 - 1)[:, None], torch.tensor([frames]))
        (record,) = task.records(task.combine(out, torch.zeros(1, 1), "geometric"), [item])
        within = [Turn(t.speaker, t.start, min(t.end, 3.0)) for t in item.target if t.start < 3]
        assert error_rates([(within, record["predict"])])["der"] < 100 * rate / 16000 * 4


def test_a_dropout_before_the_recurrent_head_is_refused():
    with pytest.raises(UserError, match=r"heads\.dropout"):
        make().build_heads(DIM, 2, RATE, HeadOptions(dropout=0.1))


# ---- files and answers


def test_files_are_read_by_s3prls_own_scoring(mixtures_corpus, tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py", reason="s3prl's make_rttm.py reads HDF5")
    task = make(mixtures_corpus, save_predictions=True)
    task.build_heads(DIM, 1, RATE, HeadOptions())
    items = task.items("test")
    torch.manual_seed(0)
    values = torch.randn(len(items), 12, 2).repeat_interleave(9, dim=1)
    prediction = Prediction(values, torch.tensor([108, 100, 90, 77]))
    task.write(task.records(prediction, items), "test", tmp_path)
    assert task.submission() == {"sd_public": "scoring/predictions"}
    files = sorted((tmp_path / "scoring" / "predictions").iterdir())
    assert [path.name for path in files] == [f"{item.name}.h5" for item in items]
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in files))
    script = "s3prl.downstream.diarization.make_rttm"
    flags = ["--median=11", "--threshold=0.5", "--frame_shift=320"]
    argv = [script, *flags, str(tmp_path / "list"), str(tmp_path / "theirs.rttm")]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_module(script, run_name="__main__")

    def turns(path: Path) -> set:
        rows = [line.split() for line in path.read_text().splitlines()]
        return {(row[1], float(row[3]), float(row[4]), row[7]) for row in rows}

    theirs = turns(tmp_path / "theirs.rttm")
    assert len(theirs) > 8 and turns(tmp_path / "test_predict.rttm") == theirs


def test_saving_predictions_asks_for_its_package(mixtures_corpus, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = make(mixtures_corpus, save_predictions=True).problems(["test"])
    assert "pip install h5py" in problem
    assert make(mixtures_corpus).problems(["test"]) == [] and make().submission() == {}


def test_answers_are_turns():
    task = make()
    task.build_heads(DIM, 1, RATE, HeadOptions())
    values = torch.full((2, 100, 2), -1.0)
    values[0, 10:60, 1] = 1.0
    values[0, 40:, 0] = 1.0
    answer, silent = task.answers(Prediction(values, torch.tensor([90, 100])))
    assert answer["prediction"] == [
        {"speaker": "1", "start": 0.2, "end": 1.2},
        {"speaker": "0", "start": 0.8, "end": 1.8},
    ]
    assert json.loads(json.dumps(answer)) == answer
    assert task.text(answer) == "speaker 1 0.20-1.20, speaker 0 0.80-1.80"
    assert task.text(silent) == "no speech"


# ---- on real speech, from the corpus to the report

DIES = """
import os, signal, sys
from s3prl_varan.app.cli import main
from s3prl_varan.training.artifacts import Artifacts
save = Artifacts.save_states
def save_and_die(*args):
    save(*args)
    os.kill(os.getpid(), signal.SIGKILL)
Artifacts.save_states = save_and_die
main(sys.argv[1:])
"""


def test_prepare_train_kill_resume_evaluate_infer_report(shared_dir, tmp_path, capsys):
    import prepare_data

    from s3prl_varan.report.cli import main as report

    mixed, folder = tmp_path / "mixed", tmp_path / "exp"
    speech = shared_dir / "data" / "librispeech" / "LibriSpeech"
    counts = ["--train", "6", "--dev", "3", "--test", "3", "--utterances", "1"]
    assert prepare_data.main(["mixtures", str(speech), "--out", str(mixed), *counts]) == 0
    said = capsys.readouterr().out
    assert f"-d diarization -f varan --data {mixed}" in said
    settings = {
        "runner.total_steps": 4,
        "runner.eval_step": 2,
        "runner.save_step": 2,
        "runner.gradient_accumulate_steps": 1,
        "downstream_expert.datarc.num_workers": 0,
        "downstream_expert.datarc.chunk_size": 300,
        "downstream_expert.modelrc.hidden_size": 16,
    }
    override = ",,".join(f"config.{key}={value}" for key, value in settings.items())
    train = ["-u", TINY, "-d", "diarization", "-f", "varan", "--data", mixed, "--device", "cpu"]
    train = [*map(str, train), "-o", override]
    killed = subprocess.run(
        [sys.executable, "-c", DIES, *train, "-p", str(folder)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in folder.glob("states-*")] == ["states-2.ckpt"]
    assert main([*train, "-p", str(folder), "-a"]) == 0, capsys.readouterr().err
    assert main([*train, "-p", str(tmp_path / "whole")]) == 0, capsys.readouterr().err
    result, whole = (
        json.loads((each / "result.json").read_text()) for each in (folder, tmp_path / "whole")
    )
    assert result["test"] == whole["test"] and result["dev"] == whole["dev"]
    assert result["metric"] == "der" and result["corpus"] == "mixed" and not result["confusion"]
    figures = result["test"]["test"]
    assert figures["der"] == pytest.approx(
        sum(figures[k] for k in ("missed", "falarm", "confused"))
    )
    truth = [recording.turns for recording in read_kaldi(mixed / "test", "rttm")]
    written = (folder / "test_truth.rttm").read_text()
    assert written.count("SPEAKER") == sum(map(len, truth)) == 6
    here = ["-e", str(folder), "-u", TINY, "--device", "cpu"]
    assert main(["-m", "evaluate", "-t", "test", *here]) == 0
    again = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert again["der"] == figures["der"]
    clip = mixed / "test" / "wav" / "test-00000.wav"
    assert main(["-m", "inference", "-t", str(clip), *here]) == 0
    answer = json.loads((folder / "inference.jsonl").read_text())
    rows = [line.split() for line in (folder / "test_predict.rttm").read_text().splitlines()]
    predicted = {(row[7][-1], float(row[3])) for row in rows if row[1] == "test-00000"}
    assert {(turn["speaker"], turn["start"]) for turn in answer["prediction"]} == predicted
    assert report([str(folder), str(tmp_path / "whole"), "--out", str(tmp_path / "report")]) == 0
    assert "der" in (tmp_path / "report" / "leaderboard.md").read_text().lower()
