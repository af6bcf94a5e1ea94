"""The synthetic corpus: the same every time, and prepared like RAVDESS."""

import hashlib
import importlib.util
import sys

import numpy
import pytest
import soundfile
import synthetic

from s3prl_varan.corpora import ravdess
from s3prl_varan.errors import UserError

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader not installed"
)


def digest(root):
    files = sorted(root.glob("Actor_*/*.wav"))
    return len(files), hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@needs_espeak
def test_synthetic_corpus_is_prepared_like_ravdess_and_repeats_itself(tmp_path):
    count = synthetic.synthesise_corpus(tmp_path / "a", actors=8)
    assert count == 8 * 8 * 2 == digest(tmp_path / "a")[0]
    synthetic.synthesise_corpus(tmp_path / "b", actors=8)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    synthetic.synthesise_corpus(tmp_path / "b", actors=8, seed=1)
    assert digest(tmp_path / "a")[1] != digest(tmp_path / "b")[1]
    summary = ravdess.prepare_ravdess(tmp_path / "a")
    assert (summary.name, summary.clips, summary.converted) == ("synthetic corpus", 128, 0)
    assert not any("1440" in note for note in summary.notes)
    assert "ynthetic" in (tmp_path / "a" / "SYNTHETIC.txt").read_text()


@needs_espeak
def test_synthetic_emotions_differ_in_rate_and_loudness(tmp_path):
    synthetic.synthesise_corpus(tmp_path / "a", actors=8)

    def mean(emotion, value):
        return numpy.mean(
            [value(soundfile.read(p)[0]) for p in (tmp_path / "a").glob(f"*/03-01-{emotion}-*.wav")]
        )

    assert mean("04", len) > 1.2 * mean("06", len)  # sad is slow, fearful is hasty
    assert mean("05", numpy.std) > 1.3 * mean("04", numpy.std)  # angry is loud, sad is soft


def test_synthetic_plan_gives_every_actor_a_voice_of_its_own():
    plan = synthetic.plan(24, 1, 0)
    assert len(plan) == 384 and plan == synthetic.plan(24, 1, 0)
    voices = {name[-2:]: item["voice"] for name, item in plan.items()}
    assert len(set(voices.values())) == 24


def test_synthetic_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="not empty and not a synthetic corpus"):
        synthetic.synthesise_corpus(tmp_path)
    with pytest.raises(UserError, match="actors must be 8 to 24"):
        synthetic.synthesise_corpus(tmp_path / "new", actors=4)


def test_synthetic_names_the_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match="pip install espeakng-loader"):
        synthetic.synthesise_corpus(tmp_path / "new")
    assert not (tmp_path / "new").exists()
