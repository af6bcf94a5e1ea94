"""Mistakes a user makes, each with the message it earns, before anything slow starts."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from s3prl_varan.app.cli import main
from s3prl_varan.config.reading import config_root
from tests.conftest import TINY

TINY_FILE = TINY.rpartition(":")[0]
TWO_STEPS = {"config.runner.total_steps": 2}


def refused(args, capsys):
    """Run, expect a refusal, and return what it said."""
    code = main([str(arg) for arg in args])
    _, err = capsys.readouterr()
    assert code == 2, err[-2000:]
    assert "Traceback" not in err
    return err


RUN = ["-u", "wavlm", "-d", "emotion", "-f", "varan"]  # a later flag of the same name wins


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([*RUN, "-f", "varann"], "-f: unknown featurizer 'varann', expected one of dynamic_sum"),
        ([*RUN, "-f", "varann"], "Did you mean 'varan'?"),
        ([*RUN, "-d", "emotoin"], "-d: unknown task 'emotoin'"),
        ([*RUN, "-d", "emotoin"], "Did you mean 'emotion'?"),
        # In s3prl, but not among the tasks here.
        ([*RUN, "-d", "translation"], "-d: unknown task 'translation', expected one of asr"),
        (["-f", "varan", "-d", "emotion"], "-u needed"),
        (["-f", "varan"], "-u and -d needed"),
        (["-m", "evaluate"], "-m evaluate needs -e"),
        (["-m", "inference", "-e", "x"], "-m inference needs -t"),
        (
            ["-m", "evaluate", "-e", "no/such/place"],
            "neither a checkpoint nor an experiment folder",
        ),
        ([*RUN, "-c", "none.yaml"], "no config file at none.yaml"),
        ([*RUN, "--lora", "--upstream_trainable"], "choose one"),
        ([*RUN, "--device", "gpu"], "--device: expected cuda or cpu, found 'gpu'"),
        ([*RUN, "--lora", "--cache", "auto"], "--cache keeps a frozen upstream's features"),
        ([*RUN, "-t", "tset"], "unknown split 'tset', expected one of train, dev, test"),
        ([*RUN, "-t", "tset"], "Did you mean 'test'?"),
        ([*RUN, "-o", "config.varan.kl_betta=1"], "Did you mean 'kl_beta'?"),
        ([*RUN, "-o", "config.runer.total_steps=1"], "Did you mean 'runner'?"),
        ([*RUN, "-o", "args.sede=1"], "Did you mean 'seed'?"),
        ([*RUN, "-o", "args.seed=-1"], "args.seed: expected int >= 0 and <= 4294967295, found -1"),
        (
            [*RUN, "--seed", str(2**32)],
            "args.seed: expected int >= 0 and <= 4294967295, found 42949",
        ),
        ([*RUN, "-o", "total_steps=1"], "expected config.SECTION.KEY=VALUE"),
        (
            [*RUN, "-o", "config.runner.total_steps=many"],
            "runner.total_steps: expected int >= 1, found 'many'",
        ),
        ([*RUN, "-o", "config.varan.prior=chi"], "varan.prior: expected one of chi2"),
        ([*RUN, "-o", "config.runner.eval_dataloaders=[test]"], "needs a dev split"),
        (
            [*RUN, "-o", "config.optimizer.torch_optim_name=AdamX"],
            "expected a class of torch.optim, found 'AdamX'",
        ),
        (
            [*RUN, "-o", "config.varan.prediction=sequence"],
            "varan.prediction: expected one of geometric, mixture for -d emotion, found 'sequence'",
        ),
        # What passed silently once.
        (
            [*RUN, "-o", "config.runner.gradient_clipping=-1"],
            "runner.gradient_clipping: expected float >= 0, found -1",
        ),
        ([*RUN, "-o", "config.optimizer.lr=-0.1"], "optimizer.lr: expected float >= 0, found -0.1"),
        (
            [*RUN, "-o", "config.optimizer.featurizer_lr=-1"],
            "optimizer.featurizer_lr: expected float >= 0 or null, found -1",
        ),
        (
            [*RUN, "-o", "config.optimizer.upstream_lr=-1"],
            "optimizer.upstream_lr: expected float >= 0 or null, found -1",
        ),
        (
            [*RUN, "-o", "config.runner.total_steps=0"],
            "runner.total_steps: expected int >= 1, found 0",
        ),
        (
            [*RUN, "-o", "config.runner.eval_step=0"],
            "runner.eval_step: expected int >= 1, found 0",
        ),
        ([*RUN, "-o", "config.runner=null"], "runner: expected keys and values, found None"),
        # Keys of version 0.1 say where they are now.
        ([*RUN, "-o", "config.varan.head=linear"], "varan.head: is heads.kind now"),
        ([*RUN, "-o", "config.varan.share_heads=true"], "varan.share_heads: is heads.shared now"),
        ([*RUN, "-o", "config.runner.fp16=true"], "write runner.precision: fp16"),
    ],
)
def test_flags_and_config(args, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(args, capsys)
    assert not list(tmp_path.glob("result/**/*.ckpt"))


def test_f_without_a_name_explains_the_difference_to_s3prl(capsys):
    with pytest.raises(SystemExit):
        main(["-u", "wavlm", "-d", "emotion", "-f"])
    assert (
        "s3prl's -f switch, fine-tuning the upstream, is --upstream_trainable"
        in capsys.readouterr().err
    )


def test_all_problems_of_a_config_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "bad.yaml"
    config.write_text(
        "runner: {total_step: 5}\nvaran: {kl_beta: high}\noptimiser: {}\n"
        "downstream_expert: {datarc: {rot: x, meta_data: y}}\n"
    )
    err = refused(["-u", "wavlm", "-d", "emotion", "-f", "varan", "-c", config], capsys)
    for expected in (
        "5 problem(s)",
        "runner.total_step: unknown key. Did you mean 'total_steps'?",
        "varan.kl_beta: expected float >= 0, found 'high'",
        "unknown section 'optimiser'. Did you mean 'optimizer'?",
        "datarc.rot: unknown key. Did you mean 'root'?",
        "datarc.root: missing, expected str",
    ):
        assert expected in err
    config.write_text("runner: [")
    assert "not a YAML file" in refused(
        ["-u", "wavlm", "-d", "emotion", "-f", "varan", "-c", config], capsys
    )


def test_missing_corpus(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = refused(["-u", "wavlm", "-d", "emotion", "-f", "varan"], capsys)
    assert "datarc.root: no folder" in err and "run/prepare_data.py iemocap|ravdess" in err


def test_unknown_fold_lists_the_known(emotion_args, tmp_path, capsys):
    err = refused(emotion_args("varan", "-v", "fold9", "-p", tmp_path / "exp"), capsys)
    assert "Session9" in err and "fold1, fold2, fold3, fold4" in err


def test_clips_that_broke_after_preparation(emotion_args, tone_corpus, tmp_path, capsys):
    corpus = tmp_path / "corpus"
    shutil.copytree(tone_corpus, corpus)
    clips = sorted(corpus.glob("Actor_*/*.wav"))
    clips[0].write_bytes(b"RIFF, but no more than that")
    clips[5].unlink()
    place = {
        "config.downstream_expert.datarc.root": corpus,
        "config.downstream_expert.datarc.meta_data": corpus / "meta_data",
    }
    err = refused(emotion_args("varan", "-p", tmp_path / "exp", **place), capsys)
    assert clips[0].name in err and clips[5].name in err and "prepare_data.py" in err


@pytest.mark.parametrize(
    ("upstream", "featurizer", "expected"),
    [
        ("wavlmm", "varan", "wavlmm"),
        (f"{TINY_FILE}:tinny", "varan", "tinny"),
        ("no/such/expert.py:tiny", "varan", "no/such/expert.py"),
        (
            f"{TINY_FILE}:one_layer",
            "varan",
            "-f varan has nothing to choose from: use `-f last_layer`",
        ),
        (f"{TINY_FILE}:one_layer", "weighted_sum", "has nothing to weigh: use `-f last_layer`"),
        (f"{TINY_FILE}:mixed_sizes", "varan", "differ in size"),
        ("wavlm_local", "varan", "-k"),
    ],
)
def test_upstreams(upstream, featurizer, expected, emotion_args, tmp_path, capsys):
    assert expected in refused(
        emotion_args(featurizer, "-p", tmp_path / "exp", upstream=upstream), capsys
    )


@pytest.mark.parametrize("featurizer", [["last_layer"], ["layer", "-l", "2"]])
def test_one_layer_of_an_upstream_whose_sizes_differ(featurizer, emotion_args, tmp_path, capsys):
    steps = {"config.runner.total_steps": 2}
    args = emotion_args(
        *featurizer, "-p", tmp_path / "exp", upstream=f"{TINY_FILE}:mixed_sizes", **steps
    )
    assert main([str(arg) for arg in args]) == 0
    assert json.loads((tmp_path / "exp" / "result.json").read_text())["layers"] == [
        0
    ]  # the one that is left


def test_layer_flags(emotion_args, tmp_path, capsys):
    assert "-f layer needs -l" in refused(emotion_args("layer", "-p", tmp_path / "a"), capsys)
    assert "expected hidden states in 0..4" in refused(
        emotion_args("layer", "-l", "9", "-p", tmp_path / "b"), capsys
    )
    assert "set `varan.layers`" in refused(
        emotion_args("varan", "-l", "2", "-p", tmp_path / "c"), capsys
    )


def test_another_upstream_than_the_checkpoint_needs(emotion_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    assert main([str(a) for a in emotion_args("varan", "-p", folder, **TWO_STEPS)]) == 0
    capsys.readouterr()
    expert = tmp_path / Path(TINY_FILE).name
    expert.write_text(Path(TINY_FILE).read_text().replace("manual_seed(0)", "manual_seed(1)"))
    err = refused(
        ["-m", "evaluate", "-e", folder, "-u", TINY, "-o", f"args.upstream={expert}:tiny"], capsys
    )
    assert "was trained on upstream" in err and "Give it the upstream it needs" in err
    assert "made with other flags" in refused(
        ["-m", "evaluate", "-e", folder, "-u", TINY, "-f", "last_layer"], capsys
    )


def test_a_config_may_move_but_not_change_before_a_run_goes_on(emotion_args, tmp_path, capsys):
    shipped = config_root() / "emotion" / "config.yaml"
    here, moved, folder = tmp_path / "here.yaml", tmp_path / "moved.yaml", tmp_path / "exp"
    here.write_text(shipped.read_text())
    moved.write_text("# the same keys\n" + shipped.read_text())
    steps = {"config.runner.total_steps": 2, "config.runner.early_stop": 3}
    assert main([str(a) for a in emotion_args("varan", "-p", folder, "-c", here, **steps)]) == 0
    here.unlink()
    assert (
        main([str(a) for a in emotion_args("varan", "-p", folder, "-c", moved, "-a", **steps)]) == 0
    )
    moved.write_text(shipped.read_text().replace("kl_beta: 1.0", "kl_beta: 0.5"))
    err = refused(emotion_args("varan", "-p", folder, "-c", moved, "-a", **steps), capsys)
    assert "made with other flags" in err and str(here) in err
    assert "no config file" in refused(
        emotion_args("varan", "-p", folder, "-c", tmp_path / "none.yaml", "-a", **steps), capsys
    )


def test_damaged_checkpoint(emotion_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    assert main([str(a) for a in emotion_args("varan", "-p", folder, **TWO_STEPS)]) == 0
    capsys.readouterr()
    best = folder / "dev-best.ckpt"
    best.write_bytes(best.read_bytes()[:1000])
    assert "not a checkpoint that can be read" in refused(
        ["-m", "evaluate", "-e", folder, "-u", TINY], capsys
    )


def test_code_that_only_a_checkpoint_names_is_not_imported(emotion_args, tmp_path, capsys):
    folder = tmp_path / "exp"
    expert = tmp_path / "mine.py"
    expert.write_text(Path(TINY_FILE).read_text())
    args = emotion_args("last_layer", "-p", folder, upstream=f"{expert}:tiny", **TWO_STEPS)
    assert main([str(arg) for arg in args]) == 0
    capsys.readouterr()
    trap = tmp_path / "imported"
    expert.write_text(f"open({str(trap)!r}, 'w')\n" + expert.read_text())
    for call in (["-m", "evaluate"], ["-m", "inference", "-t", tmp_path], ["-m", "train"]):
        err = refused([*call, "-e", folder], capsys)
        assert f"made with -u {expert}:tiny" in err and "name it yourself" in err
    assert not trap.exists()


def test_a_checkpoint_of_version_0_1_says_so(tmp_path, capsys):
    path = tmp_path / "dev-best.ckpt"
    torch.save({"Featurizer": {}, "Downstream": {}, "Args": {}, "Config": {}}, path)
    err = refused(["-m", "evaluate", "-e", path], capsys)
    assert "made by s3prl_varan 0.1" in err and "train again" in err
