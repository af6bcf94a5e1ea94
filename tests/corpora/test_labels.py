"""A table of your own labels: what is read, refused, converted, and how folds are made."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import soundfile
from tones import tone

from s3prl_varan.audio import read_audio
from s3prl_varan.corpora import emodb, labels
from s3prl_varan.corpora.labels import prepare_labels
from s3prl_varan.errors import UserError

LABELS = ("high", "low", "mid")


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def prepared(folder: Path) -> list[dict[str, str]]:
    with open(folder / labels.TABLE, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def speakers_by_split(rows, column):
    found = defaultdict(set)
    for row in rows:
        found[row[column]].add(row["speaker"])
    return found


@pytest.fixture
def rows(tmp_path):
    """10 speakers with two clips of each label: `path TAB label TAB speaker`."""
    found = []
    for speaker in range(10):
        for number, label in enumerate(LABELS * 2):
            name = f"s{speaker}/{label} {number}.wav"
            tone(tmp_path / "audio" / name, 0.1)
            found.append(f"{name}\t{label}\ts{speaker}")
    return found


@pytest.fixture
def table(rows, tmp_path):
    return write(tmp_path / "labels.tsv", "path\tlabel\tspeaker", *rows)


def prepare(table, tmp_path, **options):
    return prepare_labels(table, tmp_path / "out", audio_root=tmp_path / "audio", **options)


def refused(table, tmp_path, **options) -> str:
    with pytest.raises(UserError) as raised:
        prepare(table, tmp_path, **options)
    assert not (tmp_path / "out" / labels.TABLE).exists()
    assert not (tmp_path / "out" / "converted").exists()
    return str(raised.value)


def test_folds_keep_speakers_apart_and_labels_alike(table, tmp_path):
    summary = prepare(table, tmp_path)
    found = prepared(tmp_path / "out")
    folds = [f"fold{number}" for number in range(1, 6)]
    assert list(found[0])[6:] == folds and len(found) == 60
    for row in found:
        assert [row[fold] for fold in folds].count("test") == 1
    for fold in folds:
        by_split = speakers_by_split(found, fold)
        assert {split: len(each) for split, each in by_split.items()} == {
            "train": 6,
            "dev": 2,
            "test": 2,
        }
        assert len(set.union(*by_split.values())) == 10
    for line in summary.rows:
        assert len(set(line.counts.values())) == 1 and sum(line.counts.values()) == line.clips
    assert summary.notes == [] and summary.data == tmp_path / "out"
    assert f"labels.tsv: 60 clips, metadata in {tmp_path / 'out'}" in str(summary)
    first = (tmp_path / "out" / labels.TABLE).read_bytes()
    prepare(table, tmp_path)
    assert (tmp_path / "out" / labels.TABLE).read_bytes() == first
    prepare(table, tmp_path, seed=1)
    assert (tmp_path / "out" / labels.TABLE).read_bytes() != first


def test_fewer_speakers_than_folds_are_told(rows, tmp_path):
    table = write(tmp_path / "labels.tsv", "path\tlabel\tspeaker", *rows[:18])
    summary = prepare(table, tmp_path)
    found = prepared(tmp_path / "out")
    assert list(found[0])[6:] == ["fold1", "fold2", "fold3"]
    for fold in ("fold1", "fold2", "fold3"):
        by_split = speakers_by_split(found, fold)
        assert sum(map(len, by_split.values())) == 3 == len(by_split)
    assert any(
        "3 speakers or recordings make so many folds, not 5" in note for note in summary.notes
    )


def test_without_speakers_labels_are_balanced_and_a_warning_is_given(rows, tmp_path):
    kept = [row.rpartition("\t")[0] for row in rows]
    summary = prepare(write(tmp_path / "labels.tsv", "path\tlabel", *kept), tmp_path)
    tested = [line.counts for line in summary.rows if line.split == "test"]
    assert tested == [dict.fromkeys(LABELS, 4)] * 5
    assert any("no column speaker" in note for note in summary.notes)


def test_given_folds_and_splits_are_kept(rows, tmp_path):
    numbered = [f"{row}\t{1 + at // 20}" for at, row in enumerate(rows)]
    prepare(write(tmp_path / "l.tsv", "path\tlabel\tspeaker\tfold", *numbered), tmp_path)
    found = prepared(tmp_path / "out")
    assert list(found[0])[6:] == ["fold1", "fold2", "fold3"]
    for number in range(3):
        places = {at for at, row in enumerate(found) if row[f"fold{number + 1}"] == "test"}
        assert places == set(range(20 * number, 20 * number + 20))
        assert "dev" in {row[f"fold{number + 1}"] for row in found}
    splits = ["train"] * 30 + ["dev"] * 12 + ["test"] * 18
    given = [f"{row}\t{split}" for row, split in zip(rows, splits, strict=True)]
    prepare(write(tmp_path / "l.tsv", "path\tlabel\tspeaker\tsplit", *given), tmp_path)
    assert [row["split"] for row in prepared(tmp_path / "out")] == splits
    given = [row.replace("\tdev", "\ttrain") for row in given]
    prepare(write(tmp_path / "l.tsv", "path\tlabel\tspeaker\tsplit", *given), tmp_path)
    found = prepared(tmp_path / "out")
    assert [row["split"] for row in found[42:]] == ["test"] * 18
    by_split = speakers_by_split(found, "split")
    assert by_split["dev"] and not by_split["dev"] & (by_split["train"] | by_split["test"])


def test_stretches_of_a_recording_stay_together(tmp_path):
    rows = ["label,path,start,end"]
    for number in range(8):
        tone(tmp_path / "audio" / f"{number}.wav", 1.0)
        rows += [f"a,{number}.wav,,0.25", f"b,{number}.wav,0.25,0.5", f"a,{number}.wav,0.5,"]
    summary = prepare(write(tmp_path / "l.csv", *rows), tmp_path, folds=4)
    found = prepared(tmp_path / "out")
    assert [(row["start"], row["end"]) for row in found[:3]] == [
        ("0.0", "0.25"),
        ("0.25", "0.5"),
        ("0.5", ""),
    ]
    assert len({row["name"] for row in found}) == 24
    for fold in ("fold1", "fold2", "fold3", "fold4"):
        by_file = defaultdict(set)
        for row in found:
            by_file[row["path"]].add(row[fold])
        assert all(len(splits) == 1 for splits in by_file.values())
    assert sum(line.hours for line in summary.rows) == pytest.approx(4 * 8 / 3600)


def test_what_is_not_16_khz_mono_is_converted_once(table, tmp_path):
    source = tone(tmp_path / "audio" / "s0" / "high 0.wav", 0.5, 44100, 2)
    rows = [
        "path\tlabel\tspeaker\tstart\tend",
        "s0/high 0.wav\thigh\tx\t0\t0.2",
        "s0/high 0.wav\tlow\ty\t0.2\t",
        f"{tmp_path}/audio/s1/low 1.wav\tlow\tz\t\t",
        "s1/high 0.wav\thigh\tz\t\t",
        *(f"s{number}/high 0.wav\thigh\t{number}\t\t" for number in range(2, 6)),
        *(f"s{number}/low 1.wav\tlow\t{number}\t\t" for number in range(2, 6)),
    ]
    summary = prepare(write(tmp_path / "l.tsv", *rows), tmp_path, folds=2)
    found = prepared(tmp_path / "out")
    copy = tmp_path / "out" / found[0]["path"]
    assert summary.converted == 1 and found[0]["path"] == found[1]["path"]
    assert soundfile.info(copy).samplerate == 16000 and soundfile.info(copy).channels == 1
    assert (read_audio(copy) - read_audio(source)).abs().max() < 1e-3
    assert found[2]["path"] == str(tmp_path / "audio" / "s1" / "low 1.wav")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_tsv_quotes_and_a_byte_order_mark(mark, rows, tmp_path):
    lines = [row.replace("\t", mark) for row in rows]
    name = f'"s0/high{mark} 0.wav"'
    tone(tmp_path / "audio" / name.strip('"'), 0.1)
    lines[0] = mark.join([name, "high", "s0"])
    path = tmp_path / "l.csv"
    path.write_text("\n".join(["\ufeffPath" + mark + "label" + mark + "speaker", *lines]))
    assert prepare(path, tmp_path).clips == 60


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("s0/high 0.wav\thigh\ts0", "expected the names of the columns"),
        ("path\tlabels\tspeaker", "unknown column 'labels'. Did you mean 'label'?"),
        ("path\tlabel\tnote", "unknown column 'note'"),
        ("path\tlabel\tlabel", "two columns are named label"),
        ("path\tlabel\t", "unknown column ''"),
        ("path\tspeaker\tstart", "no column label"),
        ("path\tlabel\tfold\tsplit", "give one of them"),
    ],
)
def test_the_first_line_names_known_columns(header, expected, rows, tmp_path):
    assert expected in refused(write(tmp_path / "l.tsv", header, *rows), tmp_path)


def test_problems_are_counted_and_ten_are_shown(table, rows, tmp_path):
    bad = [
        "s0/high 0.wav\thigh\ts0",  # listed before
        "s0/high 0.wav\thigh",
        "s0/low 1.wav\t\ts0",
        *(f"gone{number}.wav\tlow\ts0" for number in range(12)),
    ]
    write(table, "path\tlabel\tspeaker", *rows, "", *bad)
    message = refused(table, tmp_path)
    for part in (
        "15 problems in labels.tsv",
        "line 63: s0/high_0.wav is listed twice",
        "line 64: 2 cells, the first line has 3",
        "line 65: no label",
        "gone0.wav: no such file",
        "and 5 more",
        "--skip_bad",
    ):
        assert part in message
    assert "gone7.wav" not in message
    summary = prepare(table, tmp_path, skip_bad=True)
    assert summary.clips == 60 and "and 5 more" in str(summary)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("0.05\t0.01\ttrain", "the end after the start"),
        ("-1\t\ttrain", "the end after the start"),
        ("nan\t\ttrain", "the end after the start"),
        ("a\t\ttrain", "start a and end : expected seconds"),
        ("5\t6\ttrain", "outside the file, which has 0.10 s"),
        ("0\t0.9\ttrain", "outside the file"),
        ("0\t0.01\ttrain", "shorter than 25 ms"),
        ("\t\ttrian", "split trian: expected train, dev or test. Did you mean 'train'?"),
        ("\t\t", "no split"),
    ],
)
def test_rows_that_cannot_be_used(cells, expected, rows, tmp_path):
    good = [f"{row}\t\t\ttrain" for row in rows[1:]]
    lines = [f"{rows[0]}\t{cells}", *good]
    table = write(tmp_path / "l.tsv", "path\tlabel\tspeaker\tstart\tend\tsplit", *lines)
    message = refused(table, tmp_path)
    assert expected in message and "1 problems" in message


def test_a_label_that_train_lacks_is_refused(rows, tmp_path):
    lines = [row.replace("\tlow\ts3", "\tonly\ts3") for row in rows]
    table = write(tmp_path / "l.tsv", "path\tlabel\tspeaker", *lines)
    message = refused(table, tmp_path)
    assert "2 test clips of 'only', of which train has none" in message
    lines = [f"{row}\ttrain" for row in rows]
    table = write(tmp_path / "l.tsv", "path\tlabel\tspeaker\tsplit", *lines)
    assert "split: no test clips" in refused(table, tmp_path)
    one = [row.replace("\tlow", "\thigh").replace("\tmid", "\thigh") for row in rows]
    table = write(tmp_path / "l.tsv", "path\tlabel\tspeaker", *one)
    assert "at least two labels are needed in train, found high" in refused(table, tmp_path)


def test_what_cannot_be_parted_is_refused(rows, tmp_path):
    lines = [f"{row.split(chr(9))[0]}\tlabel{at}" for at, row in enumerate(rows)]
    table = write(tmp_path / "l.tsv", "path\tlabel", *lines)
    assert "cannot be parted into 5 folds" in refused(table, tmp_path)
    assert "at least 2 are expected" in refused(table, tmp_path, folds=1)
    with pytest.raises(UserError, match="no such file. Give a CSV or TSV"):
        prepare(tmp_path / "none.tsv", tmp_path)


def test_a_table_that_is_no_table(rows, tmp_path):
    table = write(tmp_path / "l.tsv", "path\tlabel\tspeaker", *rows)
    text = table.read_text().replace("\tlow\t", '\t"low\t', 1)
    table.write_text(text + "x" * 200_000)
    assert "not CSV or TSV (field larger than field limit" in refused(table, tmp_path)
    table.write_bytes(text.encode("utf-16"))
    assert "cannot be read as UTF-8 text" in refused(table, tmp_path)
    table.write_text("")
    assert "expected the names of the columns" in refused(table, tmp_path)
    table.write_text("path\tlabel\n\n")
    assert "no row that can be used" in refused(table, tmp_path)


def test_the_users_table_is_not_overwritten(rows, tmp_path):
    table = write(tmp_path / labels.TABLE, "path\tlabel\tspeaker", *rows)
    before = table.read_bytes()
    with pytest.raises(UserError, match="would be overwritten"):
        prepare_labels(table, tmp_path, audio_root=tmp_path / "audio")
    assert table.read_bytes() == before


def test_emodb_by_its_file_names(tmp_path):
    for speaker in ("03", "08", "09", "10"):
        for letter in emodb.LABELS:
            tone(tmp_path / "wav" / f"{speaker}a01{letter}a.wav", 0.1)
    summary = emodb.prepare_emodb(tmp_path)
    found = prepared(tmp_path / "meta_data")
    assert {(row["name"], row["label"], row["speaker"]) for row in found} >= {
        ("03a01Fa.wav", "happiness", "03"),
        ("10a01Wa.wav", "anger", "10"),
    }
    assert summary.data == tmp_path and any("535 clips, 28 are" in note for note in summary.notes)
    tone(tmp_path / "wav" / "03a01Xa.wav", 0.1)
    with pytest.raises(UserError, match="03a01Xa.wav: not named like 03a01Fa.wav"):
        emodb.prepare_emodb(tmp_path)
    with pytest.raises(UserError, match="no recordings in it"):
        emodb.prepare_emodb(tmp_path / "meta_data")


def test_the_real_emodb(shared_dir, tmp_path):
    summary = emodb.prepare_emodb(shared_dir / "data" / "emodb", tmp_path)
    found = prepared(tmp_path)
    assert summary.clips == 535 and summary.converted == 0 and summary.notes == []
    tests = [line for line in summary.rows if line.split == "test"]
    assert sum(line.clips for line in tests) == 535 and [t.speakers for t in tests] == [2] * 5
    assert len(found) == 535 and {row["speaker"] for row in found} == {
        *("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"),
    }
