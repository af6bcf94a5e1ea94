"""Recordings listed as path TAB text: their corpus, its split, and what is refused."""

import random
from pathlib import Path

import pytest
from tones import table, tone

from s3prl_varan.corpora import dictionary, librispeech, manifest
from s3prl_varan.errors import UserError


@pytest.fixture
def small_manifest(tmp_path):
    folder = tmp_path / "prompts"
    rows = []
    for i in range(20):
        tone(folder / f"p {i}.wav", 0.1)
        rows.append(f"p {i}.wav\tPrompt no. {'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}, please!")
    (folder / "list.tsv").write_text("\n".join(rows) + "\n")
    return folder / "list.tsv"


def edit(path, number, row):
    rows = path.read_text().splitlines()
    rows[number] = row
    path.write_text("\n".join(rows))


def test_manifest_makes_a_corpus_in_librispeechs_layout(
    small_manifest, tmp_path, check_s3prls_dataset
):
    tone(small_manifest.parent / "p 0.wav", 0.1, 44100, 2)
    out = tmp_path / "out"
    summary = manifest.prepare_manifest(small_manifest, out)
    assert {row.split: row.utterances for row in summary.rows} == {"train": 16, "dev": 2, "test": 2}
    assert summary.converted == 1
    again = librispeech.prepare_librispeech(out, tmp_path / "again")
    assert sum(row.utterances for row in again.rows) == 20
    for split in ("train", "dev", "test"):
        assert table(out / f"{split}.csv") == table(tmp_path / "again" / f"{split}.csv")
    texts = "".join(path.read_text() for path in out.rglob("*.trans.txt"))
    assert "p-3 PROMPT NO DK PLEASE\n" in texts
    check_s3prls_dataset(out, out, "test", 2)


def test_manifest_split_is_the_same_every_time_and_keeps_texts_together():
    lines = [manifest.Line(f"{i}.wav", Path(f"{i}.wav"), f"TEXT {i // 3}") for i in range(300)]
    parts = manifest.split_by_text(lines, 0.1, 0.1, seed=0)
    shuffled = random.Random(1).sample(lines, len(lines))
    for split, rows in manifest.split_by_text(shuffled, 0.1, 0.1, seed=0).items():
        assert {row.shown for row in rows} == {row.shown for row in parts[split]}
    texts = [{row.text for row in rows} for rows in parts.values()]
    assert sum(len(part) for part in texts) == len(set.union(*texts)) == 100
    assert [len(parts[s]) for s in ("train", "dev", "test")] == [240, 30, 30]
    other = manifest.split_by_text(lines, 0.1, 0.1, seed=1)
    assert {row.shown for row in other["test"]} != {row.shown for row in parts["test"]}


def test_manifest_refuses_digits_until_told_what_to_do(small_manifest, tmp_path):
    edit(small_manifest, 0, "p 0.wav\tPress 1 or 11 & wait")
    edit(small_manifest, 1, "p 1.wav\t42")
    with pytest.raises(UserError) as raised:
        manifest.prepare_manifest(small_manifest, tmp_path / "out")
    for part in (
        "'1' (digit one): 3 times in 1 utterances: p 0.wav",
        "'&' (ampersand)",
        "'4'",
        "--unknown drop_symbol",
    ):
        assert part in str(raised.value)
    assert not (tmp_path / "out").exists()
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", unknown="drop_symbol")
    texts = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.trans.txt"))
    assert "p-0 PRESS OR WAIT\n" in texts and sum(row.utterances for row in summary.rows) == 19
    assert (
        len(summary.skipped) == 1
        and "p 1.wav" in summary.skipped[0]
        and "digit one" in str(summary)
    )
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", unknown="drop_utterance")
    assert sum(row.utterances for row in summary.rows) == 18 and len(summary.skipped) == 2
    assert not any("p-0 " in path.read_text() for path in (tmp_path / "out").rglob("*.trans.txt"))


def test_manifest_lists_all_bad_lines(small_manifest, tmp_path):
    edit(small_manifest, 0, "p 0.wav Press the key")
    edit(small_manifest, 1, "nowhere.wav\tGone")
    edit(small_manifest, 2, "p 2.wav\t...")
    edit(small_manifest, 4, "p 3.wav\tTwice")
    (small_manifest.parent / "p 5.wav").write_bytes(b"noise")
    with pytest.raises(UserError) as raised:
        manifest.prepare_manifest(small_manifest, tmp_path / "out")
    for part in (
        "5 problems",
        "line 1: expected path TAB text",
        "nowhere.wav: no such file",
        "line 3: p 2.wav has no words",
        "line 5: p 3.wav is listed twice",
        "p 5.wav: not readable",
    ):
        assert part in str(raised.value)
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", skip_bad=True)
    assert sum(row.utterances for row in summary.rows) == 15 and len(summary.skipped) == 5


def test_manifest_of_another_language_gets_its_dictionary(small_manifest, tmp_path):
    edit(small_manifest, 0, "p 0.wav\tHören Sie, bitte")
    with pytest.raises(UserError, match="'Ö'.*\n.*--build_dict"):
        manifest.prepare_manifest(small_manifest, tmp_path / "out")
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", build_dict=True)
    assert "Ö" in dictionary.load_alphabet(tmp_path / "out" / "char.dict") and "dict_path=" in str(
        summary
    )
    edit(small_manifest, 0, "p 0.wav\tHoeren Sie, bitte")
    manifest.prepare_manifest(small_manifest, tmp_path / "out")
    assert not (tmp_path / "out" / "char.dict").exists()  # a stale one would not fit


def test_manifest_keeps_its_hands_off_a_foreign_folder(small_manifest, small_libri):
    (small_libri / "train-x").rename(small_libri / "train")
    with pytest.raises(UserError, match="of another origin"):
        manifest.prepare_manifest(small_manifest, small_libri)
    assert (small_libri / "train" / "1").is_dir()


def test_manifest_options_and_missing_file(small_manifest, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        manifest.prepare_manifest(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="Did you mean 'drop_symbol'"):
        manifest.prepare_manifest(small_manifest, unknown="drop_symbols")
    with pytest.raises(UserError, match="less than 1"):
        manifest.prepare_manifest(small_manifest, dev_ratio=0.5, test_ratio=0.5)
    with pytest.raises(UserError, match="test would be empty"):
        manifest.prepare_manifest(small_manifest, test_ratio=0.01)
    summary = manifest.prepare_manifest(small_manifest, tmp_path / "out", dev_ratio=0)
    assert [row.split for row in summary.rows] == ["train", "test"]


def test_real_prompts(shared_dir, tmp_path):
    path = shared_dir / "data" / "asterisk_en" / "transcripts.tsv"
    summary = manifest.prepare_manifest(path, tmp_path, unknown="drop_symbol")
    assert {row.split: row.utterances for row in summary.rows} == {
        "train": 443,
        "dev": 55,
        "test": 55,
    }
    assert summary.converted == 0 and not summary.skipped


def test_a_manifest_is_prepared_again_in_place_or_not_at_all(small_manifest, tmp_path, monkeypatch):
    out = tmp_path / "out"
    manifest.prepare_manifest(small_manifest, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(manifest, "_write_transcripts", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        manifest.prepare_manifest(small_manifest, out, seed=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    summary = manifest.prepare_manifest(small_manifest, out, seed=1, dev_ratio=0)
    assert [row.split for row in summary.rows] == ["train", "test"]
    assert not (out / "dev").exists() and not (out / "dev.csv").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        "names.tsv",
        "prepared.json",
        "test",
        "test.csv",
        "train",
        "train.csv",
    ]


def named(path, *rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def test_named_columns_give_speakers_and_official_splits(small_manifest, tmp_path):
    splits = ["train"] * 12 + ["dev"] * 3 + ["test"] * 5
    rows = [
        f"{split}\tSay it\tp {number}.wav\tspeaker {number % 3}"
        for number, split in enumerate(splits)
    ]
    path = named(small_manifest.parent / "named.tsv", "split\tsentence\tpath\tspeaker", *rows)
    summary = manifest.prepare_manifest(path, tmp_path / "out")
    assert {row.split: row.utterances for row in summary.rows} == {"train": 12, "dev": 3, "test": 5}
    placed = {file.stem: file.parts[-4:-2] for file in (tmp_path / "out").rglob("*.wav")}
    assert placed["p-0"] == ("train", "speaker-0") and placed["p-16"] == ("test", "speaker-1")
    texts = "".join(file.read_text() for file in (tmp_path / "out").rglob("*.trans.txt"))
    assert texts.count("SAY IT\n") == 20  # the same text in all splits, as the manifest has it
    assert summary.data == tmp_path / "out"
    rows = [row.replace("dev\tSay", "train\tSay") for row in rows]
    rows = [row.replace("Say", f"Say {chr(97 + at)}") for at, row in enumerate(rows)]
    path = named(path, "split\tsentence\tpath\tspeaker", *rows)
    summary = manifest.prepare_manifest(path, tmp_path / "out", dev_ratio=0.2)
    assert {row.split: row.utterances for row in summary.rows} == {"train": 12, "dev": 3, "test": 5}


def test_two_named_columns_in_any_order(small_manifest, tmp_path):
    rows = [f"Say {chr(97 + number)}\tp {number}.wav" for number in range(20)]
    path = named(small_manifest.parent / "named.tsv", "text\tpath", *rows)
    summary = manifest.prepare_manifest(path, tmp_path / "out")
    assert sum(row.utterances for row in summary.rows) == 20
    path = named(path, "file\ttranscript", *("\t".join(row.split("\t")[::-1]) for row in rows))
    summary = manifest.prepare_manifest(path, tmp_path / "out")
    assert sum(row.utterances for row in summary.rows) == 20


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("p 0.wav\tPress\tanna", "unknown column 'anna'"),
        ("path\ttext\tspeeker", "Did you mean 'speaker'?"),
        ("path\ttext\ttranscript", "two columns are named text"),
        ("path\tspeaker\tsplit", "no column text"),
        ("path\tlabel", "unknown column 'label'"),
    ],
)
def test_columns_without_a_known_name_are_refused(header, expected, small_manifest, tmp_path):
    rows = small_manifest.read_text().splitlines()
    with pytest.raises(UserError) as raised:
        manifest.prepare_manifest(named(small_manifest, header, *rows), tmp_path / "out")
    assert expected in str(raised.value) and not (tmp_path / "out").exists()


def test_no_third_column_becomes_part_of_a_transcript(small_manifest, tmp_path):
    edit(small_manifest, 3, "p 3.wav\tPress\tanna")
    with pytest.raises(UserError, match="line 4: expected path TAB text, found"):
        manifest.prepare_manifest(small_manifest, tmp_path / "out")


def test_rows_of_named_columns_are_checked(small_manifest, tmp_path):
    path = named(
        small_manifest.parent / "named.tsv",
        "path\ttext\tspeaker\tsplit",
        "p 0.wav\tone\ta\ttrain",
        "p 1.wav\ttwo\t\ttrain",
        "p 2.wav\tthree\ta\ttests",
        "p 3.wav\tfour\ta",
    )
    with pytest.raises(UserError) as raised:
        manifest.prepare_manifest(path, tmp_path / "out")
    for part in (
        "line 3: p 1.wav has no speaker",
        "line 4: split 'tests': expected train, dev or test. Did you mean 'test'?",
        "line 5: expected path TAB text TAB speaker TAB split",
    ):
        assert part in str(raised.value)
    short = named(path, "text\tsplit\tpath", "one", "one\ttrain\tp 0.wav")
    with pytest.raises(UserError, match="line 2: expected text TAB split TAB path, found 'one'"):
        manifest.prepare_manifest(short, tmp_path / "out")
    path = named(path, "path\ttext\tsplit", "p 0.wav\tone\ttest")
    with pytest.raises(UserError, match="no usable line of train, only test"):
        manifest.prepare_manifest(path, tmp_path / "out")
