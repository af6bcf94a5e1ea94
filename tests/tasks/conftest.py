"""The miniature corpora as fixtures; tests change copies of them, never these."""

import json
from pathlib import Path

import pytest

from tests.tasks import corpora


@pytest.fixture(scope="session")
def commands_corpus(tmp_path_factory) -> Path:
    """Speech Commands v1, in train/ and test/."""
    return corpora.make_speech_commands(tmp_path_factory.mktemp("speech_commands"))


@pytest.fixture(scope="session")
def intents_corpus(tmp_path_factory) -> Path:
    """Fluent Speech Commands."""
    return corpora.make_fluent_commands(tmp_path_factory.mktemp("fluent_commands"))


@pytest.fixture(scope="session")
def speakers_corpus(tmp_path_factory) -> Path:
    """VoxCeleb1."""
    return corpora.make_voxceleb(tmp_path_factory.mktemp("VoxCeleb1"))


@pytest.fixture(scope="session")
def mixtures_corpus(tmp_path_factory) -> Path:
    """Mixtures of two speakers, in Kaldi's layout."""
    from s3prl_varan.corpora.mixtures import prepare_mixtures

    voices = corpora.make_voices(tmp_path_factory.mktemp("voices"))
    out = tmp_path_factory.mktemp("made") / "mixtures"
    prepare_mixtures(voices, out, train=6, dev=3, test=4)
    return out


@pytest.fixture(scope="session")
def voices_corpus(tmp_path_factory) -> Path:
    """VoxCeleb1 for verification."""
    return corpora.make_verification(tmp_path_factory.mktemp("VoxCeleb1_voices"))


@pytest.fixture(scope="session")
def letters_corpus(tmp_path_factory) -> Path:
    """LibriSpeech's layout, prepared: a pitch for each letter."""
    from s3prl_varan.corpora.librispeech import prepare_librispeech

    root = corpora.make_letters(tmp_path_factory.mktemp("letters"))
    prepare_librispeech(root)
    return root


@pytest.fixture(scope="session")
def tones_without_dev(tone_corpus: Path, tmp_path_factory) -> Path:
    """Metadata of the tones as s3prl prepares it: without dev, which is then drawn from train."""
    folder = tmp_path_factory.mktemp("tones_metadata")
    for path in (tone_corpus / "meta_data").glob("Session*/*_meta_data.json"):
        if not path.name.startswith("dev"):
            target = folder / path.parent.name / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(json.loads(path.read_text())))
    return folder


@pytest.fixture(scope="session")
def ctc_corpora(tmp_path_factory) -> dict[str, Path]:
    """A corpus for each config of -d ctc."""
    folder = tmp_path_factory.mktemp("ctc")
    return {
        "libriphone": corpora.make_phones(folder / "LibriSpeech"),
        "snips": corpora.make_snips(folder / "SNIPS"),
        "cv_es": corpora.make_common_voice(folder / "es"),
        "sbcsae": corpora.make_sbcsae(folder / "SBCSAE"),
    }
