"""Who speaks when, in Kaldi's layout: a folder for each split, with wav.scp and the turns.

    wav.scp   RECORDING PATH
    segments  TURN RECORDING START END (seconds), with utt2spk: TURN SPEAKER
    rttm      SPEAKER RECORDING CHANNEL START DURATION <NA> <NA> NAME <NA> <NA>
Turns are in segments, in rttm or in both. Commands that a wav.scp may hold are not run.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_varan.errors import UserError

FORMS = {
    "wav.scp": "RECORDING PATH",
    "utt2spk": "TURN SPEAKER",
    "segments": "TURN RECORDING START END",
    "rttm": "SPEAKER RECORDING CHANNEL START DURATION <NA> <NA> NAME",
}
Row = tuple[str, list[str]]  # where a line is, and its fields
Found = tuple[str, str, str, str, str]  # where, recording, speaker; start, end (rttm: duration)


@dataclass(frozen=True)
class Turn:
    """A stretch in which somebody speaks."""

    speaker: str
    start: float  # seconds
    end: float  # seconds

    def __str__(self) -> str:
        return f"{self.speaker} {self.start:.2f}-{self.end:.2f}"


@dataclass(frozen=True)
class Recording:
    """A recording and who speaks in it."""

    name: str
    path: Path
    turns: list[Turn]  # by their start


def read_kaldi(folder: Path, first: str) -> list[Recording]:
    """The recordings of a folder, in the order of their names.

    first: "segments" or "rttm", which to take the turns from where both are there. Raises UserError
    with all that is wrong, a line each.
    """
    problems: list[str] = []
    found: dict[str, Recording] = {}
    for where, (name, place) in _rows(folder, "wav.scp", problems):
        if place.endswith("|") or place == "-":
            problems.append(f"{where}: a command, which is not run; write its output to a file")
        if name in found:
            problems.append(f"{where}: {name} is listed twice")
        beside = folder / place  # Kaldi's paths are relative to where a program runs, ours to here
        found[name] = Recording(name, beside if beside.exists() else Path(place), [])
    other = "rttm" if first == "segments" else "segments"
    source = first if (folder / first).is_file() or not (folder / other).is_file() else other
    read = _segments if source == "segments" else _rttm
    for where, name, speaker, *times in read(folder, problems):
        try:
            start, end = map(float, times)
            end += start if source == "rttm" else 0.0
        except ValueError:
            start = end = math.nan
        if not 0 <= start < end < math.inf:  # nor of a NaN
            shown = ", ".join(times)
            problems.append(f"{where}: {shown}: expected seconds, the end after the start")
        elif name not in found:
            problems.append(f"{where}: recording {name} is not in wav.scp")
        else:
            found[name].turns.append(Turn(speaker, start, end))
    silent = [name for name, recording in found.items() if not recording.turns]
    problems += [f"{folder / source}: nobody speaks in {name}" for name in silent]
    if problems:
        raise UserError("\n".join(problems))
    for recording in found.values():
        recording.turns.sort(key=lambda turn: turn.start)
    return [found[name] for name in sorted(found)]


def _segments(folder: Path, problems: list[str]) -> Iterator[Found]:
    speakers = {name: speaker for _, (name, speaker) in _rows(folder, "utt2spk", problems)}
    for where, (name, recording, start, end) in _rows(folder, "segments", problems):
        if name in speakers:
            yield where, recording, speakers[name], start, end
        else:
            problems.append(f"{where}: {name} has no speaker in utt2spk")


def _rttm(folder: Path, problems: list[str]) -> Iterator[Found]:
    for where, (kind, recording, _, start, length, _, _, rest) in _rows(folder, "rttm", problems):
        if kind == "SPEAKER":
            yield where, recording, rest.split()[0], start, length


def _rows(folder: Path, name: str, problems: list[str]) -> Iterator[Row]:
    """The lines of a file; the last field has the rest of one."""
    path, size = folder / name, len(FORMS[name].split())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error})")
        return
    for number, line in enumerate(lines, start=1):
        fields = line.strip().split(None, size - 1)
        if len(fields) == size:
            yield f"{path}, line {number}", fields
        elif fields:
            problems.append(
                f"{path}, line {number}: expected {FORMS[name]}, found {line.strip()!r}"
            )


def rttm_text(name: str, turns: Sequence[Turn]) -> str:
    """The lines of a recording in an rttm file, to the millisecond."""
    return "".join(
        f"SPEAKER {name} 1 {turn.start:.3f} {turn.end - turn.start:.3f} <NA> <NA> {turn.speaker} "
        "<NA> <NA>\n"
        for turn in turns
    )
