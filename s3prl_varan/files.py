"""Files written whole or not at all, without importing torch."""

import os
import threading
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file so that readers find the old content or the new, never half of it."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
