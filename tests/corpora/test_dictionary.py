"""Texts as characters, and dictionaries that s3prl can load."""

import pytest

from s3prl_varan.corpora import dictionary
from s3prl_varan.errors import UserError


def test_text_is_normalised():
    assert (
        dictionary.normalise_text("Don’t  stop -- it's 'e-mail', (really)…\t")
        == "DON'T STOP IT'S 'E MAIL' REALLY"
    )
    assert dictionary.normalise_text("- ' -") == ""
    assert dictionary.unknown_symbols("PRESS 1 & 11", dictionary.load_alphabet()) == {
        "1": 3,
        "&": 1,
    }
    assert dictionary.drop_symbols("PRESS 1 & GO", dictionary.load_alphabet()) == "PRESS GO"
    assert not dictionary.unknown_symbols("GRÜßE ÇA", None) and dictionary.unknown_symbols(
        "Ü2", None
    ) == {"2": 1}


@pytest.fixture
def s3prl_dictionary():
    from s3prl.downstream.asr.dictionary import Dictionary

    return Dictionary


def test_shipped_dictionary_loads_in_s3prl(s3prl_dictionary):
    loaded = s3prl_dictionary.load(str(dictionary.CHAR_DICT))
    assert (loaded.bos(), loaded.pad(), loaded.eos(), loaded.unk(), len(loaded)) == (0, 1, 2, 3, 32)
    assert (
        set(loaded.symbols[4:])
        == {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ'|"}
        == dictionary.load_alphabet() | {"|"}
    )
    encoded = loaded.encode_line("H I | Y O U |", line_tokenizer=str.split)
    assert encoded[-1] == loaded.eos() and len(loaded) == 32  # nothing was added on the way
    assert loaded.string(encoded.tolist()) == "H I | Y O U |"


def test_own_dictionary_loads_in_s3prl(s3prl_dictionary, tmp_path):
    counts = dictionary.build_dictionary(["GRÜẞE AN ALLE", "ÄH"])
    path = tmp_path / "char.dict"
    path.write_text(dictionary.dictionary_text(counts), encoding="utf-8")
    loaded = s3prl_dictionary.load(str(path))
    assert loaded.symbols[4:] == list(counts) and loaded.symbols[4] == "|" and counts["|"] == 4
    assert dictionary.load_alphabet(path) == set("GRÜẞEANLÄH")
    (tmp_path / "bad").write_text("A 1\nBC 2\n")
    with pytest.raises(UserError, match="bad, line 2"):
        dictionary.load_alphabet(tmp_path / "bad")
