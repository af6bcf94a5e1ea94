"""RAVDESS (Livingstone & Russo 2018), speech part: 24 actors, 1,440 clips, 7 classes.

Calm is merged into neutral. File names are seven two-digit fields: modality-channel-emotion-
intensity-statement-repetition-actor. Odd actors are male, even ones female.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_varan.audio import audio_files
from s3prl_varan.corpora.metadata import Clip, CorpusSummary, Folds, prepare_clips
from s3prl_varan.corpora.preparation import require_folder
from s3prl_varan.errors import UserError

CLASSES = ("neutral", "happy", "sad", "angry", "fearful", "disgust", "surprised")
LABELS = {name: index for index, name in enumerate(CLASSES)}
EMOTIONS = {
    "01": "neutral",
    "02": "neutral",  # calm
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
NUM_CLIPS = 1440
NUM_FOLDS = 4
# The split of VARAN's released code.
RELEASED = {"train": range(1, 20), "dev": range(20, 22), "test": range(22, 24)}
SYNTHETIC_MARKER = "SYNTHETIC.txt"  # in the root of a corpus made by run/synthetic/
_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_ACTOR = re.compile(r"Actor_(\d\d)")


def prepare_ravdess(
    root: str | Path, out: str | Path | None = None, *, skip_bad: bool = False
) -> CorpusSummary:
    """Write the metadata of RAVDESS, or of a corpus in its form, for `-v fold1` .. `-v fold4`.

    And for `-v released` where the actors allow it. root: holds Actor_01 .. Actor_24, or folders
    that hold them. out: default root/meta_data. skip_bad and errors: see `prepare_clips`.
    """
    base = require_folder(root, "RAVDESS")
    synthetic = (base / SYNTHETIC_MARKER).exists()
    name = "synthetic corpus" if synthetic else "RAVDESS"
    found = find_clips(base, exclude=out)
    summary = prepare_clips(name, base, out, found, LABELS, all_folds, skip_bad=skip_bad)
    if not synthetic and summary.clips != NUM_CLIPS:
        summary.notes.append(f"RAVDESS speech has {NUM_CLIPS} clips, {summary.clips} are used here")
    if not any(row.fold == "released" for row in summary.rows):
        summary.notes.append(
            "no 'released' split: it needs actors 1-19 (train), 20-21 (dev) and 22-23 (test)"
        )
    return summary


def find_clips(root: Path, exclude: str | Path | None = None) -> tuple[list[Clip], list[str]]:
    """All speech clips under root/Actor_XX or root/*/Actor_XX, and a line per misnamed file.

    Song (channel 02) and video (modality 01, 02) are passed over. exclude: a folder of converted
    copies to pass over, default root/meta_data. Raises UserError when there are none.
    """
    folders = _actor_folders(root, exclude)
    clips: dict[str, Clip] = {}
    problems = []
    for folder in folders:
        for path in audio_files(folder):
            match = _NAME.fullmatch(path.stem)
            problem = "not named like 03-01-06-01-02-01-12.wav"
            if match is not None:
                problem = _mismatch(match, folder)
                if not problem and (match[1], match[2]) != ("03", "01"):
                    continue
                if not problem and path.stem in clips:
                    problem = f"same clip as {clips[path.stem].path}"
            if problem:
                problems.append(f"{path}: {problem}")
            elif match:
                clips[path.stem] = Clip(path, EMOTIONS[match[3]], match[7])
    if not clips and not problems:
        raise UserError(
            f"{root}: {len(folders)} Actor_XX folders but no speech clip in them (names start with "
            "03-01-). Unpack Audio_Speech_Actors_01-24.zip there."
        )
    return list(clips.values()), problems


def all_folds(clips: Sequence[Clip]) -> Folds:
    """`speaker_folds`, and "released" where the actors allow it."""
    released = released_split(clips)
    return speaker_folds(clips) | ({"released": released} if all(released.values()) else {})


def speaker_folds(clips: Sequence[Clip]) -> Folds:
    """Four folds without a speaker in two splits, balanced between male and female.

    With 24 actors: 6 in test (each actor in exactly one fold's test), 4 in dev, 14 in train.
    Raises UserError for fewer than four actors of either sex.
    """
    actors = sorted({int(clip.speaker) for clip in clips})
    men, women = [a for a in actors if a % 2 == 1], [a for a in actors if a % 2 == 0]
    if min(len(men), len(women)) < NUM_FOLDS:
        found = ", ".join(f"{actor:02d}" for actor in actors) or "none"
        raise UserError(
            f"four speaker-independent folds need at least {NUM_FOLDS} male (odd) and {NUM_FOLDS} "
            f"female (even) actors; found {len(men)} and {len(women)}: {found}"
        )
    folds = {}
    for k in range(NUM_FOLDS):
        test, dev = set(), set()
        for sex in (men, women):
            test.update(sex[k::NUM_FOLDS])
            dev.update(sex[(k + 1) % NUM_FOLDS :: NUM_FOLDS][: max(1, len(sex) // 6)])
        train = set(actors) - test - dev
        folds[f"fold{k + 1}"] = _split(clips, {"train": train, "dev": dev, "test": test})
    return folds


def released_split(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Actors 1-19 train, 20-21 dev, 22-23 test; actor 24 is in none of them."""
    return _split(clips, {split: set(actors) for split, actors in RELEASED.items()})


def _split(clips: Sequence[Clip], actors: Mapping[str, set[int]]) -> dict[str, list[Clip]]:
    return {
        split: [clip for clip in clips if int(clip.speaker) in chosen]
        for split, chosen in actors.items()
    }


def _actor_folders(root: Path, exclude: str | Path | None) -> list[Path]:
    skip = (Path(exclude) if exclude is not None else root / "meta_data").resolve()
    for pattern in ("Actor_*", "*/Actor_*"):  # the nearer: some copies hold everything twice
        found = [
            path
            for path in sorted(root.glob(pattern))
            if path.is_dir()
            and _ACTOR.fullmatch(path.name)
            and not (path.parent != root and path.resolve().is_relative_to(skip))
        ]
        if found:
            return found
    seen = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{root}: no folders Actor_01 .. Actor_24 here or one level below; found {seen}. "
        "Give the corpus root."
    )


def _mismatch(match: re.Match[str], folder: Path) -> str:
    if match[3] not in EMOTIONS:
        return f"emotion {match[3]} is not one of 01 .. 08"
    expected = _ACTOR.fullmatch(folder.name)
    if expected and expected[1] != match[7]:
        return f"names actor {match[7]} but lies in {folder.name}"
    return ""
