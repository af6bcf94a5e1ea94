"""Files written whole or not at all, without importing torch."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """`with atomic_path(target) as temporary:` write `temporary`; it then takes target's place.

    It lies in the same folder and has the same suffix, since some writers choose their format by
    it. On an error it is removed and an earlier target stays as it was.
    """
    writer = f"{os.getpid()}.{threading.get_ident()}"
    temporary = target.with_name(f".{target.stem}.{writer}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file so that readers find the old content or the new, never half of it."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with a JSON object a line; a line torn by a crash is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
