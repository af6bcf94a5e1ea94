"""Transcripts as characters: normalising text, and dictionaries in the form that s3prl loads.

A dictionary file has one "symbol count" line per output unit, '|' being the space between words.
s3prl puts <s> (the CTC blank), <pad>, </s> and <unk> in front, so the first line of the file is
unit 4. Unknown characters must be found before training: s3prl would give them ids beyond the size
of the output layer.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from s3prl_varan.errors import UserError

CHAR_DICT = Path(__file__).with_name("char.dict")  # A to Z, ' and '|': English, as SUPERB has it
WORD_BOUNDARY = "|"
# Punctuation that nobody reads aloud; a word ends there.
_SILENT = set('.,;:!?"()[]{}-‐‑‒–—―…“”„«»‹›¿¡')
_APOSTROPHES = str.maketrans("’‘ʼ`´", "'''''")


def normalise_text(text: str) -> str:
    """Upper case, one apostrophe, punctuation to spaces, single spaces.

    Digits and symbols such as & stay, to be reported.
    """
    folded = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).upper()
    spaced = "".join(" " if char in _SILENT or char.isspace() else char for char in folded)
    words = (word for word in spaced.split() if word.strip("'"))
    return " ".join(words)


def unknown_symbols(text: str, alphabet: set[str] | None) -> Counter[str]:
    """Characters of a normalised text that are not in `alphabet`.

    None: anything but letters, their marks and '.
    """
    return Counter(char for char in text if char != " " and not _known(char, alphabet))


def drop_symbols(text: str, alphabet: set[str] | None) -> str:
    """The text without its unknown symbols."""
    kept = (char if _known(char, alphabet) else " " for char in text)
    return normalise_text("".join(kept))


def build_dictionary(transcripts: Iterable[str]) -> dict[str, int]:
    """Count the units of upper-case transcripts: '|' (words) first, then by falling count."""
    counts: Counter[str] = Counter()
    for text in transcripts:
        words = text.upper().split()
        counts.update("".join(words))
        counts[WORD_BOUNDARY] += len(words)
    boundary = {WORD_BOUNDARY: counts.pop(WORD_BOUNDARY, 0)}
    return boundary | dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def dictionary_text(counts: Mapping[str, int]) -> str:
    """The content of a dictionary file, in the format s3prl loads (fairseq's)."""
    return "".join(f"{symbol} {count}\n" for symbol, count in counts.items())


def load_symbols(path: str | Path = CHAR_DICT) -> list[str]:
    """The units of a dictionary file in its order. UserError when it is not such a file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a dictionary (dict_path): {error}") from error
    symbols = []
    for number, line in enumerate(lines, start=1):
        symbol, _, count = line.rstrip().rpartition(" ")
        if len(symbol) != 1 or not count.isdigit():
            raise UserError(
                f"{path}, line {number}: expected 'symbol count' with a single character, "
                f"found '{line}'"
            )
        symbols.append(symbol)
    return symbols


def load_alphabet(path: str | Path = CHAR_DICT) -> set[str]:
    """The characters of a dictionary file, without '|'; see load_symbols."""
    return set(load_symbols(path)) - {WORD_BOUNDARY}


def describe_unknown(where: Mapping[str, Mapping[str, int]], shown: int = 10) -> list[str]:
    """One line per unknown symbol, from {symbol: {utterance: times}}."""
    lines = []
    for symbol, found in sorted(where.items(), key=lambda item: -sum(item[1].values())):
        names = ", ".join(list(found)[:shown])
        if len(found) > shown:
            names += f" and {len(found) - shown} more"
        name, times = unicodedata.name(symbol, "unnamed").lower(), sum(found.values())
        lines.append(f"'{symbol}' ({name}): {times} times in {len(found)} utterances: {names}")
    return lines


def _known(char: str, alphabet: set[str] | None) -> bool:
    if alphabet is not None:
        return char in alphabet
    return char == "'" or unicodedata.category(char)[0] in "LM"
