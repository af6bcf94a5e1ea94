"""Featurizers, a method each: featurizers/NAME.py (or a folder) is all that is known of `-f NAME`.

base.py has the contract. Importing this package loads none of them.
"""

import pkgutil
from typing import Any

from s3prl_varan.names import find_class


def featurizer_names() -> list[str]:
    """The built-in featurizers: the files and folders beside this one, but for base.py."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name != "base")


def find_featurizer(name: str) -> Any:
    """The Featurizer class of `-f name`, see find_class."""
    from s3prl_varan.featurizers.base import Featurizer

    return find_class(name, "-f", __name__, featurizer_names(), Featurizer)
