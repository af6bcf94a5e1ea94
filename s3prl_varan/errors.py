"""Errors that are the user's to mend: what was expected, what was found, what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input (flag, config key, file, corpus), shown without a traceback."""


def did_you_mean(word: object, choices: Iterable[object]) -> str:
    """Return " Did you mean 'x'?" for the choice closest to `word`, or "" when none is close."""
    close = difflib.get_close_matches(
        str(word), [str(choice) for choice in choices], n=1, cutoff=0.6
    )
    return f" Did you mean '{close[0]}'?" if close else ""


def problems_error(headline: str, problems: list[str], remedy: str = "") -> UserError:
    """One error that lists every problem found, so that a user mends all of them in one go."""
    lines = [headline, *(f"  - {problem}" for problem in problems)]
    return UserError("\n".join([*lines, remedy] if remedy else lines))
