"""Tensors in a safetensors file, with a digest of them and of its header, checked when read."""

import hashlib
import json
from pathlib import Path

from torch import Tensor

from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic
from s3prl_varan.upstream.wrapper import hash_tensors


def write_tensors(path: Path, state: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write the file, whole or not at all; "digest" joins the header."""
    from safetensors.torch import save

    header = {**header, "digest": _digest(state, header)}
    write_atomic(path, save({key: value.contiguous() for key, value in state.items()}, header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, and the header without its digest, which older files and others' lack.

    UserError where the file cannot be read, or is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors, is it damaged? ({error})"
        ) from error
    digest = header.pop("digest", None)
    if digest is not None and digest != _digest(state, header):
        raise UserError(f"{path} is damaged: it is not what was written. Copy it anew.")
    return state, header


def _digest(state: dict[str, Tensor], header: dict[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    hash_tensors(digest, state)
    return digest.hexdigest()
