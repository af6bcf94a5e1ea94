"""What every preparation of a corpus shares: its folders, and the summary that it prints."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_varan.audio import is_audio
from s3prl_varan.errors import UserError, did_you_mean, problems_error

MAX_NAMED = 5  # files in one note
MAX_PROBLEMS = 10  # of a table's rows in one message


@dataclass
class Summary:
    """What a preparation did; `str()` of it is what the command prints."""

    root: Path  # of the corpus
    out: Path  # where the result lies
    rows: list[Any] = field(default_factory=list)
    converted: int = 0  # recordings rewritten as 16 kHz mono
    skipped: list[str] = field(default_factory=list)  # left out by --skip_bad, with the reason
    notes: list[str] = field(default_factory=list)  # worth knowing, not wrong enough to stop

    @property
    def data(self) -> Path | None:
        """The folder in which --data finds all of it; None where it lies in two places."""
        inside = self.out in (self.root, self.root / "meta_data")
        return self.root if inside else None

    def note_others(self, recordings: Iterable[Path]) -> None:
        """Count the files beside the recordings that are none, or hidden: nothing reads them."""
        folders = sorted({path.parent for path in recordings})
        beside = [path for folder in folders for path in sorted(folder.iterdir())]
        others = [
            path.name
            for path in beside
            if path.is_file() and not (is_audio(path) or path.name.endswith(".trans.txt"))
        ]
        if others:
            named = ", ".join(others[:MAX_NAMED]) + (", ..." if len(others) > MAX_NAMED else "")
            self.notes.append(f"hidden files and others that are not read: {len(others)} ({named})")

    def remarks(self) -> list[str]:
        """Lines on what was converted, left out and odd."""
        lines = []
        if self.converted:
            lines.append(f"converted {self.converted} recordings to 16 kHz mono in {self.out}")
        if self.skipped:
            lines.append(f"left out ({len(self.skipped)}):")
            lines += [f"  - {reason}" for reason in self.skipped]
        return lines + [f"note: {note}" for note in self.notes]


def table(head: Sequence[str], rows: Sequence[Sequence[object]], words: int) -> list[str]:
    """Lines with the columns of `head`: the first `words` of them to the left, figures right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    forms = [f"{'<' if place < words else '>'}{width}" for place, width in enumerate(widths)]
    return ["  ".join(map(format, row, forms)) for row in cells]


def first_problems(problems: Sequence[str]) -> list[str]:
    """The first ten, and how many more there are."""
    rest = len(problems) - MAX_PROBLEMS
    return [*problems[:MAX_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])]


def read_table_text(path: Path, wanted: str) -> str:
    """The text of a user's table. UserError where it cannot be read; `wanted`: what to give."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file. Give {wanted}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def check_column_names(
    path: Path, names: Sequence[str], known: Sequence[str], needed: Sequence[str]
) -> None:
    """UserError where a table's first line names other columns than are known, or too few."""
    problems = [f"no column {name}" for name in needed if name not in names]
    for name in dict.fromkeys(names):
        if name not in known:
            problems.append(f"unknown column '{name}'.{did_you_mean(name, known)}")
        elif names.count(name) > 1:
            problems.append(f"two columns are named {name}")
    if problems:
        headline = f"{path}, line 1: expected the names of the columns, {' and '.join(needed)}:"
        remedy = f"Known: {', '.join(known)}. Take other columns out of the table."
        raise problems_error(headline, first_problems(problems), remedy)


def absolute(path: str | Path) -> Path:
    """Absolute, with ~ expanded; links are kept, so that files are named as the user names them."""
    return Path(os.path.abspath(Path(path).expanduser()))


def require_folder(root: str | Path, what: str) -> Path:
    """`root` as an absolute path. Raises UserError when it is not a folder."""
    path = absolute(root)
    if not path.is_dir():
        raise UserError(f"{what}: no folder at {path}. Give the folder that holds the corpus.")
    return path


def output_folder(root: Path, out: str | Path | None) -> Path:
    """Where results go: `out`, else root/meta_data.

    Made and tried now, so that a read-only place is known before the slow work.
    """
    path = absolute(out) if out is not None else root / "meta_data"
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {path} ({error.strerror}). Choose another folder with --out."
        ) from error
    return path
