"""From the name after -u to the function that makes the expert: our own, s3prl.hub's, or the user's file or module."""

import ast
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError, did_you_mean

OWN = {"whisper": "s3prl_varan.upstream.whisper", "micro_wavlm": "s3prl_varan.upstream.micro_wavlm"}
TAKES_CKPT = (
    "_local",
    "_url",
    "_custom",
    "_gdriveid",
)  # s3prl.hub's own convention, see its options()
READS_WHOLE_HUB = ("mos_prediction", "roberta")  # families that use s3prl.hub without importing it


@dataclass(frozen=True)
class Factory:
    """call(ckpt=..., model_config=..., refresh=...) makes the expert, with such of these as its signature takes."""

    name: str
    call: Callable[..., Any]
    origin: str  # "own" | "s3prl" | "user"


def known_names() -> list[str]:
    """Every name that -u takes, ours first."""
    return [*OWN, *sorted(hub_modules())]


@lru_cache(maxsize=1)
def hub_modules() -> dict[str, str]:
    """Upstream name -> module that defines it, for all of s3prl.hub.

    Read from the sources, since importing s3prl.hub takes seconds: it is a list of `from FAMILY.hubconf import *`.
    """
    spec = importlib.util.find_spec("s3prl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The package s3prl is missing: pip install espnet-s3prl")
    root = Path(next(iter(spec.submodule_search_locations)))
    modules: dict[str, str] = {}
    for node in ast.parse((root / "hub.py").read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.ImportFrom)
            and node.module is not None
            and node.module.endswith(".hubconf")
        ):
            source = root.parent.joinpath(*node.module.split(".")).with_suffix(".py")
            names = (
                _public_functions(source)
                if node.names[0].name == "*"
                else [each.name for each in node.names]
            )
            modules |= dict.fromkeys(names, node.module)
    return modules


def _public_functions(hubconf: Path) -> list[str]:
    names = []
    for node in ast.parse(hubconf.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").endswith("hubconf"):
            names += [each.asname or each.name for each in node.names]
    return [name for name in names if not name.startswith("_")]


def family_of(name: str) -> list[str]:
    """Names of the same s3prl family that take a checkpoint of one's own, e.g. wavlm_base -> ['wavlm_local', ...]."""
    module = hub_modules().get(name)
    if module == "s3prl.upstream.baseline.hubconf":  # spectral features, no weights
        return []
    return [
        each
        for each, where in hub_modules().items()
        if where == module and each.endswith(TAKES_CKPT)
    ]


def resolve(name: str) -> Factory:
    """The factory behind `-u name`; UserError where there is none."""
    if name in OWN:
        return Factory(name, getattr(importlib.import_module(OWN[name]), name), "own")
    if ":" in name:
        return Factory(name, _users_callable(name), "user")
    if name not in hub_modules():
        hint = (
            " For an expert of your own write path/to/expert.py:callable."
            if name.endswith(".py") or os.sep in name
            else ""
        )
        raise UserError(
            f"-u: there is no upstream '{name}'.{did_you_mean(name, known_names())}{hint} Known are {', '.join(OWN)} and "
            f"{len(hub_modules())} names of s3prl.hub."
        )
    module = hub_modules()[name]
    try:
        if module.split(".")[2] in READS_WHOLE_HUB:
            importlib.import_module("s3prl.hub")
        return Factory(name, getattr(importlib.import_module(module), name), "s3prl")
    except ImportError as error:
        raise UserError(
            f"-u {name}: s3prl's {module} needs a package that is missing: {error}."
        ) from error


def _users_callable(name: str) -> Callable[..., Any]:
    """`path/to/expert.py:callable` or `package.module:callable`."""
    where, _, attribute = name.rpartition(":")
    module = (
        _load_file(Path(where)) if where.endswith(".py") or os.sep in where else _load_module(where)
    )
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [
                each
                for each, value in vars(module).items()
                if callable(value) and not each.startswith("_")
            ]
            raise UserError(
                f"-u: {where} has no '{attribute}'.{did_you_mean(attribute, public)} "
                f"It has: {', '.join(public) or 'nothing callable'}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(
            f"-u: '{attribute}' in {where} is a {type(found).__name__}, expected a class or function that makes an expert."
        )
    return found


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f"-u: there is no file {path} (looked in {Path.cwd()}). Write path/to/expert.py:callable."
        )
    module_name = f"users_upstream_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look there
    _importable_from(path.resolve().parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _import_error(str(path), error) from error
    return module


def _load_module(name: str) -> Any:
    _importable_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"-u: there is no module '{error.name}' (looked in {Path.cwd()} and the installed packages)."
            ) from error
        raise _import_error(name, error) from error
    except Exception as error:
        raise _import_error(name, error) from error


def _importable_from(folder: Path) -> None:
    """Last on the path, so that nothing installed is shadowed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_error(where: str, error: Exception) -> UserError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return UserError(f"-u: {where} could not be imported: {type(error).__name__}: {error}{place}.")
