"""Figures of slot filling, equal to s3prl's: of texts in which B-SLOT and E-SLOT are around values.

Slot type F1: which slots there are. Slot value CER and WER: the words in them. Edit F1: a slot with
exactly its words; `full` counts slots that are in the hypothesis only, `part` does not.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from s3prl_varan.tasks.shapes.metrics import error_rate

Slots = dict[str, list[str]]  # a slot's values, in the order of the text
SLOT = re.compile(r"B-(\S+) (.+?) E-\1")


def slots_of(text: str, *, nested: bool) -> Slots:
    """The slots of a text; `nested`: other slots' marks may be in a value, and are taken out."""
    found: Slots = defaultdict(list)
    for slot, value in SLOT.findall(re.sub(" +", " ", text)):
        found[slot].append(re.sub(r" E-\S+", "", re.sub(r"B-\S+ ", "", value)) if nested else value)
    return dict(found)


def slot_figures(truth: Sequence[str], guesses: Sequence[str]) -> dict[str, float]:
    """All of them over pairs of texts, in percent."""
    pairs = [
        (slots_of(text, nested=False), slots_of(guess, nested=True))
        for text, guess in zip(truth, guesses, strict=True)
    ]
    spelt, worded = (_best_values(pairs, as_words) for as_words in (False, True))
    return {
        "slot_type_f1": 100.0 * sum(_type_f1(*pair) for pair in pairs) / max(1, len(pairs)),
        "slot_value_cer": error_rate(*spelt),
        "slot_value_wer": error_rate(*worded),
        "slot_edit_f1_full": _edit_f1(pairs, full=True),
        "slot_edit_f1_part": _edit_f1(pairs, full=False),
    }


def _type_f1(truth: Slots, guess: Slots) -> float:
    if not truth and not guess:
        return 1.0
    return 2.0 * len(truth.keys() & guess.keys()) / (len(truth) + len(guess))


def _best_values(
    pairs: Sequence[tuple[Slots, Slots]], as_words: bool
) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """True values and for each the closest guess of its slot, "" where the slot is not guessed."""

    def units(value: str) -> Sequence[str]:
        return value.split(" ") if as_words else value

    found: tuple[list[Sequence[str]], list[Sequence[str]]] = ([], [])
    for truth, guess in pairs:
        for slot, values in truth.items():
            for value in map(units, values):
                candidates = map(units, guess.get(slot, [""]))
                best = min(candidates, key=lambda each: error_rate([value], [each]))  # noqa: B023
                found[0].append(value)
                found[1].append(best)
    return found


def _edit_f1(pairs: Sequence[tuple[Slots, Slots]], *, full: bool) -> float:
    right = missed = wrong = 0
    for truth, guess in pairs:
        for slot, values in truth.items():
            hits = sum(value in guess.get(slot, ()) for value in values)
            right += hits
            missed += len(values) - hits
            wrong += len(values) - hits if slot in guess else 0
        if full:
            wrong += sum(len(values) for slot, values in guess.items() if slot not in truth)
    return 100.0 * 2 * right / max(1, 2 * right + wrong + missed)
