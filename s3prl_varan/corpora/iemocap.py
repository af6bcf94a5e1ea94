"""IEMOCAP (Busso et al. 2008) as SUPERB uses it, one session left out per fold.

Its four classes are neutral, happy + excited, angry and sad.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from s3prl_varan.audio import audio_files
from s3prl_varan.corpora.metadata import Clip, CorpusSummary, Folds, prepare_clips
from s3prl_varan.corpora.preparation import require_folder
from s3prl_varan.errors import UserError

LABELS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
EMOTIONS = {"neu": "neu", "hap": "hap", "exc": "hap", "ang": "ang", "sad": "sad"}
NUM_CLIPS = 5531
NUM_SESSIONS = 5
# [6.29 - 8.23]  Ses01F_impro01_F000  neu  [2.5, 2.5, 2.5]
_TURN = re.compile(r"\[[^\]]*\]\s+(\S+)\s+(\S+)\s+\[")


def prepare_iemocap(
    root: str | Path, out: str | Path | None = None, *, skip_bad: bool = False
) -> CorpusSummary:
    """Write the metadata of IEMOCAP for `-v fold1` .. `fold5`: fold k tests on Session k.

    root: holds Session1 .. Session5 (IEMOCAP_full_release). No dev file is written: as in SUPERB, a
    random fifth of the training clips takes its place. out: default root/meta_data. skip_bad and
    errors: see `prepare_clips`.
    """
    base = require_folder(root, "IEMOCAP")
    sessions = _sessions(base)
    clips: list[Clip] = []
    problems: list[str] = []
    for session in sessions:
        found, wrong = find_clips(session)
        clips += found
        problems += wrong
    folds, both = partial(session_folds, sessions), (clips, problems)
    summary = prepare_clips("IEMOCAP", base, out, both, LABELS, folds, skip_bad=skip_bad)
    if summary.clips != NUM_CLIPS:
        note = f"IEMOCAP has {NUM_CLIPS} clips of these four classes, {summary.clips} are used here"
        summary.notes.append(note)
    if len(sessions) != NUM_SESSIONS:
        summary.notes.append(f"IEMOCAP has {NUM_SESSIONS} sessions, {len(sessions)} are here")
    return summary


def session_folds(sessions: Sequence[Path], clips: Sequence[Clip]) -> Folds:
    """A fold per session, which is its test set; the others are trained on."""
    return {
        f"fold{session.name.removeprefix('Session')}": {
            "train": [clip for clip in clips if not _of(clip, session)],
            "test": [clip for clip in clips if _of(clip, session)],
        }
        for session in sessions
    }


def find_clips(session: Path) -> tuple[list[Clip], list[str]]:
    """Clips of a session in the four classes, as the label files have them, and what is missing.

    The speaker is the part of the name before the first underscore (Ses01F), as in s3prl.
    """
    labels, wavs = session / "dialog" / "EmoEvaluation", session / "sentences" / "wav"
    problems = [f"{folder}: no such folder" for folder in (labels, wavs) if not folder.is_dir()]
    if problems:
        return [], problems
    audio = {path.stem: path for path in audio_files(wavs, below=True)}
    clips = []
    files = [path for path in sorted(labels.glob("*.txt")) if not path.name.startswith(".")]
    if not files:
        problems.append(f"{labels}: no label files (*.txt)")
    for file in files:
        turns = _TURN.findall(file.read_text(encoding="utf-8", errors="replace"))
        if not turns:
            problems.append(
                f"{file}: no line like '[6.29 - 8.23]  Ses01F_impro01_F000  neu  [2.5, 2.5, 2.5]'"
            )
        for name, emotion in turns:
            if emotion not in EMOTIONS:
                continue
            if name in audio:
                clips.append(Clip(audio[name], EMOTIONS[emotion], name.split("_")[0]))
            else:
                problems.append(f"{file}: {name} has no recording under {wavs}")
    return clips, problems


def _of(clip: Clip, session: Path) -> bool:
    return clip.speaker[3:5] == f"{int(session.name.removeprefix('Session')):02d}"


def _sessions(root: Path) -> list[Path]:
    sessions = sorted(
        path
        for path in root.glob("Session*")
        if path.is_dir() and re.fullmatch(r"Session\d", path.name)
    )
    if len(sessions) >= 2:
        return sessions
    inner = next((path.parent for path in sorted(root.glob("*/Session1"))), None)
    hint = f" Give {inner}." if inner else " Give the folder IEMOCAP_full_release."
    raise UserError(
        f"{root}: expected folders Session1 .. Session5, found {len(sessions)} of them.{hint}"
    )
