"""Fixtures shared by the tests: real speech and a real encoder where they are at hand, else a skip with its reason."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real speech and a real encoder, beside the checkout; a fresh machine has none."""
    if not SHARED.is_dir():
        pytest.skip(f"no real speech beside the checkout (looked for {SHARED.name}/)")
    return SHARED


@pytest.fixture(scope="session")
def whisper_dir(shared_dir: Path) -> Path:
    """A Hugging Face Whisper encoder checkpoint (tiny.en: 4 layers, 384 wide)."""
    path = shared_dir / "models" / "whisper-tiny.en-encoder"
    if not path.is_dir():
        pytest.skip("no Whisper encoder beside the checkout")
    return path
