"""Feature cache: same metrics as without, damaged entries, budget, refusals, command line."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s3prl_varan.app.cache_tool import main as cache_main
from s3prl_varan.app.cli import main
from s3prl_varan.errors import UserError
from s3prl_varan.features.cache import FeatureCache
from s3prl_varan.features.clip_keys import clip_key
from s3prl_varan.features.stack import stack_layers
from s3prl_varan.features.store import HEADER_BYTES
from s3prl_varan.upstream.wrapper import build_upstream

ROOT = Path(__file__).resolve().parents[2]
TINY = f"{ROOT / 'tests' / 'tiny_expert.py'}:tiny"


def _clips(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        0.1 * torch.randn(3200 + 320 * (index % 7), generator=generator) for index in range(count)
    ]


@pytest.fixture(scope="module")
def upstream():
    return build_upstream(TINY)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_features_are_those_of_the_upstream(tmp_path, upstream, pooled, normalize):
    wavs = _clips(5)
    wavs.append(wavs[0].clone())  # twice in one batch: one entry
    with torch.no_grad():
        states = upstream(wavs)
    for layers in ([1, 2, 3, 4], [4], [0, 3, 2]):
        chosen = [states.layers[index] for index in layers]
        expected = stack_layers(chosen, states.lengths, pool=pooled, normalize=normalize)
        cache = FeatureCache(tmp_path, upstream, pooled=pooled, normalize=normalize)
        for _ in range(2):  # computed (or found on disk), then from memory
            found = cache.encode(wavs, layers)
            assert (
                found.hidden.dtype == torch.float32
                and found.lengths.tolist() == expected.lengths.tolist()
            )
            for row, length in enumerate(expected.lengths):
                torch.testing.assert_close(
                    found.hidden[row, :, :length],
                    expected.hidden[row, :, :length],
                    rtol=1e-5 if pooled else 1e-3,
                    atol=1e-5 if pooled else 1e-3,
                )
                assert (found.hidden[row, :, length:] == 0).all()
        assert cache.misses == (
            5 if layers == [1, 2, 3, 4] else 0
        )  # other layers read the same entries


def test_an_entry_does_not_depend_on_the_batch_it_came_in(tmp_path, upstream):
    wavs = _clips(6)
    together = FeatureCache(tmp_path / "a", upstream, pooled=False).encode(wavs, [0, 4]).hidden
    cache = FeatureCache(tmp_path / "b", upstream, pooled=False)
    for wav in reversed(wavs):
        cache.encode([wav], [0, 4])
    assert torch.equal(cache.encode(wavs, [0, 4]).hidden, together)


def test_every_sample_counts(upstream):
    wav = _clips(1)[0]
    other = wav.clone()
    other[-1] += 1e-6
    assert clip_key(wav) != clip_key(other) and clip_key(wav) == clip_key(wav.double().float())
    assert clip_key(wav) != clip_key(wav[:-1])


def test_values_beyond_half_precision_are_kept(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr(
        "s3prl_varan.features.cache.stack_layers",
        lambda layers, *a, **k: stack_layers([1e6 * x for x in layers], *a, **k),
    )
    wavs = _clips(2)
    cache = FeatureCache(tmp_path, upstream, pooled=False)
    first = cache.encode(wavs, [4]).hidden
    assert (
        first.isfinite().all()
        and torch.equal(cache.encode(wavs, [4]).hidden, first)
        and cache.misses == 2
    )


@pytest.mark.parametrize("changed", ["weights", "selection", "normalize", "kept", "code"])
def test_what_features_depend_on_has_its_own_store(tmp_path, upstream, changed):
    wavs = _clips(2)
    FeatureCache(tmp_path, upstream, pooled=True).encode(wavs, [4])
    other, options = upstream, {"pooled": True}
    if changed == "weights":
        other = build_upstream(TINY)
        with torch.no_grad():
            other.expert.layers[3].weight[0, 0] += 1e-3
    elif changed == "selection":
        other = build_upstream(TINY, feature_selection="last_hidden_state")
    elif changed == "code":
        copy = tmp_path / "tiny_expert.py"
        copy.write_text(Path(TINY.rpartition(":")[0]).read_text() + "\n# another version\n")
        other = build_upstream(f"{copy}:tiny")
    elif changed == "normalize":
        options["normalize"] = True
    else:
        options["pooled"] = False
    cache = FeatureCache(tmp_path, other, **options)
    cache.encode(wavs, [0])
    assert cache.misses == 2
    same = FeatureCache(tmp_path, build_upstream(TINY), pooled=True)
    same.encode(wavs, [4])
    assert same.misses == 0


def _fill(root: Path, order: int, barrier) -> None:
    torch.set_num_threads(1)
    upstream = build_upstream(TINY)
    cache = FeatureCache(root, upstream, pooled=True)
    wavs = _clips(60)
    barrier.wait(timeout=60)
    for start in range(0, 60, 4):
        batch = wavs[start : start + 4] if order == 0 else wavs[56 - start : 60 - start]
        cache.encode(batch, [1, 2, 3, 4])


def test_two_processes_filling_one_cache_lose_nothing(tmp_path, upstream):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_fill, args=(tmp_path, order, barrier)) for order in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    cache = FeatureCache(tmp_path, upstream, pooled=True)
    wavs = _clips(60)
    found = cache.encode(wavs, [1, 2, 3, 4]).hidden
    assert cache.misses == 0 and len(list(cache.store.folder.glob("*.seg"))) == 2
    alone = (
        FeatureCache(tmp_path / "alone", upstream, pooled=True).encode(wavs, [1, 2, 3, 4]).hidden
    )
    torch.testing.assert_close(
        found, alone, rtol=1e-5, atol=1e-5
    )  # other processes may sum in another order


def test_the_budget_is_kept_and_said_before_it_starts(tmp_path, upstream, caplog):
    wavs = _clips(40)
    cache = FeatureCache(tmp_path, upstream, pooled=False, budget_gb=20e-6)  # 20 KB
    message = cache.forecast([len(wav) for wav in wavs])
    assert (
        "40 clips need" in message
        and "20.0 KB" in message
        and "% of them fit" in message
        and "--cache_gb 0.01" in message
    )
    for _ in range(2):
        found = cache.encode(wavs, [4]).hidden
    stored = len(cache.store)
    assert (
        0 < stored < 40 and sum(path.stat().st_size for path in tmp_path.rglob("*.seg")) <= 20_000
    )
    assert caplog.text.count("is full") == 1
    assert cache.misses == 40 + 40 - stored
    free = FeatureCache(tmp_path / "free", upstream, pooled=False)
    torch.testing.assert_close(found, free.encode(wavs, [4]).hidden, rtol=1e-3, atol=1e-3)
    fits = free.forecast([len(wav) for wav in wavs])
    assert "fit" not in fits and "40 clips stored" in fits
    estimate = sum(free.entry_bytes(len(wav)) for wav in wavs)
    assert (
        abs(estimate / sum(path.stat().st_size for path in (tmp_path / "free").rglob("*.seg")) - 1)
        < 0.15
    )


def test_random_audio_does_not_fill_the_disk(tmp_path, upstream, caplog):
    cache = FeatureCache(tmp_path, upstream, pooled=True)
    cache.forecast([3200] * 5)
    for seed in range(4):
        cache.encode(_clips(5, seed), [4])
    assert len(cache.store) == 5 and "at random" in caplog.text


def _figures(expdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (expdir / "metrics.jsonl").read_text().splitlines()]
    set_aside = ("layer_weights", "dynamics")
    return [{name: value for name, value in row.items() if name not in set_aside} for row in rows]


def _close(left: list[dict], right: list[dict], tolerance: float) -> bool:
    assert [row.keys() for row in left] == [row.keys() for row in right] and len(left) > 0
    pairs = [
        (row[name], other[name]) for row, other in zip(left, right, strict=True) for name in row
    ]
    return all(
        a == b if isinstance(a, str) else abs(a - b) <= tolerance * (1 + abs(a)) for a, b in pairs
    )


@pytest.mark.parametrize("featurizer", ["varan", "weighted_sum"])
def test_cached_training_gives_the_same_metrics(tmp_path, emotion_args, featurizer):
    runs = {
        "plain": [],
        "filling": ["--cache", str(tmp_path / "cache")],
        "filled": ["--cache", str(tmp_path / "cache")],
    }
    for name, flags in runs.items():
        assert main(emotion_args(featurizer, "-p", str(tmp_path / name), *flags)) == 0
    plain, filling, filled = (_figures(tmp_path / name) for name in runs)
    assert _close(plain, filling, 1e-3)
    assert filling == filled  # entries do not depend on who computed them when


def test_cache_with_frames_gives_the_same_metrics(tmp_path, emotion_args):
    deep = {
        "config.downstream_expert.modelrc.select": "DeepModel",
        "config.heads.dropout": 0,
        "config.runner.total_steps": 4,
        "config.runner.eval_step": 2,
        "config.optimizer.lr": 0.001,
    }
    for name, flags in {"plain": [], "cached": ["--cache", "auto"]}.items():
        assert main(emotion_args("varan", "-p", str(tmp_path / name), *flags, **deep)) == 0
    assert list((tmp_path / "cached" / "cache").glob("*-frames-*/*.seg"))
    plain, cached = (
        [{"loss": row["loss"]} for row in _figures(tmp_path / name)] for name in ("plain", "cached")
    )
    assert _close(plain, cached, 2e-3)  # half precision


def test_evaluation_uses_the_cache_and_recomputes_what_is_damaged(tmp_path, emotion_args, capsys):
    expdir, cache = tmp_path / "exp", tmp_path / "cache"
    assert (
        main(
            emotion_args(
                "varan",
                "-p",
                str(expdir),
                "--cache",
                str(cache),
                **{"config.runner.total_steps": 20},
            )
        )
        == 0
    )
    path = next(cache.rglob("*.seg"))
    content = bytearray(path.read_bytes())
    for start in range(HEADER_BYTES + 20, len(content), 4096):
        content[start] ^= 0x55
    path.write_bytes(content)
    assert cache_main(["info", str(cache), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "damaged" in shown and " 0 damaged" not in shown
    assert (
        main(
            [
                "-m",
                "evaluate",
                "-t",
                "test",
                "-e",
                str(expdir),
                "-u",
                TINY,
                "--device",
                "cpu",
                "--cache",
                str(cache),
            ]
        )
        == 0
    )
    rows = [row for row in _figures(expdir) if row["split"] == "test"]
    assert abs(rows[-1]["loss"] - rows[-2]["loss"]) < 1e-4
    assert len(list(cache.rglob("*.seg"))) == 2  # the repaired entries


@pytest.mark.parametrize("flag", ["--lora", "--upstream_trainable"])
def test_refused_where_the_upstream_is_trained(tmp_path, emotion_args, capsys, flag):
    assert main(emotion_args("varan", "-p", str(tmp_path), "--cache", "auto", flag)) == 2
    assert "frozen upstream" in capsys.readouterr().err


def test_refused_where_it_cannot_be_written(tmp_path, upstream):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        FeatureCache(tmp_path / "file", upstream, pooled=True)


def test_info_and_clear(tmp_path, upstream, capsys):
    FeatureCache(tmp_path / "cache", upstream, pooled=True).encode(_clips(3), [0])
    FeatureCache(tmp_path / "cache", upstream, pooled=False).encode(_clips(4), [0])
    (tmp_path / "cache" / "mine.txt").write_text("kept")
    assert (
        cache_main(["info", str(tmp_path), "--verify"]) == 0
    )  # an experiment folder with cache/ in it
    shown = capsys.readouterr().out
    assert (
        "3 clips" in shown
        and "4 clips" in shown
        and "0 damaged" in shown
        and "5 hidden states of 24" in shown
    )
    assert cache_main(["clear", str(tmp_path / "cache"), "--upstream", "wavlm"]) == 2
    assert "nothing of upstream 'wavlm'" in capsys.readouterr().err
    assert cache_main(["clear", str(tmp_path / "cache")]) == 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["mine.txt"]
    assert cache_main(["info", str(tmp_path / "nowhere")]) == 2


def test_the_script_starts(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "run" / "cache.py"), "info", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "no cached features" in done.stdout


def test_a_clip_is_hashed_once_and_again_when_it_changes(monkeypatch):
    import numpy as np

    from s3prl_varan.features import clip_keys

    calls = []
    monkeypatch.setattr(
        clip_keys, "clip_key", lambda wav, real=clip_keys.clip_key: calls.append(1) or real(wav)
    )
    keys, samples = (
        clip_keys.ClipKeys(),
        np.random.default_rng(0).standard_normal(16000).astype("float32"),
    )
    wav = torch.from_numpy(samples)
    first = keys(wav)
    assert keys(torch.from_numpy(samples)) == first and len(calls) == 1
    samples *= 2  # changed in place, as an augmentation might
    assert keys(torch.from_numpy(samples)) != first and len(calls) == 2
    assert keys(torch.from_numpy(samples / 2)) == first
    monkeypatch.setattr(clip_keys, "REMEMBER_BYTES", 0)
    forgetful = clip_keys.ClipKeys()
    assert forgetful(wav) == forgetful(wav) == clip_keys.clip_key(wav)
