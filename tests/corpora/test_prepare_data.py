"""The command run/prepare_data.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "run" / "prepare_data.py"


def command(*args, cwd):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_runs_from_anywhere_and_reports_mistakes_without_a_traceback(small_libri, tmp_path):
    done = command("librispeech", small_libri, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0 and "train-x" in done.stdout, done.stderr
    assert (tmp_path / "out" / "train-x.csv").is_file()
    failed = command("ravdess", tmp_path / "nowhere", cwd=tmp_path)
    assert failed.returncode == 2 and failed.stdout == ""
    assert (
        failed.stderr.startswith("error: RAVDESS: no folder at")
        and "Traceback" not in failed.stderr
    )


def test_command_help_needs_no_heavy_import(tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "usage: prepare_data.py" in done.stdout
    assert not imported & {"torch", "torchaudio", "numpy", "soundfile"}


@pytest.mark.parametrize(
    "corpus",
    ["ravdess", "iemocap", "librispeech", "manifest", "synthetic", "labels", "emodb", "trials"],
)
def test_every_command_reaches_its_preparation(corpus, monkeypatch, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "corpus" / "x"
    file.parent.mkdir()
    file.write_text("no tab here")
    target = file if corpus in ("manifest", "labels") else file.parent
    assert module.main([corpus, str(target)]) == 2
    message = capsys.readouterr().err
    expected = {
        "manifest": "path TAB text",
        "labels": "no column path",
        "emodb": "no recordings in it",
        "trials": "a folder of recordings for each speaker",
        "synthetic": "not empty",
        "iemocap": "Session1",
        "librispeech": "layout",
    }
    assert expected.get(corpus, "Actor_01") in message
