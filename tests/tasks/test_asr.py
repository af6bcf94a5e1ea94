"""Speech recognition end to end on a corpus of tones (a pitch per letter), and its parts one by one."""

import csv
import json
import logging
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from s3prl_varan.config.options import HeadOptions
from s3prl_varan.layerwise.downstream import adapt_expert
from s3prl_varan.tasks.asr.data import (
    SimilarLengths,
    SpeechDataset,
    check_corpus,
    encode,
    read_split,
)
from s3prl_varan.tasks.asr.decode import arpa_words, build_decoder, decoder_problems
from s3prl_varan.tasks.asr.metrics import align, error_rates, worst_utterances

from s3prl_varan.app.cli import main
from s3prl_varan.audio import read_audio
from s3prl_varan.compat import import_downstream
from s3prl_varan.config.reading import config_root, read_config
from s3prl_varan.corpora.dictionary import CHAR_DICT
from s3prl_varan.corpora.librispeech import prepare_librispeech
from s3prl_varan.errors import UserError
from s3prl_varan.features.stack import LayerFeatures
from s3prl_varan.layerwise.ctc import ctc_frames_needed
from s3prl_varan.tasks.asr import transcribe as asr_transcribe
from tests.conftest import TINY

LETTERS = "ABCDEF"
SIZES = {
    "train": 33,
    "dev": 9,
    "test": 5,
}  # the last batch of train and of dev holds a single utterance
ARPA = (
    "\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-1\t<s>\t-0.5\n-1\t</s>\n-2\t<unk>\n-0.5\tAB\t-0.3\n-3\tAC\t-0.3\n\n"
    "\\2-grams:\n-0.1\t<s> AB\n-0.5\tAB </s>\n\n\\end\\\n"
)


def spell(text: str, generator: np.random.Generator) -> np.ndarray:
    """80 ms of a pitch per letter, the space has its own, then 40 ms of quiet: a head for single frames can tell them apart."""
    parts = []
    for letter in text:
        time = np.arange(1280) / 16000
        parts += [
            0.3 * np.sin(2 * np.pi * (300 + 250 * (LETTERS + " ").index(letter)) * time),
            np.zeros(640),
        ]
    wave = np.concatenate(parts)
    return (wave * generator.uniform(0.5, 1) + 1e-5 * generator.standard_normal(len(wave))).astype(
        "float32"
    )


def write_chapter(folder: Path, texts: list[str], generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    speaker, chapter = folder.parent.name, folder.name
    lines = []
    for number, text in enumerate(texts):
        name = f"{speaker}-{chapter}-{number:04d}"
        soundfile.write(folder / f"{name}.flac", spell(text, generator), 16000)
        lines.append(f"{name} {text}\n")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))


@pytest.fixture(scope="session")
def letters_corpus(tmp_path_factory) -> Path:
    """A corpus in LibriSpeech's layout, prepared."""
    root = tmp_path_factory.mktemp("letters")
    generator = np.random.default_rng(0)
    for number, (split, size) in enumerate(SIZES.items()):
        words = lambda: "".join(generator.choice(list(LETTERS), generator.integers(1, 4)))  # noqa: E731
        texts = [" ".join(words() for _ in range(generator.integers(1, 4))) for _ in range(size)]
        write_chapter(root / split / str(number) / "7", texts, generator)
    prepare_librispeech(root)
    return root


def datarc(root: Path, **overrides) -> dict:
    splits = {split: [split] for split in SIZES}
    settings = {
        "libri_root": str(root),
        "bucket_file": str(root / "meta_data"),
        "dict_path": None,
        **splits,
    }
    return {
        **settings,
        "num_workers": 0,
        "batch_size": 16,
        "eval_batch_size": 8,
        "zero_infinity": True,
        **overrides,
    }


@pytest.fixture
def asr_args(letters_corpus: Path):
    """Command line of a short run on the letters: call with -f's name, further flags and further -o overrides."""

    def build(featurizer: str, *flags: str, **overrides: object) -> list[str]:
        data = {
            f"config.downstream_expert.datarc.{key}": json.dumps(value)
            for key, value in datarc(letters_corpus).items()
        }
        settings = {
            **data,
            "config.runner.eval_dataloaders": "[dev]",
            "config.runner.total_steps": 40,
            "config.runner.eval_step": 20,
            "config.runner.save_step": 20,
            "config.runner.log_step": 10,
            "config.optimizer.lr": 0.01,
            "config.specaug": "null",
            **overrides,
        }
        override = ",,".join(f"{key}={value}" for key, value in settings.items())
        return [
            "-u",
            TINY,
            "-d",
            "asr",
            "-f",
            featurizer,
            "-t",
            "test",
            "--device",
            "cpu",
            "-o",
            override,
            *flags,
        ]

    return build


def run(args: list, capsys, expect: int = 0) -> tuple[str, str]:
    status = main(list(map(str, args)))
    out, err = capsys.readouterr()
    assert status == expect, err
    return out, err


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


# ---- end to end


@pytest.mark.parametrize("featurizer", ["varan", "weighted_sum"])
def test_train_evaluate(featurizer, asr_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    steps = {"config.runner.total_steps": 120, "config.runner.eval_step": 40}
    out, _ = run(asr_args(featurizer, "-p", folder, **steps), capsys)
    result = json.loads((folder / "result.json").read_text())
    figures = result["test"]["test"]
    assert f"{figures['wer']:.2f}" in out and figures["cer"] < 20 and result["metric"] == "wer"
    rows = [json.loads(line) for line in lines_of(folder / "metrics.jsonl")]
    assert min(row["wer"] for row in rows if row["split"] == "dev") == pytest.approx(
        result["dev"]["wer"]
    )
    for split in ("dev", "test"):  # every utterance is scored, those of a last batch of one too
        assert (
            len(lines_of(folder / f"{split}-noLM-hyp.ark"))
            == len(lines_of(folder / f"{split}-noLM-ref.ark"))
            == SIZES[split]
        )
        assert (folder / f"worst_{split}.txt").is_file()
    with open(folder / "layer_weights.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == SIZES["test"] and table[0]["utterance"].startswith("2-7-")
    out, _ = run(
        ["-m", "evaluate", "-t", "test,dev", "-e", folder, "-u", TINY, "--device", "cpu"], capsys
    )
    again = {row["split"]: row for row in map(json.loads, lines_of(folder / "metrics.jsonl")[-2:])}
    assert again["test"]["wer"] == figures["wer"] and again["test"]["cer"] == figures["cer"]
    assert again["dev"]["wer"] == result["dev"]["wer"]


def test_resume_ends_where_an_uninterrupted_run_does(asr_args, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    augment = {
        "config.specaug": "{time_mask_width_range: [0, 5], freq_mask_width_range: [0, 3]}",
        "config.runner.max_keep": 5,
    }
    run(asr_args("varan", "-p", whole, **augment), capsys)
    run(asr_args("varan", "-p", parts, **augment), capsys)
    (parts / "states-40.ckpt").unlink()
    run(["-m", "train", "-e", parts, "-u", TINY, "-t", "test", "--device", "cpu"], capsys)
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (whole, parts))
    assert a["dev"] == b["dev"] and a["test"] == b["test"]


def test_batch_size_never_changes_an_evaluation(asr_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    run(asr_args("varan", "-p", folder), capsys)
    expected = json.loads((folder / "result.json").read_text())["test"]["test"]
    one = "config.downstream_expert.datarc.eval_batch_size=1"
    run(
        ["-m", "evaluate", "-t", "test", "-e", folder, "-u", TINY, "--device", "cpu", "-o", one],
        capsys,
    )
    row = json.loads(lines_of(folder / "metrics.jsonl")[-1])
    assert row["wer"] == expected["wer"] and row["loss"] == pytest.approx(
        expected["loss"], rel=1e-4
    )


def test_superb_head_and_cache(asr_args, tmp_path, capsys):
    modelrc = "config.downstream_expert.modelrc"
    small = {f"{modelrc}.RNNs.dim": "[8, 8]", f"{modelrc}.project_dim": 8}
    small |= {"config.runner.total_steps": 4, "config.runner.eval_step": 2}
    config = config_root() / "asr" / "weighted_sum_superb.yaml"
    args = asr_args(
        "weighted_sum", "-c", config, "-p", tmp_path / "a", "--cache", tmp_path / "cache", **small
    )
    run(args, capsys)
    plain = asr_args("weighted_sum", "-c", config, "-p", tmp_path / "b", **small)
    run(plain, capsys)
    cached, computed = (
        json.loads((tmp_path / name / "result.json").read_text())["test"]["test"] for name in "ab"
    )
    assert cached["loss"] == pytest.approx(computed["loss"], rel=1e-2)


def test_split_names_are_the_users(asr_args, letters_corpus, tmp_path, capsys):
    tables = {
        "config.downstream_expert.datarc.dev-mine": '["dev", "test"]',
        "config.runner.eval_dataloaders": "[dev-mine]",
    }
    run(
        asr_args(
            "last_layer", "-p", tmp_path / "exp", **tables, **{"config.runner.total_steps": 2}
        ),
        capsys,
    )
    assert len(lines_of(tmp_path / "exp" / "dev-mine-noLM-ref.ark")) == SIZES["dev"] + SIZES["test"]
    wrong = {
        "config.runner.eval_dataloaders=[dev-clena]": "unknown split 'dev-clena'",
        "config.downstream_expert.datarc.libri_rot=x": "Did you mean 'libri_root'?",
        "config.specaug={num_freq_msk: 2}": "specaug.num_freq_msk: unknown key. Did you mean 'num_freq_mask'?",
    }
    for override, message in wrong.items():
        key, value = override.split("=", 1)
        _, err = run(asr_args("last_layer", "-p", tmp_path / "x", **{key: value}), capsys, expect=2)
        assert message in err


@pytest.mark.parametrize(
    "path", sorted((config_root() / "asr").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configs_build(path, asr_args, tmp_path, capsys):
    featurizer = "varan" if path.stem.startswith("fair") else path.stem.removesuffix("_superb")
    flags = ["-l", "2"] if featurizer == "layer" else []
    settings = {
        "config.runner.total_steps": 1,
        "config.downstream_expert.modelrc.RNNs.dim": "[4, 4]",
    }
    args = asr_args(featurizer, "-c", path, "-p", tmp_path / "exp", *flags, **settings)
    run([each.replace("config.specaug=null,,", "") for each in map(str, args)], capsys)
    specaug = json.loads((tmp_path / "exp" / "result.json").read_text())["config"].get("specaug")
    assert specaug is None if path.stem.startswith("fair") else specaug["num_freq_mask"] == 4
    assert re.match(
        rf"# python run_downstream.py -u \w+ (-k \S+ )?-d asr -f {featurizer}", lines_of(path)[0]
    )


# ---- data


def make_expert(root: Path, **overrides):
    section = read_config(config_root() / "asr" / "weighted_sum_superb.yaml")["downstream_expert"]
    section["datarc"] = datarc(root, **overrides)
    section["modelrc"]["project_dim"] = 6
    section["modelrc"]["RNNs"].update(dim=[5, 5], dropout=[0.0, 0.0])
    theirs = {
        **section,
        "datarc": {
            **section["datarc"],
            "dict_path": str(CHAR_DICT),
            "decoder_args": {"decoder_type": None},
        },
    }
    return import_downstream("asr").DownstreamExpert(24, 320, theirs, ".")


def test_items_equal_s3prls_and_none_is_lost(letters_corpus):
    from s3prl.downstream.asr.dataset import SequenceDataset

    settings = datarc(letters_corpus)
    dictionary = make_expert(letters_corpus).dictionary
    problems: list[str] = []
    ours = SpeechDataset(read_split(settings, "dev", problems), dictionary)
    assert len(ours) == SIZES["dev"] and not problems
    theirs = SequenceDataset("dev", 8, dictionary, **settings)
    found = {
        name: (wave, label) for batch in theirs for wave, label, name in zip(*batch, strict=True)
    }
    assert len(found) == SIZES["dev"] - 1, (
        "s3prl's dataset drops the last batch of one, which ours must not"
    )
    mine = {
        name: (wave, label) for wave, label, name in (ours[index] for index in range(len(ours)))
    }
    for name, (wave, label) in found.items():
        assert np.array_equal(mine[name][0], wave) and mine[name][1] == label.tolist()


def test_similar_lengths_visits_all_and_mixes():
    lengths = np.random.default_rng(0).integers(1, 1000, 205).tolist()
    sampler = SimilarLengths(lengths, 10)
    sampler.generator = torch.Generator().manual_seed(1)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(205)) and first != second
    batches = [[lengths[index] for index in first[at : at + 10]] for at in range(0, 205, 10)]
    plain = [lengths[at : at + 10] for at in range(0, 205, 10)]
    spread = lambda rows: sum(10 * max(row) - sum(row) for row in rows)  # noqa: E731
    assert spread(batches) < 0.5 * spread(plain)


def test_corpus_problems_come_all_at_once(letters_corpus, tmp_path):
    root = tmp_path / "corpus"
    shutil.copytree(letters_corpus, root)
    chapter = root / "dev" / "1" / "7"
    text = chapter / "1-7.trans.txt"
    rows = text.read_text().splitlines()
    text.write_text("\n".join([rows[0] + " 42", *rows[1:-1]]))
    (chapter / "1-7-0003.flac").unlink()
    section = {"datarc": datarc(root, test=["tset"])}
    with pytest.raises(UserError) as error:
        check_corpus(section, ["dev", "test"])
    shown = str(error.value)
    assert "datarc.test: no table" in shown and "Did you mean 'test'?" in shown
    assert "1-7-0008.flac: no transcript" in shown and "1-7-0003.flac: no such file" in shown
    assert (
        "'4' (digit four): 1 times in 1 utterances: 1-7-0000" in shown
        and "prepare_data.py librispeech" in shown
    )
    check_corpus(section, ["train"])  # what a run does not read cannot stop it
    with pytest.raises(UserError, match="datarc.libri_root: no folder"):
        check_corpus({"datarc": datarc(tmp_path / "none")}, ["dev"])


def test_unknown_characters_never_become_unk(letters_corpus):
    dictionary = make_expert(letters_corpus).dictionary
    size = len(dictionary)
    with pytest.raises(UserError, match="outside the dictionary: 4"):
        encode("AB 4", dictionary)
    assert encode("A B", dictionary) == [dictionary.index(unit) for unit in "A|B|"] + [
        dictionary.eos()
    ]
    assert encode("", dictionary) == [dictionary.index("|"), dictionary.eos()]
    assert len(dictionary) == size


def test_a_corpus_with_other_characters_brings_its_dictionary(
    letters_corpus, asr_args, tmp_path, capsys
):
    root = tmp_path / "corpus"
    shutil.copytree(letters_corpus, root)
    for path in root.glob("*/*/*/*.trans.txt"):
        path.write_text(path.read_text().replace("E", "é"))
    place = {"config.downstream_expert.datarc.libri_root": root, "config.runner.total_steps": 2}
    _, err = run(asr_args("last_layer", "-p", tmp_path / "a", **place), capsys, expect=2)
    assert "'É'" in err and "--build_dict" in err
    prepare_librispeech(root, build_dict=True)
    place["config.downstream_expert.datarc.dict_path"] = root / "meta_data" / "char.dict"
    run(asr_args("last_layer", "-p", tmp_path / "a", **place), capsys)
    assert any("É" in line for line in lines_of(tmp_path / "a" / "dev-noLM-ref.ark"))


# ---- loss


def features_of(hidden: torch.Tensor, lengths: list[int]) -> LayerFeatures:
    flat = torch.zeros(len(hidden), 1)
    return LayerFeatures(hidden[:, None], torch.tensor(lengths), flat, torch.ones(1), flat)


def test_one_layer_gives_the_experts_own_loss(letters_corpus):
    torch.manual_seed(0)
    theirs, ours = make_expert(letters_corpus), make_expert(letters_corpus)
    downstream = adapt_expert(
        "asr", ours, 24, 1, HeadOptions(head="expert", ctc_normalize="target")
    )
    heads = ours.model.heads
    heads.projectors[0].load_state_dict(theirs.projector.state_dict())
    heads.models[0].load_state_dict(theirs.model.state_dict())
    hidden, lengths = torch.randn(3, 40, 24), [40, 31, 25]
    labels = [np.array(encode(text, theirs.dictionary)) for text in ("AB CD", "A", "ABCDEF")]
    records, found = defaultdict(list), defaultdict(list)
    unpadded = [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    expected = theirs("dev", unpadded, labels, ["a", "b", "c"], records)
    loss = downstream("dev", features_of(hidden, lengths), (labels, ["a", "b", "c"]), found).loss
    torch.testing.assert_close(loss, expected)
    assert found["pred_words"] == records["pred_words"] and found["target_words"] == [
        ["AB", "CD"],
        ["A"],
        ["ABCDEF"],
    ]


def test_targets_longer_than_their_frames_are_counted_and_named(
    asr_args, letters_corpus, tmp_path, capsys, caplog
):
    labels = torch.tensor([[4, 4, 5, 2], [4, 5, 2, 1]])
    assert ctc_frames_needed(labels, torch.tensor([4, 3])).tolist() == [5, 3]
    root = tmp_path / "corpus"
    shutil.copytree(letters_corpus, root)
    text = root / "dev" / "1" / "7" / "1-7.trans.txt"
    rows = text.read_text().splitlines()
    text.write_text("\n".join([rows[0] + " ABCDEF" * 200, *rows[1:]]))
    place = {"config.downstream_expert.datarc.libri_root": root, "config.runner.total_steps": 2}
    with caplog.at_level(logging.WARNING):
        run(asr_args("varan", "-p", tmp_path / "exp", **place), capsys)
    warned = [
        record.getMessage()
        for record in caplog.records
        if "CTC cannot align" in record.getMessage()
    ]
    assert len(warned) == 1 and "dev: 1 utterances" in warned[0] and "1-7-0000" in warned[0]
    rows = [json.loads(line) for line in lines_of(tmp_path / "exp" / "metrics.jsonl")]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert len(lines_of(tmp_path / "exp" / "dev-noLM-hyp.ark")) == SIZES["dev"]
    place["config.downstream_expert.datarc.zero_infinity"] = False
    _, err = run(asr_args("varan", "-p", tmp_path / "exp2", **place), capsys, expect=2)
    assert "more symbols than frames" in err and "zero_infinity=True" in err


# ---- metrics


def test_error_rates_are_over_the_whole_set():
    records = {
        "target_words": [["A", "B", "C"], ["D"], []],
        "pred_words": [["A", "X", "C"], ["D", "E"], []],
    }
    rates = error_rates(records)
    assert rates["wer"] == pytest.approx(
        100 * 2 / 4
    )  # one substitution, one insertion over four words
    assert rates["cer"] == pytest.approx(100 * 3 / 6)  # X for B; space and E; over "A B C" and "D"
    assert (
        error_rates({"target_words": [[]], "pred_words": [["A"]]})["wer"] == 100
    )  # an empty reference never divides by zero


def test_alignment_and_worst():
    assert align("THE CAT SAT".split(), "THE HAT".split()) == [
        ("THE", "THE"),
        ("CAT", "***"),
        ("SAT", "HAT"),
    ]
    assert align([], ["A"]) == [("*", "A")] and align([], []) == []
    records = {
        "filenames": ["right", "one", "two"],
        "target_words": [["A"], ["THE", "CAT"], ["B", "C"]],
        "pred_words": [["A"], ["CAT"], ["D", "E"]],
    }
    shown = worst_utterances(records)
    assert (
        shown.index("two: 2 errors") < shown.index("one: 1 errors in 2 words (50 %)")
        and "right" not in shown
    )
    assert "  ref  THE CAT\n  hyp  *** CAT\n" in shown
    assert worst_utterances(records, count=1).count("ref") == 1


# ---- decoding


def peaked(dictionary, units: list[list[tuple[str, float]]]) -> torch.Tensor:
    """Log-probabilities [1, T, V]: per frame the named units with their probabilities."""
    probs = torch.full((1, len(units), len(dictionary)), 1e-5)
    for frame, choices in enumerate(units):
        for unit, prob in choices:
            probs[0, frame, dictionary.index(unit)] = prob
    return probs.log()


def test_beam_search_and_language_model(letters_corpus, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    dictionary = make_expert(letters_corpus).dictionary
    frames = [[("A", 0.99)], [("C", 0.55), ("B", 0.44)], [("|", 0.99)], [("</s>", 0.99)]]
    plain = build_decoder({"decoder_type": "beam"}, dictionary)
    assert plain.decode(peaked(dictionary, frames))[0][0]["words"] == ["AC"]
    model = tmp_path / "lm.arpa"
    model.write_text(ARPA)
    assert arpa_words(model) == ["AB", "AC"]
    with_lm = build_decoder(
        {"decoder_type": "kenlm", "kenlm_model": str(model), "lm_weight": 2}, dictionary
    )
    assert with_lm.decode(peaked(dictionary, frames))[0][0]["words"] == ["AB"]
    model.write_text(ARPA.replace("\t", " "))
    with pytest.raises(UserError, match="lm.arpa cannot be used as a language model"):
        build_decoder({"decoder_type": "kenlm", "kenlm_model": str(model)}, dictionary)
    model.write_text(ARPA)
    weightless = build_decoder(
        {"decoder_type": "kenlm", "kenlm_model": str(model), "lm_weight": 0}, dictionary
    )
    assert weightless.decode(peaked(dictionary, frames))[0][0]["words"] == ["AC"]


def test_beam_search_sums_over_paths(letters_corpus):
    """The best path is blank twice (0.36), but A has 0.64 over its three paths."""
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    dictionary = make_expert(letters_corpus).dictionary
    frames = [[("A", 0.4), ("<s>", 0.6)]] * 2
    assert build_decoder({"decoder_type": "beam"}, dictionary).decode(peaked(dictionary, frames))[
        0
    ][0]["words"] == ["A"]


def test_decoder_settings_are_checked(tmp_path, monkeypatch):
    assert decoder_problems(None) == decoder_problems({"decoder_type": "None"}) == []
    assert "Did you mean 'kenlm'?" in decoder_problems({"decoder_type": "kenml"})[0]
    assert "Did you mean 'lm_weight'?" in decoder_problems({"lm_wieght": 2})[0]
    assert any(
        "needs an n-gram model" in line for line in decoder_problems({"decoder_type": "kenlm"})
    )
    found = decoder_problems(
        {"decoder_type": "kenlm", "kenlm_model": str(tmp_path / "no.arpa"), "beam": 0}
    )
    assert any("no file" in line for line in found) and any(
        line.startswith("beam: expected 1 or more") for line in found
    )
    monkeypatch.setitem(sys.modules, "flashlight", None)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    assert any(
        "pip install flashlight-text" in line for line in decoder_problems({"decoder_type": "beam"})
    )


def test_evaluate_with_a_language_model(asr_args, tmp_path, capsys):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    folder, model = tmp_path / "exp", tmp_path / "lm.arpa"
    model.write_text(ARPA)
    run(asr_args("last_layer", "-p", folder, **{"config.runner.total_steps": 2}), capsys)
    use = f"config.downstream_expert.datarc.decoder_args={{decoder_type: kenlm, kenlm_model: {model}}}"
    run(
        ["-m", "evaluate", "-t", "test", "-e", folder, "-u", TINY, "--device", "cpu", "-o", use],
        capsys,
    )
    words = {word for line in lines_of(folder / "test-LM-hyp.ark") for word in line.split()[1:]}
    assert words <= {"AB", "AC"} and len(lines_of(folder / "test-LM-hyp.ark")) == SIZES["test"]


# ---- transcription


def test_transcribe_files_and_folders(asr_args, letters_corpus, tmp_path, capsys):
    folder, inputs = tmp_path / "exp", tmp_path / "in"
    corpus = tmp_path / "corpus"
    shutil.copytree(letters_corpus, corpus)
    folders = {"libri_root": corpus, "bucket_file": corpus / "meta_data"}
    place = {f"config.downstream_expert.datarc.{key}": folder for key, folder in folders.items()}
    run(asr_args("varan", "-p", folder, **place, **{"config.runner.total_steps": 120}), capsys)
    shutil.rmtree(corpus)  # a checkpoint transcribes without the corpus it was trained on
    generator = np.random.default_rng(1)
    (inputs / "deep").mkdir(parents=True)
    soundfile.write(inputs / "deep" / "clip.wav", spell("AB CD", generator), 16000)
    soundfile.write(
        inputs / "long.flac",
        np.tile(np.append(spell("FED A ", generator), np.zeros(3200)), 90),
        16000,
    )
    soundfile.write(
        inputs / "stereo.wav", np.stack([spell("AB CD", generator).repeat(2)] * 2, axis=1), 32000
    )
    soundfile.write(inputs / "tiny.wav", np.zeros(40), 16000)
    out, _ = run(
        [
            "-m",
            "inference",
            "-t",
            f"{inputs},{inputs / 'deep' / 'clip.wav'}",
            "-e",
            folder,
            "--device",
            "cpu",
        ],
        capsys,
    )
    rows = [json.loads(line) for line in lines_of(folder / "inference.jsonl")]
    assert [Path(row["file"]).name for row in rows] == [
        "clip.wav",
        "long.flac",
        "stereo.wav",
        "tiny.wav",
        "clip.wav",
    ]
    clip, long, stereo, tiny, again = rows
    assert clip["text"] == "AB CD" == stereo["text"] and f"{clip['file']}\tAB CD" in out
    assert clip["text"] == again["text"] and clip["score"] == pytest.approx(
        again["score"], rel=1e-3
    )
    assert abs(sum(clip["layer_weights"].values()) - 1) < 1e-5 and list(clip["layer_weights"]) == [
        "1",
        "2",
        "3",
        "4",
    ]
    assert long["text"].split().count("FED") >= 88 and long["seconds"] == pytest.approx(
        90 * (6 * 0.12 + 0.2), abs=0.05
    )
    ends = [(segment["start"], segment["end"]) for segment in long["segments"]]
    assert all(end - start <= 30.01 for start, end in ends)
    assert all(
        before[1] == pytest.approx(after[0], abs=0.02)
        for before, after in zip(ends, ends[1:], strict=False)
    )
    assert np.isfinite(tiny["score"]) and "segments" not in tiny
    (tmp_path / "empty").mkdir()
    _, err = run(
        [
            "-m",
            "inference",
            "-t",
            f"{tmp_path / 'empty'},{tmp_path / 'no.wav'}",
            "-e",
            folder,
            "-u",
            TINY,
        ],
        capsys,
        expect=2,
    )
    assert "no audio files" in err and "no.wav: no such file" in err


def test_pieces_are_the_whole_recording(tmp_path):
    generator = np.random.default_rng(0)
    wave = (0.1 * generator.standard_normal(16000 * 95)).astype("float32")
    wave[16000 * 25 : 16000 * 25 + 1600] = 0  # a pause
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    pieces = list(asr_transcribe.read_pieces(tmp_path / "a.wav"))
    assert (
        torch.equal(torch.cat(pieces), torch.from_numpy(wave))
        and max(map(len, pieces)) <= 30 * 16000
    )
    assert 25.0 * 16000 <= len(pieces[0]) <= 25.1 * 16000, "cut in the pause"
    soundfile.write(tmp_path / "b.wav", wave[: 16000 * 2], 16000)
    (only,) = asr_transcribe.read_pieces(tmp_path / "b.wav")
    torch.testing.assert_close(only, read_audio(tmp_path / "b.wav"))


def test_long_files_are_read_piece_by_piece(tmp_path, monkeypatch):
    """However long a file, no more than two pieces' worth is asked of the reader before the first piece is out."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16000 * 300, dtype="int16"), 16000)
    asked = []
    original = soundfile.SoundFile.read

    def counting(self, frames=-1, **kwargs):
        asked.append(frames)
        return original(self, frames, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    next(asr_transcribe.read_pieces(tmp_path / "a.wav"))
    assert 0 < sum(asked) <= 60 * 16000 and min(asked) > 0
