"""IEMOCAP: one session left out per fold, as s3prl's own script has it, and what can be wrong."""

import json
import shutil

import pytest
from tones import tone

from s3prl_varan import audio
from s3prl_varan.corpora import iemocap, metadata
from s3prl_varan.errors import UserError


def read_meta(out, fold, split):
    return json.loads((out / fold / f"{split}_meta_data.json").read_text())


@pytest.fixture
def small_iemocap(tmp_path):
    """Five sessions of two dialogues; six emotions of which five are used."""
    root = tmp_path / "IEMOCAP_full_release"
    for session in range(1, 6):
        folder = root / f"Session{session}"
        for dialog in (f"Ses{session:02d}F_impro01", f"Ses{session:02d}M_script01_1"):
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for turn, emotion in enumerate(["neu", "exc", "hap", "ang", "sad", "fru"]):
                name = f"{dialog}_F{turn:03d}"
                lines += [
                    f"[{turn}.0000 - {turn}.9000]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]",
                    "C-E2:\tNeutral;\t()",
                    "",
                ]
                tone(folder / "sentences" / "wav" / dialog / f"{name}.wav")
            (folder / "dialog" / "EmoEvaluation").mkdir(parents=True, exist_ok=True)
            (folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt").write_text("\n".join(lines))
            (folder / "dialog" / "EmoEvaluation" / f"._{dialog}.txt").write_bytes(
                b"\x00\x05\x16\x07"
            )
    return root


def test_iemocap_leaves_one_session_out(small_iemocap, tmp_path):
    out = tmp_path / "meta"
    summary = iemocap.prepare_iemocap(small_iemocap, out)
    assert summary.clips == 50 and any("5531" in note for note in summary.notes)
    for session in range(1, 6):
        train, test = (read_meta(out, f"Session{session}", split) for split in ("train", "test"))
        assert train["labels"] == test["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
        assert len(train["meta_data"]) == 40 and len(test["meta_data"]) == 10
        assert all(
            row["path"].startswith(f"Session{session}/sentences/wav/") for row in test["meta_data"]
        )
        assert not any(row["path"].startswith(f"Session{session}/") for row in train["meta_data"])
        assert not (out / f"Session{session}" / "dev_meta_data.json").exists()
    labels = [row["label"] for row in test["meta_data"]]
    assert labels.count("hap") == 4 and {row["speaker"] for row in test["meta_data"]} == {
        "Ses05F",
        "Ses05M",
    }


def test_iemocap_equals_s3prls_own_preprocessing(small_iemocap, tmp_path, monkeypatch):
    from s3prl_varan import compat

    for path in small_iemocap.rglob("._*"):  # s3prl's script would read these
        path.unlink()
    with compat._stand_ins():
        from s3prl.downstream.emotion import IEMOCAP_preprocess as theirs
    theirs.main(str(small_iemocap))
    out = tmp_path / "ours"
    iemocap.prepare_iemocap(small_iemocap, out)
    for session in range(1, 6):
        for split in ("train", "test"):
            expected = read_meta(small_iemocap / "meta_data", f"Session{session}", split)
            found = read_meta(out, f"Session{session}", split)
            assert found["labels"] == expected["labels"]
            key = lambda row: row["path"]  # noqa: E731 - theirs are in the order of os.listdir
            assert sorted(found["meta_data"], key=key) == sorted(expected["meta_data"], key=key)


def test_iemocap_layout_problems(small_iemocap, tmp_path):
    out = tmp_path / "meta"
    with pytest.raises(UserError, match=f"found 0 of them. Give {small_iemocap}"):
        iemocap.prepare_iemocap(small_iemocap.parent, out)
    gone = next(
        (small_iemocap / "Session2" / "sentences" / "wav" / "Ses02F_impro01").glob("*F000.wav")
    )
    gone.unlink()
    shutil.rmtree(small_iemocap / "Session3" / "dialog")
    with pytest.raises(UserError) as raised:
        iemocap.prepare_iemocap(small_iemocap, out)
    assert "Ses02F_impro01_F000 has no recording" in str(raised.value)
    assert "EmoEvaluation: no such folder" in str(raised.value)
    assert not list(out.rglob("*.json"))


def test_a_dev_file_of_an_earlier_preparation_goes_away(tmp_path):
    out = tmp_path / "meta"
    clips = [metadata.Clip(tmp_path / "a.wav", "neu", "Ses01F", audio.AudioInfo(16000, 16000, 1))]
    summary = metadata.CorpusSummary(tmp_path, out, name="x")
    metadata.write_folds(
        summary, iemocap.LABELS, {"fold1": {"train": clips, "dev": clips, "test": clips}}
    )
    metadata.write_folds(summary, iemocap.LABELS, {"fold1": {"train": clips, "test": clips}})
    assert sorted(p.name for p in (out / "Session1").iterdir()) == [
        "test_meta_data.json",
        "train_meta_data.json",
    ]
    assert any("no training clip of class hap" in note for note in summary.notes)
