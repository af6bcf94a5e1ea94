"""Speech recognition end to end on a corpus of tones, a pitch for each letter."""

import csv
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_varan.app.cli import main
from s3prl_varan.config.reading import config_root
from s3prl_varan.corpora.librispeech import prepare_librispeech
from tests.conftest import TINY
from tests.tasks.corpora import ARPA, SIZES, spell

DATA = "config.downstream_expert.datarc"
HERE = ["--device", "cpu"]


@pytest.fixture
def asr_args(letters_corpus: Path):
    """Command line of a short run on the letters: -f's name, further flags, further -o."""

    def build(featurizer: str, *flags: object, **overrides: object) -> list[str]:
        data = {
            "libri_root": letters_corpus,
            "bucket_file": letters_corpus / "meta_data",
            "dict_path": None,
            **{split: [split] for split in SIZES},
            "num_workers": 0,
            "batch_size": 16,
            "eval_batch_size": 8,
            "zero_infinity": True,
        }
        settings = {
            **{f"{DATA}.{key}": json.dumps(value, default=str) for key, value in data.items()},
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
        run = ["-u", TINY, "-d", "asr", "-f", featurizer, "-t", "test", *HERE]
        return [str(each) for each in [*run, "-o", override, *flags]]

    return build


def run(args: list, capsys, expect: int = 0) -> tuple[str, str]:
    status = main(list(map(str, args)))
    out, err = capsys.readouterr()
    assert status == expect, err
    return out, err


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def evaluated(folder: Path, splits: str, capsys, *flags: str) -> str:
    """What evaluating again prints."""
    out, _ = run(["-m", "evaluate", "-t", splits, "-e", folder, "-u", TINY, *HERE, *flags], capsys)
    return out


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
    evaluated(folder, "test,dev", capsys)
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
    run(["-m", "train", "-e", parts, "-u", TINY, "-t", "test", *HERE], capsys)
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (whole, parts))
    assert a["dev"] == b["dev"] and a["test"] == b["test"]


def test_batch_size_never_changes_an_evaluation(asr_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    run(asr_args("varan", "-p", folder), capsys)
    expected = json.loads((folder / "result.json").read_text())["test"]["test"]
    evaluated(folder, "test", capsys, "-o", f"{DATA}.eval_batch_size=1")
    row = json.loads(lines_of(folder / "metrics.jsonl")[-1])
    assert row["wer"] == expected["wer"] and row["loss"] == pytest.approx(
        expected["loss"], rel=1e-4
    )


def test_superb_head_and_cache(asr_args, tmp_path, capsys):
    modelrc = "config.downstream_expert.modelrc"
    small = {f"{modelrc}.RNNs.dim": "[8, 8]", f"{modelrc}.project_dim": 8}
    small |= {"config.runner.total_steps": 4, "config.runner.eval_step": 2}
    config = config_root() / "asr" / "superb.yaml"
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
        "config.specaug={num_freq_msk: 2}": "specaug.num_freq_msk: unknown key. Did you mean "
        "'num_freq_mask'?",
    }
    for override, message in wrong.items():
        key, value = override.split("=", 1)
        _, err = run(asr_args("last_layer", "-p", tmp_path / "x", **{key: value}), capsys, expect=2)
        assert message in err


@pytest.mark.parametrize(
    "path", sorted((config_root() / "asr").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configs_build(path, asr_args, tmp_path, capsys):
    settings = {
        "config.runner.total_steps": 1,
        "config.downstream_expert.modelrc.RNNs.dim": "[4, 4]",
        "config.downstream_expert.modelrc.project_dim": 4,
    }
    args = asr_args("varan", "-c", path, "-p", tmp_path / "exp", **settings)
    run([each.replace("config.specaug=null,,", "") for each in args], capsys)
    config = json.loads((tmp_path / "exp" / "result.json").read_text())["config"]
    if path.stem.startswith("fair"):
        assert config["specaug"] is None
    else:
        assert config["specaug"]["num_freq_mask"] == 4
    superb = path.stem == "superb"
    assert config["heads"]["kind"] == ("expert" if superb else "linear")
    normalize = config["downstream_expert"]["modelrc"]["ctc_normalize"]
    assert normalize == ("target" if superb else "frames")
    assert re.match(r"# python run_downstream.py -u \w+ (-k \S+ )?-d asr -f ", lines_of(path)[0])


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


def test_targets_longer_than_their_frames_are_counted_and_named(
    asr_args, letters_corpus, tmp_path, capsys, caplog
):
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


def test_evaluate_with_a_language_model(asr_args, tmp_path, capsys):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    folder, model = tmp_path / "exp", tmp_path / "lm.arpa"
    model.write_text(ARPA)
    run(asr_args("last_layer", "-p", folder, **{"config.runner.total_steps": 2}), capsys)
    decoder = f"{{decoder_type: kenlm, kenlm_model: {model}}}"
    evaluated(folder, "test", capsys, "-o", f"{DATA}.decoder_args={decoder}")
    words = {word for line in lines_of(folder / "test-LM-hyp.ark") for word in line.split()[1:]}
    assert words <= {"AB", "AC"} and len(lines_of(folder / "test-LM-hyp.ark")) == SIZES["test"]


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
    asked = f"{inputs},{inputs / 'deep' / 'clip.wav'}"
    out, _ = run(["-m", "inference", "-t", asked, "-e", folder, "-u", TINY, *HERE], capsys)
    rows = [json.loads(line) for line in lines_of(folder / "inference.jsonl")]
    assert [Path(row["file"]).name for row in rows] == [
        "clip.wav",
        "long.flac",
        "stereo.wav",
        "tiny.wav",
        "clip.wav",
    ]
    clip, long, stereo, tiny, again = rows
    assert clip["prediction"] == "AB CD" == stereo["prediction"] and f"{clip['file']}\tAB CD" in out
    assert clip["prediction"] == again["prediction"] and clip["score"] == pytest.approx(
        again["score"], rel=1e-3
    )
    assert abs(sum(clip["layer_weights"].values()) - 1) < 1e-5 and list(clip["layer_weights"]) == [
        "1",
        "2",
        "3",
        "4",
    ]
    assert long["prediction"].split().count("FED") >= 88 and long["seconds"] == pytest.approx(
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
    asked = f"{tmp_path / 'empty'},{tmp_path / 'no.wav'}"
    _, err = run(["-m", "inference", "-t", asked, "-e", folder, "-u", TINY], capsys, expect=2)
    assert "no audio files" in err and "no.wav: no such file" in err
