"""PR, SF and OOD-ASR: s3prl's own expert and figures, the corpora, and whole runs."""

import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from s3prl_varan.app.cli import main
from s3prl_varan.compat import import_downstream
from s3prl_varan.config.reading import config_root
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.objective import elbo
from s3prl_varan.options import plain, read_options
from s3prl_varan.report.cli import main as report
from s3prl_varan.tasks.ctc import CTC, corpora, units
from s3prl_varan.tasks.ctc.slots import slot_figures
from tests.conftest import TINY
from tests.tasks.corpora import SENTENCES, SPOKEN
from tests.tasks.parity import DIM, RATE, Log, heads_of_expert, run_heads

CONFIGS = config_root() / "ctc"
METRICS = {"libriphone": "per", "snips": "slot_type_f1", "cv_es": "wer", "sbcsae": "wer"}
LESSONS = {"libriphone": 20, "snips": 40, "cv_es": 90, "sbcsae": 90}  # until it is right about some
SPEAKERS = {
    "train_speakers": ["Ivy", "Joey"],
    "valid_speakers": ["Amy", "Nicole"],
    "test_speakers": ["Brian", "Emma"],
}
RNNS = {"dim": [32, 32], "proj": [True, True], "sample_style": "drop"}


def make_task(name: str, root: Path, **data) -> CTC:
    """The task of a config on a corpus, with small heads."""
    corpus = "common_voice" if name.startswith("cv") else name
    values = {
        **CTC.locate(root),
        "mode": {"libriphone": "word", "snips": "character-slot"}.get(corpus, "character"),
    }
    extra = SPEAKERS if corpus == "snips" else {}
    if name == "cv_es":
        extra = {"language": "es", "accent": "mexicano"}
    model = {"project_dim": 32, "ctc_normalize": "target"}
    model |= {"select": "FrameLevel"} if corpus in ("libriphone", "snips") else {"RNNs": RNNS}
    problems: list[str] = []
    options = read_options(CTC.Data, {**values, **extra, **data}, "datarc", problems)
    built = read_options(CTC.Model, model, "modelrc", problems)
    assert not problems, problems
    return CTC(options, built)


def make_expert(task: CTC, folder: Path):
    """s3prl's, with the units of ours and the weights it draws."""
    symbols = task.outputs[len(units.SPECIAL) :]
    vocab, slots = folder / "vocab.txt", folder / "slots.txt"
    vocab.write_text("\n".join(each for each in symbols if each[:2] not in ("B-", "E-")))
    slots.write_text("\n".join(["O", *(each[2:] for each in symbols if each[:2] == "B-")]))
    text = {"mode": task.data.mode, "vocab_file": str(vocab)}
    text |= {"slots_file": str(slots)} if task.data.mode == "character-slot" else {}
    model = {**plain(task.model), "zero_infinity": True}
    figures = {"word": ["per"], "character": ["wer", "cer"]}.get(task.data.mode)
    figures = figures or [
        *("slot_type_f1", "slot_value_cer", "slot_value_wer", "slot_edit_f1_full"),
        *("slot_edit_f1_part", "wer", "cer"),
    ]
    section = {"corpus": {"name": task.data.name}, "text": text, "model": model}
    section |= {"metric": figures, "metric_higher_better": task.higher_is_better}
    torch.manual_seed(0)
    cls = import_downstream("ctc").DownstreamExpert
    return cls(DIM, RATE, section, str(folder)).eval()


def batch_of(task: CTC, items):
    """Features, labels and names as s3prl's expert takes them: a vector for each unit, in noise."""
    draw = torch.Generator().manual_seed(0)
    vectors = 2 * torch.randn(len(task.outputs), DIM, generator=draw)
    features = []
    for item in items:
        frames = vectors[item.target].repeat_interleave(3, dim=0)
        frames[2::3] = 0  # between two units
        features.append(frames + 0.5 * torch.randn(frames.shape, generator=draw))
    return features, [item.target for item in items], [item.name for item in items]


@pytest.mark.parametrize("name", METRICS)
def test_loss_figures_and_files_are_the_experts(name, ctc_corpora, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    task = make_task(name, ctc_corpora[name])
    expert = make_expert(task, folder)
    items = task.items("test")
    optimizer = torch.optim.Adam(expert.parameters(), lr=0.02)
    features, labels, names = batch_of(task, items)
    for _ in range(LESSONS[name]):  # right about some units, wrong about others
        optimizer.zero_grad()
        expert("train", features, labels, names, defaultdict(list)).backward()
        optimizer.step()
    heads, records, kept, log = heads_of_expert(task, expert), defaultdict(list), [], Log()
    one = torch.ones(1)
    with torch.no_grad():
        for chosen in (items, *([item] for item in items)):
            features, labels, names = batch_of(task, chosen)
            mine = records if len(chosen) == 1 else defaultdict(list)
            theirs = expert("test", features, labels, names, mine)
            out, logits = run_heads(heads, features), torch.zeros(len(chosen), 1)
            losses = task.layer_loss(out, task.collate(labels))
            assert float(elbo(losses, logits, one, 0.0).loss) == pytest.approx(
                float(theirs), rel=1e-5, abs=1e-5
            )
            if len(chosen) == 1:  # s3prl reads the padding of a batch too, so it tests one by one
                kept += task.records(task.combine(out, logits, "geometric"), chosen)
    expert.log_records("test", records, log, 1)
    score = task.score(kept)
    assert score.keys() == log.values.keys() - {"loss"} and score[task.metric] not in (0, 100)
    for figure, value in score.items():
        unit = 1 if figure.startswith("slot_edit") else 100
        assert value == pytest.approx(unit * log.values[figure], rel=1e-6), figure
    task.write(kept, "test", tmp_path)
    for file in ("test-hyp.ark", "test-ref.ark"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_slot_figures_are_s3prls():
    metric = pytest.importorskip("s3prl.metric.slot_filling")
    from s3prl.metric import cer, wer

    draw = random.Random(0)
    parts = ["B-a ", " E-a", "B-b ", " E-b", "B-a_x ", " E-a_x", "X", "Y Z", " ", "Q  R"]

    def sentence() -> str:
        made = (f"B-{s} {draw.choice(['X', 'Y Z', 'QR'])} E-{s}" for s in draw.choices("abc", k=2))
        return draw.choice([" ", " W "]).join(made)

    def noise() -> str:
        return "".join(draw.choices(parts, k=draw.randint(0, 9)))

    truth = [sentence() for _ in range(300)] + ["X", "Y Z"]
    guesses = [draw.choice([sentence, noise])() for _ in truth[:-1]] + ["Y Z"]
    figures = slot_figures(truth, guesses)
    for name in ("slot_type_f1", "slot_value_cer", "slot_value_wer"):
        assert figures[name] == pytest.approx(100 * getattr(metric, name)(guesses, truth)), name
    for name, full in (("slot_edit_f1_full", True), ("slot_edit_f1_part", False)):
        expected = 100 * metric.slot_edit_f1(guesses, truth, loop_over_all_slot=full)
        assert figures[name] == pytest.approx(expected)
    assert figures["slot_edit_f1_full"] < figures["slot_edit_f1_part"] < 100
    pairs = {"truth": truth, "predict": guesses}
    records = [dict(zip(pairs, pair, strict=True)) for pair in zip(*pairs.values(), strict=True)]
    score = CTC.score(CTC(CTC.Data(path="", name="snips", mode="character-slot"), None), records)
    assert score["wer"] == pytest.approx(100 * wer(guesses, truth))
    assert score["cer"] == pytest.approx(100 * cer(guesses, truth))


def test_slot_targets_are_s3prls(ctc_corpora, tmp_path):
    task = make_task("snips", ctc_corpora["snips"])
    tokenizer = make_expert(task, tmp_path).tokenizer
    for split, speakers in (("train", 2), ("dev", 2), ("test", 2)):
        items = task.items(split)
        assert len(items) == speakers * len(SENTENCES)
        for item in items:
            words, slots, intent = SENTENCES[int(item.name[-1])]
            assert item.target == tokenizer.encode(f"BOS {words} EOS\tO {slots} {intent}\n")
            assert task.text_of(item.target) == tokenizer.decode(item.target)
    assert len(task.outputs) == tokenizer.vocab_size == 3 + 28 + 2 * 6
    assert units.ENGLISH[0] == " " and len(units.ENGLISH) == 28


def test_phones(ctc_corpora, tmp_path):
    assert (
        len(units.PHONES) == len(set(units.PHONES)) == 71
    )  # s3prl's vocab/phoneme.txt has as many
    assert units.PHONES[:5] == ["SIL", "SPN", "AA0", "AA1", "AA2"] and units.PHONES[-1] == "ZH"
    task = make_task("libriphone", ctc_corpora["libriphone"])
    item = next(item for item in task.items("dev") if item.name.endswith("0000"))
    assert task.text_of(item.target) == "B EH1 D F EY1 S" and item.target[-1] == units.EOS
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("BED\tB EH1 D\nBED B AH0 D\nFACE F EY1 S\nBAD B AE1 D\n")
    task = make_task("libriphone", ctc_corpora["libriphone"], lexicon=[str(lexicon)])
    with pytest.raises(UserError, match=r"train: 7 words .*: CAB \(2\), CAFE \(2\).*unknown_word"):
        task.items("train")
    kept = make_task(
        "libriphone", ctc_corpora["libriphone"], lexicon=[str(lexicon)], unknown_word="SPN"
    )
    said = {kept.text_of(item.target) for item in kept.items("train")}
    assert "B EH1 D F EY1 S" in said and "B AE1 D SPN" in said
    lexicon.write_text("BED B EH D\n")
    task = make_task("libriphone", ctc_corpora["libriphone"], lexicon=[str(lexicon)])
    assert task.problems(["train"]) == [f"{lexicon}: no phones of vocab_file: EH"]


def test_common_voice_sentences(ctc_corpora):
    task = make_task("cv_es", ctc_corpora["cv_es"])
    assert task.problems(task.splits()) == []
    texts = [task.text_of(item.target) for item in task.items("dev")]
    assert texts == [text for _, _, text in SPOKEN if text]
    assert task.outputs[3:] == sorted(set("".join(texts)))
    everyone = make_task("cv_es", ctc_corpora["cv_es"], accent=None)
    assert "BUENOS DÍAS" in [everyone.text_of(item.target) for item in everyone.items("dev")]
    for sentence, language, expected in (
        ("我 是，学生。", "zh-CN", "我是学生"),
        ("我用 App", "zh-CN", ""),
        ("السّلامُ عليكم؟", "ar", "السّلامُ عليكم"),
        ("It\u2019s  1 - 2", None, "IT'S 1 2"),
    ):
        assert corpora.normalise(sentence, language) == expected


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize("name", METRICS)
def test_train_resume_evaluate_infer_report(name, ctc_corpora, tmp_path, capsys):
    root, whole, parts = ctc_corpora[name], tmp_path / "whole", tmp_path / "parts"
    settings = {
        "downstream_expert.datarc.num_workers": 0,
        "heads.kind": "linear",
        "runner.total_steps": 4,
        "runner.eval_step": 2,
        "runner.save_step": 2,
        "runner.max_keep": 5,
        "varan.prediction": "sequence",
    }
    override = ",,".join(f"config.{key}={value}" for key, value in settings.items())
    here = ["-u", TINY, "--device", "cpu"]
    start = [*here, "-d", "ctc", "-f", "varan", "-c", str(CONFIGS / f"{name}.yaml")]
    start += ["--data", str(root), "-o", override]
    for folder in (whole, parts):
        assert main([*start, "-p", str(folder)]) == 0, capsys.readouterr().err
    (parts / "states-4.ckpt").unlink()
    assert main(["-m", "train", "-e", str(parts), *here]) == 0, capsys.readouterr().err
    result, resumed = (json.loads((each / "result.json").read_text()) for each in (whole, parts))
    assert result["test"] == resumed["test"] and result["metric"] == METRICS[name]
    entry = {"libriphone": "pr", "snips": "sf"}.get(name)
    submission = {f"{entry}_public/predict.ark": "test-hyp.ark"} if entry else {}
    assert result["submission"] == submission
    clips = len(lines_of(whole / "test-hyp.ark"))
    assert clips == len(lines_of(whole / "test-ref.ark")) > 2
    call = ["-e", str(whole), *here]
    assert main(["-m", "evaluate", "-t", "test", *call]) == 0, capsys.readouterr().err
    again = json.loads(lines_of(whole / "metrics.jsonl")[-1])
    assert again[METRICS[name]] == result["test"]["test"][METRICS[name]]
    clip = next(path for path in root.rglob("*") if path.suffix in (".wav", ".flac", ".mp3"))
    assert main(["-m", "inference", "-t", str(clip), *call]) == 0, capsys.readouterr().err
    (answer,) = map(json.loads, lines_of(whole / "inference.jsonl"))
    assert isinstance(answer["prediction"], str) and answer["file"] == str(clip)
    assert report([str(whole), "--out", str(tmp_path / "report")]) == 0, capsys.readouterr().err
    assert METRICS[name] in (tmp_path / "report" / "report.html").read_text()


def without(pattern: str):
    def spoil(root: Path) -> None:
        for path in list(root.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def replaced(name: str, old: str, new: str):
    def spoil(root: Path) -> None:
        path = root / name
        path.write_text(path.read_text().replace(old, new))

    return spoil


@pytest.mark.parametrize(
    ("name", "config", "spoil", "expected"),
    [
        ("libriphone", "libriphone", without("dev-*"), ["unknown split 'dev'"]),
        ("libriphone", "libriphone", without("*/*/*/*.trans.txt"), ["0-7.trans.txt", "2-7.trans"]),
        (
            "libriphone",
            "libriphone",
            replaced("test-clean/2/7/2-7.trans.txt", "CAB", "CABBBB FFED"),
            ["test: 2 words are not in the lexicon: CABBBB (1), FFED (1)"],
        ),
        ("snips", "snips", without("slots.txt"), ["slots.txt: cannot be read"]),
        ("snips", "snips", without("*/Amy*"), ["no NAME.wav of Aditi, Amy, Geraint"]),
        (
            "snips",
            "snips",
            replaced("all.iob.snips.txt", "city timerange", "city"),
            ["line 4: expected NAME BOS WORDS EOS", "found 4 words, 3 slots"],
        ),
        (
            "snips",
            "snips",
            replaced("all.iob.snips.txt", "Joey-", "Joe-"),
            ["Joey-snips-train-0.wav: no text in", "Joey-snips-train-3.wav"],
        ),
        ("snips", "libriphone", without("none"), ["found mode: word", "-c ../downstream"]),
        ("sbcsae", "snips", without("none"), ["found mode: character-slot", "sbcsae.yaml"]),
        ("cv_es", "cv_es", without("clips/*_10.mp3"), ["_10.mp3: no such file"]),
        ("cv_es", "cv_es", replaced("dev.tsv", "sentence", "text"), ["columns path and sentence"]),
        ("sbcsae", "sbcsae", without("dev.tsv"), ["dev.tsv: cannot be read"]),
        ("sbcsae", "sbcsae", without("*"), ["neither all.iob.snips.txt"]),
    ],
)
def test_one_message_before_training(name, config, spoil, expected, ctc_corpora, tmp_path, capsys):
    root, folder = tmp_path / "corpus", tmp_path / "exp"
    shutil.copytree(ctc_corpora[name], root)
    if name == "snips":
        (root / "valid" / "Nicole-snips-valid-0.wav").unlink()
        shutil.copy(root / "valid" / "Amy-snips-valid-0.wav", root / "Nicole.wav")
        for path in root.glob("valid/Nicole*"):
            path.unlink()
    spoil(root)
    flags = ["-u", TINY, "-d", "ctc", "-f", "varan", "--device", "cpu", "-p", str(folder)]
    flags += ["-c", str(CONFIGS / f"{config}.yaml"), "--data", str(root)]
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert all(each in err for each in expected), err
    assert "Traceback" not in err and not folder.exists()


def test_phones_of_librispeech(shared_dir):
    root = shared_dir / "data" / "librispeech" / "LibriSpeech"
    task = make_task("libriphone", root, unknown_word="SPN")
    assert task.splits() == ["train", "dev", "test"] and task.problems(task.splits()) == []
    items = [item for split in task.splits() for item in task.items(split)]
    spoken = sum(unit == task.outputs.index("SPN") for item in items for unit in item.target)
    assert len(items) == 100 and 0 < spoken < 100
