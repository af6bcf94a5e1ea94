"""What -u, -d and -f name: a built-in name, `FILE.py:NAME` or `MODULE:NAME`, loaded when needed.

A file or module of the user's is code: it is imported because the command line names it, never
because a checkpoint does.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from s3prl_varan.errors import UserError, did_you_mean


def is_reference(name: str | None) -> bool:
    """Is `name` a FILE.py:NAME or MODULE:NAME, which only the user's own code answers?"""
    return name is not None and ":" in name


def same_name(one: str | None, other: str | None) -> bool:
    """Do two names mean the same? A user's file may lie in another folder than it did."""
    return one == other or (
        is_reference(one) and is_reference(other) and short_name(one) == short_name(other)
    )


def short_name(name: str | None) -> str:
    """`path/to/expert.py:tiny` without its folder: `expert.py:tiny`. Other names as they are."""
    if name is None or not is_reference(name):
        return name or ""
    where, _, attribute = name.rpartition(":")
    return f"{Path(where).name}:{attribute}"


def file_name(name: str) -> str:
    """A name as part of a folder's or file's name."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name)


def find_class(name: str, flag: str, package: str, known: list[str], base: type) -> Any:
    """The subclass of `base` that -d or -f names: a room of `package`, or the user's own.

    Raises UserError where there is none of that name, or it is no complete one.
    """
    kind = base.__name__
    if is_reference(name):
        found = load_reference(name, flag, f"a subclass of s3prl_varan.{kind}")
    elif name in known:
        members = vars(importlib.import_module(f"{package}.{name}")).values()
        found = next(each for each in members if getattr(each, "name", None) == name)
    else:
        listed, hint = ", ".join(known), did_you_mean(name, known)
        raise UserError(f"{flag}: unknown {kind.lower()} '{name}', expected one of {listed}.{hint}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{flag} {name}: expected a subclass of s3prl_varan.{kind}.")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    missing += [each for each in base.NEEDED if not hasattr(found, each)]  # type: ignore[attr-defined]
    if missing:
        raise UserError(f"{flag} {name}: the class lacks {', '.join(missing)}.")
    return found


def load_reference(name: str, flag: str, expected: str) -> Any:
    """What `path/to/file.py:NAME` or `package.module:NAME` names.

    flag, expected: for messages, e.g. "-u" and "a class or function that makes an expert".
    Raises UserError where there is no such file, module or name, or where importing it fails.
    """
    where, _, attribute = name.rpartition(":")
    is_file = where.endswith(".py") or os.sep in where
    module = _load_file(Path(where), flag) if is_file else _load_module(where, flag)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [
                key for key, value in vars(module).items() if callable(value) and key[0] != "_"
            ]
            raise UserError(
                f"{flag}: {where} has no '{attribute}'.{did_you_mean(attribute, public)} "
                f"It has: {', '.join(public) or 'nothing callable'}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(
            f"{flag}: '{attribute}' in {where} is a {type(found).__name__}, expected {expected}."
        )
    return found


def _load_file(path: Path, flag: str) -> Any:
    if not path.is_file():
        raise UserError(
            f"{flag}: there is no file {path} (looked in {Path.cwd()}). Write path/to/file.py:NAME."
        )
    name = f"users_file_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and Path(str(loaded.__file__)).resolve() == path.resolve():
        return loaded  # -u, -d and -f may name one file: its classes must be the same ones
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    _importable_from(path.resolve().parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise _import_error(str(path), flag, error) from error
    return module


def _load_module(name: str, flag: str) -> Any:
    _importable_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{flag}: there is no module '{error.name}' (looked in {Path.cwd()} and the "
                "installed packages)."
            ) from error
        raise _import_error(name, flag, error) from error
    except Exception as error:
        raise _import_error(name, flag, error) from error


def _importable_from(folder: Path) -> None:
    """Last on the path, so that nothing installed is shadowed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_error(where: str, flag: str, error: Exception) -> UserError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return UserError(
        f"{flag}: {where} could not be imported: {type(error).__name__}: {error}{place}."
    )
