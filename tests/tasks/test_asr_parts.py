"""Speech recognition's parts: what is wrong with a corpus, figures, the worst, beam search."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from s3prl_varan.corpora.dictionary import CHAR_DICT
from s3prl_varan.errors import UserError
from s3prl_varan.options import read_options
from s3prl_varan.tasks.asr import ASR
from s3prl_varan.tasks.asr.beam import DecoderOptions, arpa_words
from s3prl_varan.tasks.asr.units import read_units, spell
from s3prl_varan.tasks.asr.worst import align, worst_utterances
from tests.tasks.corpora import ARPA, SIZES

UNITS = read_units(CHAR_DICT)


def task_of(root: Path, **overrides: object) -> ASR:
    """The task on a corpus in LibriSpeech's layout, as a config would make it."""
    places = {"libri_root": str(root), "bucket_file": str(root / "meta_data")}
    splits = {split: [split] for split in SIZES}
    problems: list[str] = []
    data = read_options(ASR.Data, {**places, **splits, **overrides}, "datarc", problems)
    assert data is not None, problems
    return ASR(data, ASR.Model())


# ---- corpus


def test_corpus_problems_come_all_at_once(letters_corpus, tmp_path):
    root = tmp_path / "corpus"
    shutil.copytree(letters_corpus, root)
    chapter = root / "dev" / "1" / "7"
    text = chapter / "1-7.trans.txt"
    rows = text.read_text().splitlines()
    text.write_text("\n".join([rows[0] + " 42", *rows[1:-1]]))
    (chapter / "1-7-0003.flac").unlink()
    task = task_of(root, test=["tset"])
    shown = "\n".join(task.problems(["dev", "test"]))
    assert "datarc.test: " in shown and "tset.csv: no such table. Did you mean 'test'?" in shown
    assert "1-7-0008.flac: no transcript" in shown and "1-7-0003.flac: no such file" in shown
    assert "'4' (digit four): 1 times in 1 utterances: 1-7-0000" in shown
    assert "--build_dict" in shown and "prepare_data.py librispeech" in task.remedy
    # What a run does not read cannot stop it.
    assert task_of(root, test=["tset"]).problems(["train"]) == []
    (problem, _) = task_of(tmp_path / "none").problems(["dev"])
    assert "datarc.libri_root: no folder" in problem


def test_every_utterance_is_kept_the_longest_first(letters_corpus):
    task = task_of(letters_corpus)
    for split, size in SIZES.items():
        items = task.items(split)
        lengths = [task.num_samples(item, False) for item in items]
        assert len({item.name for item in items}) == size
        assert lengths == sorted(lengths, reverse=True)
    assert task.splits() == list(SIZES)
    assert task_of(letters_corpus, test=[]).splits() == ["train", "dev"]


def test_units_are_s3prls():
    from s3prl.downstream.asr.dictionary import Dictionary

    theirs = Dictionary.load(str(CHAR_DICT))
    assert theirs.symbols == UNITS
    encoded = theirs.encode_line("A B | C D |", line_tokenizer=str.split)
    assert spell("AB CD", UNITS) == encoded.tolist()


def test_unknown_characters_never_become_unk():
    with pytest.raises(UserError, match="outside the dictionary: 4"):
        spell("AB 4", UNITS)
    end = UNITS.index("</s>")
    assert spell("A B", UNITS) == [*(UNITS.index(unit) for unit in "A|B|"), end]
    assert spell("", UNITS) == [UNITS.index("|"), end]


# ---- figures


def records_of(truth: list[list[str]], predict: list[list[str]]) -> list[dict]:
    names = ("right", "one", "two", "three")
    return [
        {"name": name, "truth": one, "predict": other, "units": [1], "greedy_units": [1]}
        for name, one, other in zip(names, truth, predict, strict=False)
    ]


def test_error_rates_are_over_the_whole_set(letters_corpus):
    score = task_of(letters_corpus).score
    rates = score(records_of([["A", "B", "C"], ["D"], []], [["A", "X", "C"], ["D", "E"], []]))
    # One substitution, one insertion over four words.
    assert rates["wer"] == pytest.approx(100 * 2 / 4)
    # X for B; space and E; over "A B C" and "D".
    assert rates["cer"] == pytest.approx(100 * 3 / 6)
    assert rates["uer"] == 0
    # An empty reference never divides by zero.
    assert score(records_of([[]], [["A"]]))["wer"] == 100


def test_alignment_and_worst():
    assert align("THE CAT SAT".split(), "THE HAT".split()) == [
        ("THE", "THE"),
        ("CAT", "***"),
        ("SAT", "HAT"),
    ]
    assert align([], ["A"]) == [("*", "A")] and align([], []) == []
    records = records_of([["A"], ["THE", "CAT"], ["B", "C"]], [["A"], ["CAT"], ["D", "E"]])
    shown = worst_utterances(records)
    first, second = shown.index("two: 2 errors"), shown.index("one: 1 errors in 2 words (50 %)")
    assert first < second and "right" not in shown
    assert "  ref  THE CAT\n  hyp  *** CAT\n" in shown
    assert worst_utterances(records, count=1).count("ref") == 1
    assert worst_utterances(records[:1]) == ""


# ---- decoding


@pytest.fixture
def flashlight():
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")


def peaked(units: list[list[tuple[str, float]]]) -> torch.Tensor:
    """Log-probabilities [T, V]: per frame the named units with their probabilities."""
    probs = torch.full((len(units), len(UNITS)), 1e-5)
    for frame, choices in enumerate(units):
        for unit, prob in choices:
            probs[frame, UNITS.index(unit)] = prob
    return probs.log()


def decoded(frames: list[list[tuple[str, float]]], **options: object) -> list[str]:
    decoder = DecoderOptions(**options).build(UNITS)
    assert decoder is not None
    return decoder.words(peaked(frames))


@pytest.mark.usefixtures("flashlight")
def test_beam_search_and_language_model(tmp_path):
    frames = [[("A", 0.99)], [("C", 0.55), ("B", 0.44)], [("|", 0.99)], [("</s>", 0.99)]]
    assert decoded(frames, decoder_type="beam") == ["AC"]
    model = tmp_path / "lm.arpa"
    model.write_text(ARPA)
    assert arpa_words(model) == ["AB", "AC"]
    kenlm = {"decoder_type": "kenlm", "kenlm_model": str(model)}
    assert decoded(frames, **kenlm, lm_weight=2) == ["AB"]
    model.write_text(ARPA.replace("\t", " "))
    with pytest.raises(UserError, match=r"lm.arpa cannot be used as a language model"):
        DecoderOptions(**kenlm).build(UNITS)
    model.write_text(ARPA)
    assert decoded(frames, **kenlm, lm_weight=0) == ["AC"]


@pytest.mark.usefixtures("flashlight")
def test_beam_search_sums_over_paths():
    """The best path is blank twice (0.36), but A has 0.64 over its three paths."""
    assert decoded([[("A", 0.4), ("<s>", 0.6)]] * 2, decoder_type="beam") == ["A"]


def test_decoder_settings_are_checked(tmp_path, monkeypatch):
    for greedy in (None, "None", "greedy"):
        options = DecoderOptions(decoder_type=greedy)
        assert options.problems() == [] and options.build(UNITS) is None
    for section, expected in (
        ({"decoder_type": "kenml"}, "Did you mean 'kenlm'?"),
        ({"lm_wieght": 2}, "Did you mean 'lm_weight'?"),
        ({"beam": 0}, "decoder_args.beam: expected int >= 1, found 0"),
    ):
        problems: list[str] = []
        assert read_options(DecoderOptions, section, "decoder_args", problems) is None
        assert expected in problems[0]
    found = DecoderOptions(decoder_type="kenlm").problems()
    assert any("needs an n-gram model" in line for line in found)
    missing = str(tmp_path / "no.arpa")
    found = DecoderOptions(decoder_type="kenlm", kenlm_model=missing).problems()
    assert any("kenlm_model: no file" in line for line in found)
    binary = tmp_path / "lm.bin"
    binary.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n")
    found = DecoderOptions(decoder_type="kenlm", kenlm_model=str(binary)).problems()
    assert any("a binary language model needs one" in line for line in found)
    monkeypatch.setitem(sys.modules, "flashlight", None)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    found = DecoderOptions(decoder_type="beam").problems()
    assert any("pip install flashlight-text" in line for line in found)
    with pytest.raises(UserError, match="pip install flashlight-text"):
        DecoderOptions(decoder_type="beam").build(UNITS)
