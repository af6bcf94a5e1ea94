"""Configs as files and text: where they lie, YAML, -o overrides. Nothing here runs code."""

from pathlib import Path
from typing import Any

import yaml

from s3prl_varan.errors import UserError
from s3prl_varan.files import parse_yaml
from s3prl_varan.names import is_reference

DEFAULT = "config.yaml"  # of a task, in its folder of downstream_configs


def config_root() -> Path:
    """Folder of the shipped configs: beside the package in a clone, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "downstream_configs"
    return beside if beside.is_dir() else package / "downstream_configs"


def find_config(downstream: str, given: str | None) -> Path | None:
    """The config file to read: -c, or the shipped one of this task; None where it ships none.

    Of an expert of s3prl, `s3prl:NAME`, that is s3prl/NAME.yaml.
    """
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise UserError(f"-c: no config file at {given}. Shipped ones are in {config_root()}.")
        return path
    path = config_root() / downstream / DEFAULT
    library, _, name = downstream.rpartition(":")
    if library == "s3prl":
        path = config_root() / library / f"{Path(name).name}.yaml"
    elif is_reference(downstream):
        return None
    return path if path.is_file() else None


def read_config(
    path: Path, expected: str = "sections such as runner, optimizer, downstream_expert"
) -> dict[str, Any]:
    """The file's content as plain values. UserError where it is no YAML file with keys.

    expected: those keys, for the message.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML file that can be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected {expected}; found {type(raw).__name__}.")
    return raw


def split_override(text: str | None) -> list[tuple[list[str], Any]]:
    """ "config.a.b=1,,args.seed=2" -> [(["config", "a", "b"], 1), ...]; values are YAML."""
    if not text or text.lower() == "none":
        return []
    pairs = []
    for item in filter(None, (part.strip() for part in text.split(",,"))):
        key, separator, value = item.partition("=")
        path = key.strip().split(".")
        if not separator or path[0] not in ("config", "args") or len(path) < 2:
            raise UserError(
                "-o: expected config.SECTION.KEY=VALUE or args.FLAG=VALUE (several joined by "
                f"',,'), found '{item}'."
            )
        try:
            pairs.append((path, parse_yaml(value)))
        except yaml.YAMLError as error:
            raise UserError(f"-o: the value of {key.strip()} is not YAML: {value!r}.") from error
    return pairs


def set_key(raw: dict[str, Any], path: list[str], value: Any) -> None:
    """raw[path] = value, sections on the way made where there are none. Names are checked later."""
    node = raw
    for key in path[:-1]:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    node[path[-1]] = value
