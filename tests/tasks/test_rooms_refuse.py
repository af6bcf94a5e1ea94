"""Corpora with something missing, through the command line: one clear message before training."""

import shutil

import pytest

from s3prl_varan.app.cli import main
from tests.conftest import TINY
from tests.tasks.test_rooms_run import PLACES


def without(pattern):
    """Delete what matches it."""

    def spoil(root):
        for path in list(root.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


@pytest.mark.parametrize(
    ("name", "spoil", "expected"),
    [
        ("speech_commands", without("train/*"), "train: no clips of down, go, left"),
        ("speech_commands", without("train"), "speech_commands_root: no folder"),
        ("speech_commands", without("test/*/*"), "test: no CLASS/*.wav in it"),
        ("speech_commands", without("train/_background_noise_"), "which are the class _silence_"),
        ("fluent_commands", without("data/valid_data.csv"), "valid_data.csv: cannot be read"),
        ("fluent_commands", without("*"), "train_data.csv: cannot be read"),
        ("fluent_commands", without("wavs/speakers/test0"), "-4474.wav: no such file"),
        ("voxceleb1", without("dev/wav/id10001/*_3"), "iden_split.txt lists it"),
        ("voxceleb1", without("iden_split.txt"), "iden_split.txt cannot be read"),
        ("voxceleb1", without("*/wav"), "no folder dev/wav or test/wav in it"),
        ("diarization", without("dev"), "dev/wav.scp: cannot be read"),
        ("diarization", without("train/utt2spk"), "utt2spk: cannot be read"),
        ("diarization", without("test/wav/test-00002.wav"), "test-00002.wav: no such file"),
        ("sv_voxceleb1", without("test/wav/id10271/vid1"), "voxceleb1_test_v2.txt lists it"),
        ("sv_voxceleb1", without("voxceleb1_test_v2.txt"), "voxceleb1_test_v2.txt: cannot be read"),
        ("sv_voxceleb1", without("dev/wav/*"), "dev/wav: expected recordings"),
        ("sv_voxceleb1", without("dev/wav/id1000[1-3]"), "expected two speakers or more"),
    ],
)
def test_one_message_before_training(name, spoil, expected, request, tmp_path, capsys):
    fixture, places, _ = PLACES[name]
    root, folder = tmp_path / "corpus", tmp_path / "exp"
    shutil.copytree(request.getfixturevalue(fixture), root)
    spoil(root)
    data = {f"downstream_expert.datarc.{key}": root / place for key, place in places.items()}
    override = ",,".join(f"config.{key}={value}" for key, value in data.items())
    flags = ["-u", TINY, "-d", name, "-f", "varan", "--device", "cpu", "-p", str(folder)]
    assert main([*flags, "-o", override]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: The corpus of -d {name} cannot be used:") and expected in err
    assert "Traceback" not in err and not folder.exists()
