"""Featurizers, a method each: featurizers/NAME.py (or a folder) is all that is known of `-f NAME`.

base.py has the contract. Importing this package loads none of them.
"""

import importlib
import pkgutil
from typing import Any

from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.names import is_reference, load_reference


def featurizer_names() -> list[str]:
    """The built-in featurizers: the files and folders beside this one, but for base.py."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name != "base")


def find_featurizer(name: str) -> Any:
    """The Featurizer class of `-f name`: a built-in one, FILE.py:NAME or MODULE:NAME.

    Raises UserError where there is none of that name, or it is no Featurizer.
    """
    from s3prl_varan.featurizers.base import Featurizer

    if is_reference(name):
        found = load_reference(name, "-f", "a subclass of s3prl_varan.Featurizer")
    elif name in featurizer_names():
        module = importlib.import_module(f"{__name__}.{name}")
        named = [each for each in vars(module).values() if getattr(each, "name", None) == name]
        found = named[0]
    else:
        known = ", ".join(featurizer_names())
        hint = did_you_mean(name, featurizer_names())
        raise UserError(f"Unknown featurizer '{name}': expected one of {known}.{hint}")
    if not (isinstance(found, type) and issubclass(found, Featurizer) and hasattr(found, "name")):
        raise UserError(f"-f {name}: expected a subclass of s3prl_varan.Featurizer with a `name`.")
    return found
