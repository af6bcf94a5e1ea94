"""Reports: statistics against hand-made figures, incomplete cells, files, a submission."""

import ast
import csv
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3prl_varan.errors import UserError
from s3prl_varan.report import render
from s3prl_varan.report.cells import find_cells
from s3prl_varan.report.cli import main
from s3prl_varan.report.figures import all_pictures
from s3prl_varan.report.submission import collect_submission
from s3prl_varan.report.table import build_rows, leaderboard, paired_difference, short_names

CLASSES = ["angry", "calm", "happy"]


def write_run(
    folder: Path,
    featurizer: str,
    fold: int,
    seed: int,
    acc: float,
    *,
    dev: float = 70.0,
    finished: bool = True,
    corpus: str = "ravdess",
    lora: bool = False,
    **settings: Any,
) -> Path:
    """An experiment folder as the runner leaves it, with made-up figures.

    settings: of the featurizer's section.
    """
    folder.mkdir(parents=True)
    stored = stored_blocks(featurizer, fold, seed, corpus, lora, settings)
    (folder / "config.yaml").write_text(json.dumps(stored))
    curve = [
        {"step": step, "split": "dev", "acc": dev - (100 - step) / 10}
        for step in (20, 40, 60, 80, 100)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in curve) + '{"step": 110, "spl'
    )
    if not finished:
        return folder
    layers = [1, 2] if featurizer == "varan" else [0, 1, 2]
    lines = ["split,utterance,label,prediction," + ",".join(f"layer{layer}" for layer in layers)]
    for place, name in enumerate(CLASSES):
        weights = [0.1 * place, 1 - 0.1 * place] if featurizer == "varan" else [0.2, 0.3, 0.5]
        lines.append(f"test,clip{place},{name},{name}," + ",".join(map(str, weights)))
    (folder / "layer_weights.csv").write_text("\n".join(lines) + "\n")
    (folder / f"test_fold{fold}_predict.txt").write_text("clip0 angry\n")
    result = {
        **stored,
        "submission": {f"er_fold{fold}_public/predict.txt": f"test_fold{fold}_predict.txt"},
        "best_step": 80,
        "dev": {"acc": dev, "loss": 1.0},
        "test": {"test": {"acc": acc, "uar": acc - 1, "loss": 1.0}},
        "layers": layers,
        "layer_weights": {"test": [1 / len(layers)] * len(layers)},
        "steps": 100,
        "seconds": 12.0,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def stored_blocks(
    featurizer: str, fold: int, seed: int, corpus: str, lora: bool, settings: dict[str, Any]
) -> dict[str, Any]:
    """What an experiment says of itself."""
    args = {
        "upstream": "whisper",
        "upstream_ckpt": "models/tiny",
        "downstream": "my_tasks.py:Emotion",
        "downstream_variant": f"fold{fold}",
        "featurizer": featurizer,
        "lora": lora,
        "upstream_trainable": False,
        "seed": seed,
        "expdir": "somewhere",
    }
    flags = {f"args.{key}": args[key] for key in ("upstream", "upstream_ckpt", "seed")}
    own = {f"config.{featurizer}.{key}": value for key, value in settings.items()}
    return {
        "id": "0123456789ab",
        "task": {
            "name": "emotion",
            "title": "emotion recognition (ER)",
            "metric": "acc",
            "higher_is_better": True,
            "fold": f"fold{fold}",
            "corpus": corpus,
        },
        "args": args,
        "config": {"runner": {"total_steps": 100, "log_step": seed}, featurizer: settings},
        "settings": {**flags, **own, "config.runner.total_steps": 100},
    }


def as_version_0_1(folder: Path) -> Path:
    """Have the experiment say what one of version 0.1 says."""
    for name in ("result.json", "config.yaml"):
        if (folder / name).is_file():
            new = json.loads((folder / name).read_text())
            args, config = dict(new["args"], downstream="emotion"), new["config"]
            datarc = {"meta_data": "m", "root": f"data/{new['task']['corpus']}", "test_fold": None}
            old = {"args": args, "config": {**config, "downstream_expert": {"datarc": datarc}}}
            if name == "result.json":
                old |= {key: new["task"][key] for key in ("metric", "higher_is_better", "fold")}
                kept = ("dev", "test", "best_step", "layers", "layer_weights", "steps", "seconds")
                old |= {key: new[key] for key in kept}
            (folder / name).write_text(json.dumps(old))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """2 folds x 2 seeds of weighted_sum and of varan with three betas, the largest lacks one."""
    for fold in (1, 2):
        for seed in (1, 2):
            name = f"{fold}_{seed}"
            write_run(tmp_path / f"ws_{name}", "weighted_sum", fold, seed, 60 + fold + 2 * seed)
            write_run(
                tmp_path / f"v1_{name}",
                "varan",
                fold,
                seed,
                62 + fold + 2 * seed + 0.1 * seed,
                dev=72,
                kl_beta=0.01,
            )
            write_run(tmp_path / f"v2_{name}", "varan", fold, seed, 70 + fold, dev=71, kl_beta=0.05)
            write_run(
                tmp_path / f"v3_{name}",
                "varan",
                fold,
                seed,
                90,
                dev=90,
                kl_beta=0.5,
                finished=name != "2_2",
            )
    return tmp_path


def row_of(rows: list, label: str) -> Any:
    return next(row for row in rows if row.label == label)


def test_mean_spread_and_paired_difference(runs: Path) -> None:
    rows, _ = build_rows(find_cells([str(runs / "*")]))
    row = row_of(rows, "varan (kl_beta=0.01)")
    values = [62 + fold + 2 * seed + 0.1 * seed for fold in (1, 2) for seed in (1, 2)]
    assert row.mean == pytest.approx(np.mean(values))
    assert row.spread == (
        pytest.approx(2.1 / np.sqrt(2)),
        "seeds",
    )  # fold means of the two seeds are 2.1 apart
    assert row.difference.mean == pytest.approx(2.15)
    assert row.difference.pairs == 4 and row.difference.significant
    assert (
        2.09 < row.difference.low < row.difference.mean < row.difference.high < 2.21
    )  # pairing removes fold and seed


def test_one_seed_spreads_over_folds(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_run(tmp_path / str(fold), "varan", fold, 1, 60.0 + 4 * fold)
    rows, _ = build_rows(find_cells([str(tmp_path)]))
    assert rows[0].spread == (pytest.approx(4 / np.sqrt(2)), "folds")


def test_incomplete_row_is_neither_best_nor_chosen(runs: Path) -> None:
    rows, _ = build_rows(find_cells([str(runs)]))
    row = row_of(rows, "varan (kl_beta=0.5)")
    assert not row.complete and not row.best and len(row.values) == 3 and len(row.expected) == 4
    assert row_of(rows, "varan (kl_beta=0.05)").best
    chosen = {row.method: row for row in leaderboard(rows)}
    assert (
        chosen["varan"].label == "varan (kl_beta=0.01)"
    )  # best on dev of the complete ones, though not on test


def test_a_fold_that_a_method_never_started_makes_it_incomplete(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "weighted_sum", 1, 1, 60)
    write_run(tmp_path / "b", "weighted_sum", 2, 1, 60)
    write_run(tmp_path / "c", "varan", 1, 1, 99)
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--no_figures"]) == 0
    text = (tmp_path / "out/leaderboard.md").read_text()
    assert "incomplete 1/2 (99.0 so far)" in text and "**99.0**" not in text
    assert "incomplete: missing" in (tmp_path / "out/cells.csv").read_text()


def test_bootstrap_interval_has_the_coverage_it_claims() -> None:
    generator, covered = np.random.default_rng(3), 0
    for _ in range(200):
        drawn = generator.normal(1.0, 2.0, size=24)
        found = paired_difference(
            {("f", n): x for n, x in enumerate(drawn)}, {("f", n): 0.0 for n in range(24)}, "x", 500
        )
        covered += found.low <= 1.0 <= found.high
    assert 0.87 <= covered / 200 <= 0.99


def test_no_common_cell_no_difference() -> None:
    assert paired_difference({("fold1", 1): 1.0}, {("fold2", 1): 1.0}, "x") is None
    single = paired_difference({("fold1", 1): 3.0}, {("fold1", 1): 1.0}, "x")
    assert single.mean == 2.0 and single.pairs == 1 and not single.significant


def test_corpora_and_tunings_are_never_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "varan", 1, 1, 50)
    write_run(tmp_path / "b", "varan", 1, 1, 80, corpus="IEMOCAP")
    write_run(tmp_path / "c", "varan", 1, 1, 90, lora=True)
    rows, _ = build_rows(find_cells([str(tmp_path)]))
    assert sorted((row.setup.corpus, row.method, row.mean) for row in rows) == [
        ("IEMOCAP", "varan", 80), ("ravdess", "varan", 50), ("ravdess", "varan + lora", 90)
    ]  # fmt: skip


def test_same_cell_twice_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "varan", 1, 1, 50)
    write_run(tmp_path / "b", "varan", 1, 1, 80)
    rows, notes = build_rows(find_cells([str(tmp_path / "*"), str(tmp_path / "a")]))
    assert len(rows) == 1 and len(rows[0].values) == 1
    assert any("are the same cell" in note for note in notes)


def test_error_rates_go_down(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "varan", 1, 1, 50)
    write_run(tmp_path / "b", "weighted_sum", 1, 1, 80)
    for name, loss in (("a", 0.5), ("b", 2.0)):
        path = tmp_path / name / "result.json"
        result = json.loads(path.read_text())
        result["test"]["test"]["loss"] = loss
        path.write_text(json.dumps(result))
    rows, _ = build_rows(find_cells([str(tmp_path)]), metric="loss")
    assert [row.featurizer for row in rows if row.best] == ["varan"]
    with pytest.raises(UserError, match="has no figure 'uarr'.* Did you mean 'uar'"):
        build_rows(find_cells([str(tmp_path)]), metric="uarr")


def test_damaged_result_is_shown(tmp_path: Path) -> None:
    (write_run(tmp_path / "a", "varan", 1, 1, 50) / "result.json").write_text('{"args":')
    cell = find_cells([str(tmp_path)])[0]
    assert cell.status == "unreadable" and "result.json cannot be read" in cell.note


def test_places_without_experiments_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.yaml").write_text("other: file")
    assert main([str(tmp_path / "empty"), str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "empty'" in error and "nowhere' (no such folder)" in error and "result.json" in error


def test_all_files_are_made_and_the_page_stands_alone(runs: Path) -> None:
    out = runs / "out"
    assert main([str(runs), "--out", str(out), "--title", "A & B"]) == 0
    made = {path.name for path in (out / "figures").iterdir()}
    for stem in (
        "bars",
        "differences",
        "dev_curves",
        "layers_per_class",
        "layers_per_corpus",
        "ablation_kl_beta",
    ):
        assert any(name.startswith(stem) and name.endswith(".png") for name in made), stem
        assert any(name.startswith(stem) and name.endswith(".pdf") for name in made), stem
    text = (out / "report.html").read_text()
    assert (
        not re.findall(r'(?:src|href)="(?!data:)', text)
        and "<script" not in text
        and "url(" not in text
    )
    assert text.count("data:image/png;base64,") == len(
        [name for name in made if name.endswith(".png")]
    )
    assert "A &amp; B" in text and '<td class="incomplete">' in text and "<b>" in text
    latex = (out / "leaderboard.tex").read_text()
    assert (
        "\\toprule" in latex
        and "weighted\\_sum" in latex
        and "\\textbf{" in latex
        and "±" not in latex
    )
    with open(out / "settings.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["variant"]: line["complete"] for line in lines} == {
        "": "1",
        "kl_beta=0.01": "1",
        "kl_beta=0.05": "1",
        "kl_beta=0.5": "0",
    }


def test_planned_and_pruned_cells_of_a_sweep(tmp_path: Path) -> None:
    done = write_run(tmp_path / "one", "varan", 1, 1, 50)
    stored = json.loads((done / "config.yaml").read_text())
    other = {**stored, "args": {**stored["args"], "seed": 2}}
    cells = [{**stored, "id": "one"}, {**other, "id": "two"}]
    (tmp_path / "x.plan.json").write_text(json.dumps({"cells": cells}))
    found = find_cells([str(tmp_path)])
    assert sorted(cell.status for cell in found) == ["done", "planned"]
    (tmp_path / "two").mkdir()
    for status, shown in (("started", "unfinished"), ("waiting", "unfinished"), ("failed",) * 2):
        (tmp_path / "two/status.json").write_text(json.dumps({"status": status, **other}))
        assert {cell.path.name: cell.status for cell in find_cells([str(tmp_path)])} == {
            "one": "done",
            "two": shown,
        }
    (tmp_path / "two/status.json").write_text(json.dumps({"status": "pruned", **other}))
    rows, notes = build_rows(find_cells([str(tmp_path)]))
    assert rows[0].complete and "1 cells were pruned" in notes[0]


def test_experiments_of_version_0_1_are_read(tmp_path: Path) -> None:
    for seed in (1, 2):
        as_version_0_1(write_run(tmp_path / f"ws{seed}", "weighted_sum", 1, seed, 50, head="x"))
        old = write_run(tmp_path / f"v{seed}", "varan", 1, seed, 60, kl_beta=0.1, finished=seed > 1)
        as_version_0_1(old)
    rows, _ = build_rows(find_cells([str(tmp_path)]))
    assert [str(row.setup) for row in rows] == ["whisper (tiny) / emotion / ravdess"] * 2
    assert [(row.label, len(row.values), row.higher_is_better) for row in rows] == [
        ("weighted_sum", 2, True),
        ("varan", 1, True),
    ]
    assert rows[1].settings["config.varan.kl_beta"] == 0.1
    assert not any("log_step" in key or "expdir" in key for key in rows[1].settings)
    assert set(rows[0].cells) == {("fold1", 1), ("fold1", 2)} == rows[1].expected
    with pytest.raises(UserError, match="made by version 0.1"):
        collect_submission(find_cells([str(tmp_path / "ws1")]), tmp_path / "out")


def test_submission_has_the_leaderboards_names(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_run(tmp_path / f"run{fold}", "varan", fold, 1, 50, corpus="IEMOCAP")
    assert main([str(tmp_path / "run*"), "--submission", str(tmp_path / "sub")]) == 0
    with zipfile.ZipFile(tmp_path / "sub/predict.zip") as archive:
        assert archive.namelist() == [
            "predict/er_fold1_public/predict.txt",
            "predict/er_fold2_public/predict.txt",
        ]
        assert archive.read("predict/er_fold1_public/predict.txt") == b"clip0 angry\n"
    readme = (tmp_path / "sub/README.md").read_text()
    assert "2 fold(s) of emotion recognition (ER) on IEMOCAP (fold1, fold2)" in readme
    assert "scored only with all" in readme and "SUPERB's own corpora" in readme


def test_submission_of_a_folder_has_all_its_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "varan", 1, 1, 50)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "submission": {"sd_public": "a/b"}}))
    assert main([str(run), "--submission", str(tmp_path / "none")]) == 2
    (run / "a" / "b").mkdir(parents=True)
    for name in ("one", "two"):
        (run / "a" / "b" / f"{name}.h5").write_text(name)
    assert main([str(run), "--submission", str(tmp_path / "sub")]) == 0
    with zipfile.ZipFile(tmp_path / "sub/predict.zip") as archive:
        names = ["predict/sd_public/one.h5", "predict/sd_public/two.h5"]
        assert archive.namelist() == names
        assert [archive.read(name) for name in names] == [b"one", b"two"]
    assert (tmp_path / "sub/predict/sd_public/two.h5").read_text() == "two"


def test_submission_refuses_two_runs_for_one_place(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_run(tmp_path / "a", "varan", 1, 1, 50)
    (write_run(tmp_path / "b", "varan", 1, 2, 50) / "test_fold1_predict.txt").unlink()
    assert main([str(tmp_path), "--submission", str(tmp_path / "sub")]) == 2
    error = capsys.readouterr().err
    assert "er_fold1_public/predict.txt: both" in error and "no test_fold1_predict.txt" in error


def test_a_setting_that_is_the_same_wherever_it_is_found_is_not_told(tmp_path: Path) -> None:
    for number, (prior, own) in enumerate(
        (("chi2", {"chi2_df": 6}), ("chi2_reversed", {"chi2_df": 6}), ("uniform", {}))
    ):
        write_run(tmp_path / f"p{number}", "varan", 1, 1, 70, prior=prior, **own)
    rows = build_rows(find_cells([str(tmp_path)]))[0]
    assert {row.label for row in rows} == {
        "varan (prior=chi2)",
        "varan (prior=chi2_reversed)",
        "varan (prior=uniform)",
    }
    for number, share in enumerate(
        (False, True)
    ):  # told apart by nothing but that one has the setting
        write_run(tmp_path / f"s{number}", "layer", 1, 1, 70, **({"share": 1} if share else {}))
    rows = build_rows(find_cells([str(tmp_path)]))[0]
    assert {"layer", "layer (share=1)"} <= {row.label for row in rows}
    write_run(tmp_path / "s2", "layer", 1, 1, 70, share=1, width=2)
    write_run(tmp_path / "s3", "layer", 1, 1, 70, share=1, width=3)
    labels = [row.label for row in build_rows(find_cells([str(tmp_path)]))[0]]
    assert len(set(labels)) == len(
        labels
    )  # most have share=1, but hiding it would leave two rows one name


def test_differences_are_drawn_from_the_smallest_up(runs: Path) -> None:
    (picture,) = [
        p
        for p in all_pictures(build_rows(find_cells([str(runs)]))[0])
        if p.name.startswith("differences")
    ]
    axes = picture.figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["varan (kl_beta=0.01)", "varan (kl_beta=0.05)", "varan (kl_beta=0.5) 3/4"]
    means = [float(container.lines[0].get_xdata()[0]) for container in axes.containers]
    assert means == sorted(means) and means[0] == pytest.approx(2.15)


def test_short_names_stay_apart() -> None:
    assert short_names(["config.optimizer.lr", "config.varan.prior"]) == {
        "config.optimizer.lr": "lr",
        "config.varan.prior": "prior",
    }
    assert short_names(["config.a.lr", "config.b.lr"]) == {
        "config.a.lr": "a.lr",
        "config.b.lr": "b.lr",
    }


def test_report_imports_little_and_no_torch() -> None:
    modules = ("cli", "figures", "submission")
    imports = "".join(f"import s3prl_varan.report.{name}; " for name in modules)
    own = "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 's3prl_varan')))"
    code = f"import sys; {imports}{own}"
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    own_ground = ("errors", "files", "intervals", "report")
    allowed = ("s3prl_varan", *(f"s3prl_varan.{name}" for name in own_ground))
    found = ast.literal_eval(run.stdout)
    others = [one for one in found if not one.startswith("s3prl_varan.report.")]
    assert set(others) <= set(allowed) and "s3prl_varan.report.figures" in found


def with_dynamics(folder: Path, gain: float, nats: float) -> None:
    """Let a run say what its weights know, and that its mean q is `gain` worse."""
    result = json.loads((folder / "result.json").read_text())
    twin = {"acc": result["test"]["test"]["acc"] - gain}
    result["dynamics"] = {"test": {"information_nats": nats, "static_twin": twin}}
    (folder / "result.json").write_text(json.dumps(result))


def test_the_report_says_whether_it_is_dynamic(runs: Path, tmp_path: Path) -> None:
    for fold in (1, 2):
        for seed in (1, 2):
            with_dynamics(runs / f"v1_{fold}_{seed}", 0.1 * seed, 0.002 * fold)
    rows, _ = build_rows(find_cells([str(runs / "*")]))
    row = row_of(rows, "varan (kl_beta=0.01)")
    assert row.information == pytest.approx(0.003) and row.gain.mean == pytest.approx(0.15)
    assert row.gain.pairs == 4 and 0.09 < row.gain.low < row.gain.high < 0.21
    assert row_of(rows, "weighted_sum").gain is None
    assert render.dynamics_text(row) == "0.0030, +0.15 [+0.10, +0.20]*"
    out = tmp_path / "out"
    assert main([str(runs / "*"), "--out", str(out)]) == 0
    assert "0.0030, +0.15" in (out / "settings.md").read_text()
    text = (out / "leaderboard.md").read_text()
    assert "what weighing by utterance adds" in text
    header, body = (out / "settings.csv").read_text().splitlines()[:2]
    assert len(header.split(",")) == len(next(csv.reader([body])))
    assert list((out / "figures").glob("dynamics*.png"))


def test_without_dynamics_no_column_asks_for_them(runs: Path, tmp_path: Path) -> None:
    assert main([str(runs / "*"), "--out", str(tmp_path / "out"), "--no_figures"]) == 0
    assert "I(L;X)" not in (tmp_path / "out" / "leaderboard.md").read_text()


def test_a_second_interval_draws_speakers(tmp_path: Path) -> None:
    """Two speakers, one of whom gains all: the runs agree, the speakers do not."""
    for seed in (1, 2):
        for name, right in (("weighted_sum", "0011"), ("varan", "1111")):
            folder = write_run(tmp_path / f"{name}{seed}", name, 1, seed, 25.0 * right.count("1"))
            lines = [f"c{place},s{place // 2},{hit},1" for place, hit in enumerate(right)]
            content = "\n".join(["clip,speaker,amount,of", *lines])
            (folder / "test_clips.csv").write_text(content + "\n")
    rows, _ = build_rows(find_cells([str(tmp_path / "*")]))
    found = row_of(rows, "varan").difference
    assert (found.mean, found.low, found.high) == (50, 50, 50)
    assert found.over_clips == (0, 100)
    assert render.difference_text(row_of(rows, "varan")) == "+50.0 [+50.0, +50.0]* [+0.0, +100.0]"
    by_uar, _ = build_rows(find_cells([str(tmp_path / "*")]), metric="uar")
    assert row_of(by_uar, "varan").difference.over_clips is None  # the clips tell of acc
