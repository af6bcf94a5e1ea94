"""s3prl's experts on today's torchaudio: reading, the few sox effects, stand-ins for packages."""

import importlib.util
import io
import sys

import pytest
import soundfile
import torch
import torchaudio

from s3prl_varan import compat
from s3prl_varan.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def _patched():
    compat.patch_torchaudio()


@pytest.fixture
def wave():
    return (torch.sin(torch.arange(3200) / 9.0) * 0.5).unsqueeze(0)


@pytest.fixture
def stereo_file(tmp_path, wave):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, torch.cat([wave, -wave]).t().numpy(), 8000, subtype="FLOAT")
    return path


def test_patching_twice_changes_nothing():
    before = torchaudio.load, torchaudio.info
    compat.patch_torchaudio()
    assert (torchaudio.load, torchaudio.info) == before


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.1)])
def test_load_reads_the_formats_with_torchaudios_convention(tmp_path, wave, suffix, tolerance):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, wave[0].numpy(), 16000)
    loaded, rate = torchaudio.load(path)
    assert (loaded.dtype, loaded.shape, rate) == (torch.float32, (1, 3200), 16000)
    torch.testing.assert_close(loaded, wave, atol=tolerance, rtol=0)


def test_load_reads_opus(tmp_path, wave):
    path = tmp_path / "a.opus"
    soundfile.write(path, wave[0].numpy(), 16000, format="OGG", subtype="OPUS")
    loaded, rate = torchaudio.load(str(path))
    assert rate in (16000, 48000) and loaded.shape[0] == 1
    assert abs(loaded.shape[1] / rate - 0.2) < 0.02


def test_load_part_of_a_file_and_channel_order(stereo_file, wave):
    part, _ = torchaudio.load(stereo_file, frame_offset=100, num_frames=50)
    torch.testing.assert_close(part, torch.cat([wave, -wave])[:, 100:150])
    assert torchaudio.load(stereo_file, channels_first=False)[0].shape == (3200, 2)
    assert torchaudio.load(stereo_file, frame_offset=3190, num_frames=50)[0].shape == (2, 10)
    assert torchaudio.load(stereo_file, frame_offset=9999)[0].shape == (2, 0)


def test_load_from_an_open_file_and_without_normalising(tmp_path, wave):
    path = tmp_path / "a.wav"
    soundfile.write(path, wave[0].numpy(), 16000, subtype="PCM_16")
    loaded, _ = torchaudio.load(io.BytesIO(path.read_bytes()))
    raw, _ = torchaudio.load(path, normalize=False)
    assert raw.dtype == torch.int16
    torch.testing.assert_close(raw.float() / 32768, loaded)


def test_info_states_the_header(stereo_file):
    info = torchaudio.info(stereo_file)
    assert (info.sample_rate, info.num_frames, info.num_channels, info.bits_per_sample) == (
        8000,
        3200,
        2,
        32,
    )
    assert info.encoding == "PCM_F"


def test_effects_of_the_speech_commands_expert(stereo_file, wave):
    from torchaudio.sox_effects import apply_effects_file, apply_effects_tensor

    mixed, rate = apply_effects_file(
        str(stereo_file), [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    )
    assert (mixed.shape, rate) == ((1, 6400), 16000)
    assert mixed.abs().max() < 1e-6  # the two channels cancel out
    louder, _ = apply_effects_tensor(wave, 16000, [["gain", "6.0"]])
    torch.testing.assert_close(louder, wave * 10**0.3)
    full, _ = apply_effects_tensor(wave, 16000, [["norm"]])
    assert full.abs().max().item() == pytest.approx(1.0)


@pytest.mark.parametrize("usable", [True, False])
def test_sox_is_replaced_where_it_cannot_be_used(monkeypatch, usable):
    """As in torchaudio 2.8, whose module is there, with libsox or without."""

    def effect_names():
        if not usable:
            raise OSError("libsox.so: cannot open shared object file")
        return ["gain"]

    theirs = compat._module("torchaudio.sox_effects", effect_names)
    monkeypatch.setitem(sys.modules, "torchaudio.sox_effects", theirs)
    monkeypatch.setattr(torchaudio, "sox_effects", theirs)
    monkeypatch.setattr(torchaudio, "load", None)  # as before any patching
    compat.patch_torchaudio()
    for module in (sys.modules["torchaudio.sox_effects"], torchaudio.sox_effects):
        replaced = getattr(module, "apply_effects_file", None) is compat.apply_effects_file
        assert replaced is not usable


def test_an_effect_that_is_not_replaced_is_named(wave):
    from torchaudio.sox_effects import apply_effects_tensor

    with pytest.raises(UserError, match="sox effect 'silence 1 0.1 1%' is not available"):
        apply_effects_tensor(wave, 16000, [["silence", "1", "0.1", "1%"]])


@pytest.mark.parametrize("name", ["emotion", "ctc", "speech_commands", "voxceleb1"])
def test_experts_import_without_librosa_and_catalyst(name):
    before = set(sys.modules)
    assert compat.import_downstream(name).DownstreamExpert
    added = {module.split(".")[0] for module in set(sys.modules) - before}
    for package in ("librosa", "catalyst"):  # absent ones must not look installed afterwards
        assert package not in added or sys.modules[package].__spec__.loader is not None


def test_speech_recognition_without_editdistance(monkeypatch):
    find = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "editdistance" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    for module in ("editdistance", "s3prl.downstream.asr.expert"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    expert = compat.import_downstream("asr")
    assert expert.editdistance.eval(["THE", "CAT"], ["THE", "CATS", "SAT"]) == 2
    assert "editdistance" not in sys.modules


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # makes `import pandas` fail
    for module in (
        "s3prl.downstream.fluent_commands.expert",
        "s3prl.downstream.fluent_commands.dataset",
    ):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(
        UserError,
        match="downstream 'fluent_commands' needs the package 'pandas'.*pip install pandas",
    ):
        compat.import_downstream("fluent_commands")


def test_an_unknown_downstream_is_not_taken_for_a_missing_package():
    with pytest.raises(ModuleNotFoundError):
        compat.import_downstream("emotoin")


def test_sampler_wrapper_deals_out_what_the_sampler_draws():
    wrapper = compat._sampler_wrapper()
    drawn = [7, 3, 5, 1]
    shares = [list(wrapper(drawn, num_replicas=2, rank=rank, shuffle=False)) for rank in (0, 1)]
    assert shares == [[7, 5], [3, 1]]
