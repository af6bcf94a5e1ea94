"""The units of a transcript: characters, as s3prl's speech recognition has them.

A dictionary file has a "symbol count" line per unit, '|' being the space between words. Four come
before them: <s> (the CTC blank), <pad>, </s> (ends every label sequence) and <unk>.
"""

from collections.abc import Sequence
from pathlib import Path

from s3prl_varan.corpora.dictionary import CHAR_DICT, WORD_BOUNDARY, load_symbols
from s3prl_varan.errors import UserError

__all__ = ["CHAR_DICT", "SPECIAL", "read_units", "spell", "words_of"]

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def read_units(path: Path) -> list[str]:
    """All units in the order of their ids. UserError where the file is no dictionary."""
    return [*SPECIAL, *load_symbols(path)]


def spell(text: str, units: Sequence[str]) -> list[int]:
    """Unit ids of an upper-case text: its characters, '|' after every word, then </s>.

    UserError for a character that the dictionary lacks.
    """
    ids = {unit: index for index, unit in enumerate(units)}
    symbols = [*text.replace(" ", WORD_BOUNDARY), WORD_BOUNDARY, "</s>"]
    unknown = sorted({symbol for symbol in symbols if symbol not in ids})
    if unknown:
        raise UserError(f"'{text}' has characters outside the dictionary: {' '.join(unknown)}.")
    return [ids[symbol] for symbol in symbols]


def words_of(ids: Sequence[int], units: Sequence[str]) -> list[str]:
    """Words that unit ids spell; the blank and the end mark are silent."""
    silent = ("<s>", "</s>")
    symbols = [units[index] for index in ids]
    text = "".join(symbol for symbol in symbols if symbol not in silent)
    return text.replace(WORD_BOUNDARY, " ").split()
