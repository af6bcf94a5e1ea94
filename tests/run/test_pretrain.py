"""Pre-training end to end on tones: two stages, resume, export, and what would fail silently."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from micro_wavlm.audio_cache import build_cache
from micro_wavlm.batches import CropSampler, mix_crops
from micro_wavlm.config import HOP, WINDOW, BatchConfig, OptimConfig, load_config
from micro_wavlm.predictor import UnitPredictor, build_wavlm, export_weights
from micro_wavlm.training import Stage, draw_mask, learning_rate, new_wavlm, pretrain, seed_step
from micro_wavlm.units import CONTEXT, layer_features, mfcc_context_features, mfcc_features

from s3prl_varan.audio import SAMPLE_RATE, read_audio
from s3prl_varan.errors import UserError

RUN = Path(__file__).parents[2] / "run"
SHIPPED = RUN / "micro_wavlm" / "micro_wavlm.yaml"
TINY = {
    "model": {
        "extractor_mode": "layer_norm",
        "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2",
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 16,
        "encoder_attention_heads": 2,
        "conv_pos": 8,
        "conv_pos_groups": 2,
        "normalize": True,
        "layer_norm_first": True,
        "dropout": 0.1,
    },
    "stages": [
        {"name": "mfcc", "target": "mfcc", "units": 6, "steps": 2},
        {
            "name": "layer",
            "target": "layer",
            "layer": 1,
            "units": 5,
            "steps": 2,
            "warm_start": "all",
            "muon": hasattr(torch.optim, "Muon"),  # torch 2.9
            "below": [1],
        },
    ],
    "batch": {"seconds": 2.0, "crops": [0.5, 1.0], "valid_share": 0.2},
    "log": {"every": 1, "valid_every": 2, "save_every": 1},
}


def tone(seconds: float, pitch: float, seed: int) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * pitch * time * (1 + 0.2 * time)) + 0.02 * noise).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two folders of tones, one at another rate and in stereo."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for i in range(4):
        soundfile.write(first / f"{i}.flac", tone(1.3 + 0.2 * i, 150 + 90 * i, i), SAMPLE_RATE)
    soundfile.write(second / "stereo.wav", np.stack([tone(2.0, 300, 9)] * 2, axis=1), 8000)
    return [str(first), str(second)]


def write_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


@pytest.fixture(scope="module")
def finished(audio: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages without a break; its folder."""
    out = tmp_path_factory.mktemp("run")
    pretrain(load_config(write_config(out)), audio, out / "exp", resume=False)
    return out / "exp"


def test_run_leaves_weights_log_and_picture(finished: Path) -> None:
    saved = torch.load(finished / "layer.ckpt", weights_only=True)
    assert (saved["stage"], saved["step"]) == (1, 2)
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert all(np.isfinite(r["loss"]) for r in rows) and "valid_loss" in rows[1]
    assert (finished / "curves.png").read_bytes()[:4] == b"\x89PNG"
    before = torch.load(finished / "mfcc.ckpt", weights_only=True)["model"]
    changed = [
        k
        for k in before
        if k.startswith("wavlm.encoder.layers") and not before[k].equal(saved["model"][k])
    ]
    assert changed, "the second stage trained nothing"


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_run_equals_an_uninterrupted_one(
    audio: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    out, config = tmp_path / "exp", load_config(write_config(tmp_path))
    real, saves = Stage.save, []

    def save_then_stop(stage: Stage, path: Path) -> None:
        real(stage, path)
        saves.append(path.name)
        if saves.count("last.ckpt") == stop:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(Stage, "save", save_then_stop)
        with pytest.raises(Interrupted):
            pretrain(config, audio, out, resume=False)
    pretrain(config, audio, out, resume=True)
    wanted = torch.load(finished / "layer.ckpt", weights_only=True)["model"]
    found = torch.load(out / "layer.ckpt", weights_only=True)["model"]
    assert wanted.keys() == found.keys()
    assert [k for k in wanted if not wanted[k].equal(found[k])] == []
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_finished_folder_is_not_overwritten(
    audio: list[str], finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--resume"):
        pretrain(load_config(write_config(tmp_path)), audio, finished, resume=False)


def test_export_loads_as_micro_wavlm(finished: Path, tmp_path: Path) -> None:
    from s3prl_varan.upstream.micro_wavlm import micro_wavlm

    weights = tmp_path / "weights.safetensors"
    digest = export_weights(finished / "layer.ckpt", weights)
    assert len(digest) == 64
    expert = micro_wavlm(str(weights), str(write_config(tmp_path)))
    trained = torch.load(finished / "layer.ckpt", weights_only=True)["model"]
    wavlm = build_wavlm(TINY["model"]).eval()
    wavlm.load_state_dict(
        {
            k.removeprefix("wavlm."): v.half().float()
            for k, v in trained.items()
            if k.startswith("wavlm.")
        }
    )
    wav = torch.from_numpy(tone(1.0, 200, 1))
    with torch.no_grad():
        states = expert([wav])["hidden_states"]
        torch.testing.assert_close(
            states[1][0], layer_features(wavlm, wav, 1), rtol=1e-4, atol=1e-5
        )


def test_cache_resamples_cuts_and_counts_frames(audio: list[str], tmp_path: Path) -> None:
    cache = build_cache(audio, tmp_path, max_piece=1.0)
    assert (
        list(cache.folders) == [0] * 7 + [1] * 4
    )  # 1.3, 1.5, 1.7, 1.9 s; 4 s. Rests under 0.5 s are dropped
    assert cache.lengths.max() == SAMPLE_RATE
    wavlm = build_wavlm(TINY["model"])
    for piece in range(len(cache.lengths)):
        wav = torch.from_numpy(cache.wav(piece))
        assert (
            wavlm.feature_extractor(wav[None]).size(-1)
            == len(mfcc_features(wav))
            == cache.frame_counts[piece]
        )
    original, _ = soundfile.read(Path(audio[0]) / "0.flac", dtype="float32")
    np.testing.assert_allclose(cache.wav(0), original[:SAMPLE_RATE], atol=1 / 32768)
    again = build_cache(audio, tmp_path, max_piece=1.0)
    assert (again.offsets == cache.offsets).all()


def test_crops_carry_the_units_of_their_own_frames(audio: list[str], tmp_path: Path) -> None:
    """Units that count frames: a crop must have consecutive ones of one piece, and its samples."""
    cache = build_cache(audio, tmp_path, max_piece=15.0)
    units = np.arange(cache.frame_offsets[-1])
    sampler = CropSampler(
        cache,
        units,
        BatchConfig(seconds=3.0, crops=[0.5, 1.0], mix_prob=0.0, valid_share=0.2),
        seed=0,
    )
    for step in range(4):
        batch = sampler.draw(step)
        frames = batch.units.size(1)
        assert batch.wavs.shape == (3 * 50 // frames, (frames - 1) * HOP + WINDOW)
        for wav, row in zip(batch.wavs, batch.units, strict=True):
            piece = int(np.searchsorted(cache.frame_offsets, int(row[0]), side="right") - 1)
            assert piece not in sampler.valid
            assert row.equal(torch.arange(int(row[0]), int(row[0]) + frames))
            start = (int(row[0]) - cache.frame_offsets[piece]) * HOP
            expected = torch.from_numpy(cache.wav(piece)[start : start + len(wav)])
            assert (
                torch.nn.functional.cosine_similarity(wav, expected - expected.mean(), dim=0)
                > 0.999
            )
        again = sampler.draw(step)
        assert again.wavs.equal(batch.wavs) and again.units.equal(batch.units)
    assert not sampler.draw(0).units.equal(sampler.draw(1).units)


def test_a_faster_crop_carries_the_units_of_what_is_heard(tmp_path: Path) -> None:
    """A steady tone, units that count frames: the pitch heard tells the pace of the units."""
    time = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", 0.5 * np.sin(2 * np.pi * 400 * time), SAMPLE_RATE)
    cache = build_cache([str(tmp_path)], tmp_path / "out", max_piece=15.0)
    config = BatchConfig(seconds=8.0, crops=[2.0], mix_prob=0.0, valid_share=0.1)
    sampler = CropSampler(cache, np.arange(cache.frame_offsets[-1]), config, seed=0, speed=0.2)
    rates = []
    for step in range(5):
        batch = sampler.draw(step)
        for wav, row in zip(batch.wavs, batch.units, strict=True):
            rates.append(float(row[-1] - row[0]) / (len(row) - 1))
            pitch = torch.fft.rfft(wav, n=16 * SAMPLE_RATE).abs().argmax() / 16  # Hz
            assert abs(float(pitch) / 400 - rates[-1]) < 0.01
            assert len(set(np.searchsorted(cache.frame_offsets, row, side="right"))) == 1, (
                "units of another recording"
            )
    assert min(rates) < 0.87 and max(rates) > 1.13 and all(0.79 < rate < 1.21 for rate in rates)
    assert sampler.draw(0, valid=True).units.diff(dim=1).eq(1).all(), (
        "held-out crops keep their speed"
    )


def test_mfccs_in_context_ignore_gain_and_join_neighbours() -> None:
    wav = torch.from_numpy(tone(1.0, 200, 3))
    found = mfcc_context_features(wav)
    assert found.shape == (len(mfcc_features(wav)), 13 * (2 * CONTEXT + 1))
    torch.testing.assert_close(mfcc_context_features(0.3 * wav), found, rtol=1e-2, atol=1e-2)
    frames = found.view(len(found), 2 * CONTEXT + 1, 13)
    assert frames[:-1, CONTEXT + 1].equal(frames[1:, CONTEXT])
    torch.testing.assert_close(frames[:, CONTEXT].mean(0), torch.zeros(13), atol=1e-3, rtol=0)
    torch.testing.assert_close(frames[:, CONTEXT].std(0), torch.ones(13), atol=1e-2, rtol=0)


def test_mixing_adds_another_crop_to_at_most_half() -> None:
    rng = np.random.default_rng(0)
    wavs = rng.standard_normal((4, 8000)).astype(np.float32)
    changed = mix_crops(wavs, 1.0, rng) != wavs
    assert (changed.mean(1) > 0.1).all() and (changed.mean(1) <= 0.5).all()
    assert (mix_crops(wavs, 0.0, rng) == wavs).all()
    assert (mix_crops(wavs[:1], 1.0, rng) == wavs[:1]).all()  # nobody to mix with


def test_masked_frames_are_hidden_from_the_model() -> None:
    """What lies under the mask changes nothing: the model has to guess it."""
    torch.manual_seed(0)
    model = UnitPredictor(build_wavlm(TINY["model"]).eval(), 5, 8, 0.1)
    wavs = torch.randn(1, 16000)
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[:, 20:30] = True
    other = wavs.clone()
    other[:, 21 * HOP : 29 * HOP] = torch.randn(8 * HOP)  # samples that only frames 20 to 29 see
    assert model.encode(wavs, mask)[-1].equal(model.encode(other, mask)[-1])
    assert not model.encode(wavs, ~mask)[-1].equal(model.encode(other, ~mask)[-1])


def test_loss_is_taken_over_masked_frames_only() -> None:
    torch.manual_seed(0)
    model = UnitPredictor(build_wavlm(TINY["model"]).eval(), 5, 8, 0.1)
    wavs, mask, units = (
        torch.randn(2, 16000),
        torch.zeros(2, 49, dtype=torch.bool),
        torch.randint(5, (2, 49)),
    )
    mask[:, 5:9] = True
    elsewhere = torch.where(mask, units, (units + 1) % 5)
    assert model(wavs, mask, units).loss.equal(model(wavs, mask, elsewhere).loss)
    assert not model(wavs, mask, units).loss.equal(model(wavs, mask, (units + 1) % 5).loss)


def test_visible_frames_enter_the_loss_by_their_weight() -> None:
    torch.manual_seed(0)
    model = UnitPredictor(build_wavlm(TINY["model"]).eval(), 5, 8, 0.1, visible_weight=0.25)
    wavs, mask, units = (
        torch.randn(2, 16000),
        torch.zeros(2, 49, dtype=torch.bool),
        torch.randint(5, (2, 49)),
    )
    mask[:, 5:9] = True
    found = model(wavs, mask, units)
    projected = model.project[0](model.encode(wavs, mask)[0])
    similarity = torch.nn.functional.cosine_similarity(
        projected[..., None, :], model.embeddings[0], dim=-1
    )
    losses = -(similarity / 0.1).log_softmax(-1).gather(-1, units[..., None])[..., 0]
    torch.testing.assert_close(found.loss, losses[mask].mean().detach())
    torch.testing.assert_close(
        found.total, 0.75 * losses[mask].mean() + 0.25 * losses[~mask].mean()
    )
    assert found.visible_accuracy == (similarity.argmax(-1) == units)[~mask].float().mean()


def test_layers_below_predict_the_units_with_heads_of_their_own() -> None:
    torch.manual_seed(0)
    wavlm = build_wavlm(TINY["model"]).eval()
    both, last = UnitPredictor(wavlm, 5, 8, 0.1, below=[1]), UnitPredictor(wavlm, 5, 8, 0.1)
    first = UnitPredictor(wavlm, 5, 8, 0.1)  # told below that layer 1 is all there is
    wavs, mask, units = torch.randn(2, 16000), torch.rand(2, 49) < 0.5, torch.randint(5, (2, 49))
    states = both.encode(wavs, mask)
    hidden = wavlm.encoder.extract_features(_masked_features(wavlm, wavs, mask), tgt_layer=0)[0]
    torch.testing.assert_close(states[0], hidden)
    assert states[1].equal(last.encode(wavs, mask)[0])
    for number, alone in enumerate((first, last)):
        alone.project[0].load_state_dict(both.project[number].state_dict())
        alone.embeddings.data = both.embeddings.data[number : number + 1]
    first.encode = lambda wavs, mask: [hidden]  # type: ignore[method-assign]
    expected = (first(wavs, mask, units).total + last(wavs, mask, units).total) / 2
    torch.testing.assert_close(both(wavs, mask, units).total, expected)
    assert both(wavs, mask, units).loss.equal(last(wavs, mask, units).loss)


def _masked_features(
    wavlm: torch.nn.Module, wavs: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    features = wavlm.layer_norm(wavlm.feature_extractor(wavs).transpose(1, 2))
    features = features if wavlm.post_extract_proj is None else wavlm.post_extract_proj(features)
    return torch.where(mask[..., None], wavlm.mask_emb, features)


@pytest.mark.parametrize("warm_start", [None, "cnn", "all"])
def test_warm_start_takes_over_what_it_says(
    audio: list[str], finished: Path, tmp_path: Path, warm_start: str | None
) -> None:
    stages = [
        TINY["stages"][0],
        TINY["stages"][1] | {"warm_start": warm_start, "model": {"layer_norm_first": False}},
    ]
    config = load_config(write_config(tmp_path, stages=stages))
    cache = build_cache(audio, tmp_path / "exp", config.max_piece)
    before = build_wavlm(config.stage_model(0))
    units = np.zeros(int(cache.frame_offsets[-1]), dtype=np.uint16)
    model = new_wavlm(1, config, CropSampler(cache, units, config.batch, 0), before)
    assert not model.encoder.layer_norm_first
    old = before.state_dict()
    same = {key for key, value in model.state_dict().items() if value.equal(old[key])}
    drawn = {key for key in old if key.endswith(("fc1.weight", "k_proj.weight"))}
    convolutions = {
        key for key in old if key.startswith("feature_extractor") and key.endswith("0.weight")
    }
    assert same.isdisjoint(drawn) if warm_start != "all" else same == set(old)
    assert convolutions <= same if warm_start else convolutions.isdisjoint(same)


def test_masks_are_spans_that_the_seed_decides() -> None:
    optim = OptimConfig(mask_prob=0.65, mask_length=10)
    seed_step(0, 1)
    first = draw_mask(torch.Size((8, 200)), optim)
    seed_step(0, 1)
    assert first.equal(draw_mask(torch.Size((8, 200)), optim))
    assert 0.3 < first.float().mean() < 0.65


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.02 <= rates[-1] < 0.03


def test_shipped_configuration_matches_the_shipped_model() -> None:
    from s3prl.upstream.wavlm.WavLM import WavLMConfig

    from s3prl_varan.upstream.micro_wavlm import CONFIG

    training = load_config(SHIPPED)
    served = yaml.safe_load(CONFIG.read_text())["model"]
    shapes = [k for k in vars(WavLMConfig()) if "dropout" not in k and "layerdrop" not in k]
    assert {k: training.model[k] for k in shapes if k in training.model} == {
        k: served[k] for k in shapes if k in served
    }


def test_bad_configuration_lists_every_problem(tmp_path: Path) -> None:
    path = write_config(
        tmp_path,
        stages=[{"target": "mfc", "step": 3}, {"units": 1}],
        seeds=1,
        batch={"seconds": "long"},
    )
    with pytest.raises(UserError) as caught:
        load_config(path)
    text = str(caught.value)
    for expected in (
        "seeds: unknown key. Did you mean 'seed'?",
        "stages[0].step: unknown key",
        "found 'mfc'",
        "stages[1].units",
    ):
        assert expected in text
    assert "batch.seconds: expected float > 0, found 'long'" in text


@pytest.mark.parametrize("names", [("a", "a"), ("a", "last")])
def test_stages_have_files_of_their_own(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="names that differ and are not 'last'"):
        load_config(write_config(tmp_path, stages=[{"name": name} for name in names]))


def test_first_stage_cannot_build_on_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="first stage has no model"):
        load_config(write_config(tmp_path, stages=[{"name": "a", "target": "layer"}]))


def test_muon_of_an_older_torch_is_refused_before_anything_slow(
    audio: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    stages = [{**TINY["stages"][0], "muon": True}]
    with pytest.raises(UserError, match="need torch 2.9 or newer, found"):
        pretrain(
            load_config(write_config(tmp_path, stages=stages)), audio, tmp_path / "a", resume=False
        )
    assert not (tmp_path / "a").exists()
    plain = load_config(write_config(tmp_path, stages=TINY["stages"][:1]))
    assert pretrain(plain, audio, tmp_path / "b", resume=False).is_file()


def test_data_folder_without_audio(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no audio files below"):
        build_cache([str(tmp_path)], tmp_path / "out", 15.0)
    with pytest.raises(UserError, match="no such folder"):
        build_cache([str(tmp_path / "absent")], tmp_path / "out", 15.0)


def test_every_setting_is_in_the_shipped_file() -> None:
    raw = yaml.safe_load(SHIPPED.read_text())
    config = load_config(SHIPPED)
    for section in ("batch", "optim", "log"):
        assert set(raw[section]) == {f.name for f in dataclasses.fields(getattr(config, section))}


def test_mel_start_gives_filters_of_unit_power_that_peak_at_their_band() -> None:
    from micro_wavlm.frontend import HIGH, LOW, mel_filters, start_from_mel

    torch.manual_seed(0)
    conv = torch.nn.Conv1d(1, 64, 240, stride=160, bias=False)
    wavs = torch.randn(2, 16000)
    start_from_mel(conv, wavs)
    with torch.no_grad():
        torch.testing.assert_close(
            conv(wavs[:, None]).square().mean(dim=(0, 2)), torch.ones(64), rtol=1e-3, atol=1e-3
        )
    peaks = torch.fft.rfft(mel_filters(64, 240), n=16000).abs().argmax(-1)  # Hz
    assert peaks[::4].tolist() == sorted(peaks[::4].tolist())
    resolution = 16000 / 240  # Hz, of a window of 15 ms
    assert abs(peaks[0] - LOW) < resolution and abs(peaks[-1] - HIGH) < resolution


def test_probe_finds_what_is_linear_and_nothing_else() -> None:
    from micro_wavlm.probes import score_layers

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, size=300)
    told, silent = (
        np.eye(3)[labels] * 5 + rng.standard_normal((300, 3)),
        rng.standard_normal((300, 3)),
    )
    split = (np.arange(200), np.arange(200, 300))
    scores = score_layers("emotion", "toy", [silent, told], labels, [split, split])
    assert [s.layer for s in scores] == [0, 1]
    assert scores[1].accuracy > 0.95 and scores[0].accuracy < 0.5 and scores[0].spread == 0.0


def test_probe_report_marks_the_best_layer(tmp_path: Path) -> None:
    from micro_wavlm.probes import Score, write_report

    rows = [
        Score("emotion", "micro", 0, 0.5, 0.0),
        Score("emotion", "micro", 1, 0.75, 0.1),
        Score("emotion", "fbank", 0, 0.25, 0.0),
    ]
    write_report(rows, tmp_path)
    assert "| 0 | 50.0 | **25.0** |\n| 1 | **75.0** |  |" in (tmp_path / "probes.md").read_text()
    assert (tmp_path / "probes.csv").read_text().splitlines()[2] == "emotion,micro,1,0.7500,0.1000"
    assert (tmp_path / "probes.png").read_bytes()[:4] == b"\x89PNG"


def told_sounds(wav: torch.Tensor) -> list[torch.Tensor]:
    """Stands in for an upstream: a layer that knows nothing, then one-hot the frame's sound."""
    sound = wav[: len(wav) // 320 * 320].view(-1, 320)[:-1, 200].long()
    return [torch.zeros(len(sound), 3) + torch.arange(len(sound))[:, None] % 2, torch.eye(3)[sound]]


def test_phone_probe_reads_the_phone_at_the_centre_of_a_frame_and_skips_silence() -> None:
    from micro_wavlm.phones import SILENCE, AlignedClip
    from micro_wavlm.probes import probe_phones

    def clip(seed: int) -> AlignedClip:
        kinds = np.repeat(
            np.random.default_rng(seed).integers(0, 3, 40), 10
        )  # a sound lasts 100 ms
        wav = torch.from_numpy(np.repeat(kinds, 160).astype(np.float32))
        return AlignedClip(wav, np.array(["AA", "B", SILENCE])[kinds])

    scores = probe_phones({"toy": told_sounds}, [clip(i) for i in range(4)], [clip(9)])
    assert [s.layer for s in scores] == [0, 1]
    assert scores[1].accuracy == 1.0 and scores[0].accuracy < 0.7


@pytest.mark.slow
def test_alignment_gives_the_words_phones_where_they_are_said(shared_dir: Path) -> None:
    """CMUdict's pronunciation in order; half a second of silence moves it all by 50 frames."""
    from itertools import groupby

    from micro_wavlm.phones import SILENCE, align, build_aligner

    from s3prl_varan.corpora.librispeech import read_split

    pytest.importorskip("pocketsphinx")
    clips, _ = read_split(shared_dir / "data/librispeech/LibriSpeech/train-mini")
    clip = next(c for c in clips if c.name == "1998-15444-0007")
    aligner, wav = build_aligner(), read_audio(clip.path)
    phones = align(aligner, wav, clip.text)
    assert phones is not None and len(phones) == len(wav) // 160 + 1
    said = [
        phone for word in clip.text.lower().split() for phone in aligner.lookup_word(word).split()
    ]
    assert [phone for phone, _ in groupby(phones) if phone != SILENCE] == [
        phone for phone, _ in groupby(said)
    ]
    later = align(aligner, torch.cat([torch.zeros(8000), wav]), clip.text)
    assert (later[50 : 50 + len(phones)] == phones).mean() > 0.9
    assert align(aligner, wav, clip.text + " qwrtzx") is None
