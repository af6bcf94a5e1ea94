"""From a name after -u to what makes the expert: ours, one of s3prl.hub's, or the user's own."""

import ast
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.names import is_reference, load_reference

OUR_EXPERTS = {
    "whisper": "s3prl_varan.upstream.whisper",
    "micro_wavlm": "s3prl_varan.upstream.micro_wavlm",
}
# s3prl.hub's own convention for names that take a checkpoint, see its options().
TAKES_CKPT = ("_local", "_url", "_custom", "_gdriveid")
READS_WHOLE_HUB = ("mos_prediction", "roberta")  # families that use s3prl.hub without importing it


@dataclass(frozen=True)
class Factory:
    """What makes an expert.

    call(ckpt=..., model_config=..., refresh=...), with such of these as its signature takes.
    """

    name: str
    call: Callable[..., Any]
    origin: str  # "own" | "s3prl" | "user"


def known_names() -> list[str]:
    """Every name that -u takes, ours first."""
    return [*OUR_EXPERTS, *sorted(hub_modules())]


@lru_cache(maxsize=1)
def hub_modules() -> dict[str, str]:
    """Upstream name -> module that defines it, for all of s3prl.hub.

    Read from the sources, since importing s3prl.hub takes seconds: it is a list of
    `from FAMILY.hubconf import *`.
    """
    spec = importlib.util.find_spec("s3prl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The package s3prl is missing: pip install espnet-s3prl")
    root = Path(next(iter(spec.submodule_search_locations)))
    modules: dict[str, str] = {}
    for node in _imports_of_hubconfs(root / "hub.py"):
        assert node.module is not None
        source = root.parent.joinpath(*node.module.split(".")).with_suffix(".py")
        star = node.names[0].name == "*"
        names = _public_functions(source) if star else [each.name for each in node.names]
        modules |= dict.fromkeys(names, node.module)
    return modules


def _imports_of_hubconfs(source: Path) -> list[ast.ImportFrom]:
    found = [each for each in _body(source) if isinstance(each, ast.ImportFrom)]
    return [each for each in found if (each.module or "").endswith("hubconf")]


def _public_functions(hubconf: Path) -> list[str]:
    names = [each.name for each in _body(hubconf) if isinstance(each, ast.FunctionDef)]
    for node in _imports_of_hubconfs(hubconf):  # another family's functions, taken over
        names += [each.asname or each.name for each in node.names]
    return [name for name in names if not name.startswith("_")]


def _body(source: Path) -> list[ast.stmt]:
    return ast.parse(source.read_text(encoding="utf-8")).body


def family_of(name: str) -> list[str]:
    """Names of the same family that take a checkpoint: wavlm_base -> ['wavlm_local', ...]."""
    module = hub_modules().get(name)
    if module == "s3prl.upstream.baseline.hubconf":  # spectral features, no weights
        return []
    family = [each for each, where in hub_modules().items() if where == module]
    return [each for each in family if each.endswith(TAKES_CKPT)]


def find_factory(name: str) -> Factory:
    """The factory behind `-u name`. UserError where there is none or a package is missing."""
    if name in OUR_EXPERTS:
        return Factory(name, getattr(importlib.import_module(OUR_EXPERTS[name]), name), "own")
    if is_reference(name):
        call = load_reference(name, "-u", "a class or function that makes an expert")
        return Factory(name, call, "user")
    module = hub_modules().get(name)
    if module is None:
        is_path = name.endswith(".py") or os.sep in name
        hint = " For an expert of your own write path/to/expert.py:callable." if is_path else ""
        raise UserError(
            f"-u: there is no upstream '{name}'.{did_you_mean(name, known_names())}{hint} Known "
            f"are {', '.join(OUR_EXPERTS)} and {len(hub_modules())} names of s3prl.hub."
        )
    try:
        if module.split(".")[2] in READS_WHOLE_HUB:
            importlib.import_module("s3prl.hub")
        return Factory(name, getattr(importlib.import_module(module), name), "s3prl")
    except ImportError as error:
        raise missing_package(name, error) from error


def missing_package(name: str, error: ImportError) -> UserError:
    """The UserError for what s3prl's upstream `name` could not import."""
    return UserError(
        f"Upstream '{name}' needs a package that is missing: {error}. Install it (pip) and try "
        "again."
    )
