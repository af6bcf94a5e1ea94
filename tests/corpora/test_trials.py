"""Trials of a corpus's own: who is trained on, who is asked about, and what is refused."""

import csv
import random
from collections import defaultdict

import pytest
from tones import tone

from s3prl_varan.corpora.labels import prepare_labels
from s3prl_varan.corpora.trials import (
    LISTS,
    TABLE,
    draw_trials,
    hold_out,
    prepare_trials,
    read_trials,
)  # fmt: skip
from s3prl_varan.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Eight speakers with a folder and three clips each, and a file that is nobody's."""
    root = tmp_path / "voices"
    for speaker in range(8):
        for number in range(3):
            tone(root / f"s{speaker}" / "day 1" / f"{number}.wav", 0.1)
    tone(root / "notes.wav", 0.1)
    return root


def prepared(folder) -> dict[str, dict[str, dict[str, str]]]:
    """Split -> name of a clip -> its row."""
    found = defaultdict(dict)
    with open(folder / TABLE, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found[row["split"]][row["name"]] = row
    return found


def test_no_speaker_is_in_two_splits(folders):
    summary = prepare_trials(folders, dev_speakers=2, test_speakers=3, trials=20)
    out = folders / "meta_data"
    assert summary.data == out and "trials" in str(summary) and summary.clips == 24
    rows = prepared(out)
    speakers = {split: {row["speaker"] for row in found.values()} for split, found in rows.items()}
    assert {split: len(each) for split, each in speakers.items()} == {
        "train": 3,
        "dev": 2,
        "test": 3,
    }
    assert len(set.union(*speakers.values())) == 8
    for split, name in LISTS.items():
        trials = read_trials(out / name)
        assert {trial.same for trial in trials} == {True, False}
        for trial in trials:
            first, second = rows[split][trial.first], rows[split][trial.second]
            assert trial.same == (first["speaker"] == second["speaker"])
            assert trial.first != trial.second and " " not in trial.first
    assert len(read_trials(out / LISTS["test"])) == 9 + 10  # all that there are of one speaker


def test_the_seed_decides(folders, tmp_path):
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        prepare_trials(folders, out, seed=seed)
        texts.append({path.name: path.read_text() for path in out.iterdir()})
    assert set(texts[0]) == {TABLE, *LISTS.values()}
    assert texts[0] == texts[1] != texts[2]


def test_a_table_and_what_labels_wrote(folders, tmp_path):
    rows = ["path,label,speaker,start,end"]
    for speaker in range(8):
        clip = f"s{speaker}/day 1/0.wav"
        rows += [f"{clip},x,s{speaker},0,0.05", f"{clip},y,s{speaker},0.05,"]
    table = tmp_path / "voices.csv"
    table.write_text("\n".join(rows) + "\n")
    prepare_trials(table, tmp_path / "one", audio_root=folders)
    prepare_labels(table, tmp_path / "labels", audio_root=folders)
    prepare_trials(tmp_path / "labels" / "prepared_labels.tsv", tmp_path / "two")
    for folder in ("one", "two"):
        found = [row for each in prepared(tmp_path / folder).values() for row in each.values()]
        assert len(found) == 16 and {row["end"] for row in found} == {"", "0.05"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("path,label\na.wav,x", "no column speaker"),
        ("path,speaker\nnone.wav,x\n,x\na.wav,", "3 problems"),
        ("path,speaker,start,end\ns0/a.wav,x,2,1", "expected seconds, the end after the start"),
        ("path,speaker\ns0/day 1/0.wav,x\ns0/day 1/0.wav,x", "s0/day_1/0.wav: listed twice"),
        ("path,speaker\ns0/day 1/0.wav,x\ns0/day 1/1.wav,y", "2 speakers are too few"),
    ],
)
def test_what_is_refused(rows, expected, folders, tmp_path):
    table = folders / "table.csv"
    table.write_text(rows + "\n")
    with pytest.raises(UserError, match=expected):
        prepare_trials(table, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_folders_that_are_no_corpus(folders, tmp_path):
    with pytest.raises(UserError, match="a folder of recordings for each speaker"):
        prepare_trials(folders / "s0" / "day 1", tmp_path / "out")
    torn = folders / "s0" / "day 1" / "0.wav"
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{torn}: broken off"):
        prepare_trials(folders)
    summary = prepare_trials(folders, skip_bad=True)
    assert summary.clips == 23 and str(torn) in str(summary)
    with pytest.raises(UserError, match="would be overwritten"):
        prepare_trials(folders / "meta_data" / TABLE, folders / "meta_data")


def test_drawn_trials_are_different_and_as_many_as_asked():
    names = {f"s{number}": [f"s{number}/{clip}" for clip in range(9)] for number in range(5)}
    trials = draw_trials(names, 101, random.Random(0))
    assert len({frozenset((each.first, each.second)) for each in trials}) == 101
    assert sum(trial.same for trial in trials) == 50
    assert {each.first[:2] for each in trials} == set(names)
    assert hold_out({**names, "one": ["clip"]}, 9, random.Random(0)) == sorted(names)
