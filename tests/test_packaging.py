"""What an installation holds: every folder of the package, every file that its code reads."""

import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {".png"}  # shown by pages in the repository, read by no code


@pytest.fixture
def installed(monkeypatch):
    """What setup.py and setup.cfg install."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    return setuptools.distutils.core.run_setup("setup.py", stop_after="config")


def test_every_folder_with_code_is_a_package(installed):
    folders = {path.parent for path in (ROOT / "s3prl_varan").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert names <= set(installed.packages)
    assert "s3prl_varan.downstream_configs" in installed.packages


def test_files_beside_the_code_go_along(installed):
    for path in (ROOT / "s3prl_varan").rglob("*.*"):
        if path.suffix in {".py", ".pyc"} | PICTURES or not path.is_file():
            continue
        package = ".".join(path.parent.relative_to(ROOT).parts)
        patterns = installed.package_data.get(package, []) + installed.package_data.get("", [])
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path


def test_shipped_configs_go_along(installed):
    assert installed.package_dir["s3prl_varan.downstream_configs"] == "downstream_configs"
    data = installed.package_data
    patterns = data.get("s3prl_varan.downstream_configs", []) + data.get("", [])
    configs = set((ROOT / "downstream_configs").rglob("*.yaml"))
    assert configs
    assert configs <= {
        path for each in patterns for path in (ROOT / "downstream_configs").glob(each)
    }
