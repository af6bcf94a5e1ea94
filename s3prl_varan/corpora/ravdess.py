"""RAVDESS (Livingstone & Russo 2018), speech part: 24 actors, 1,440 clips, 7 classes with calm merged into neutral.

File names are seven two-digit fields: modality-channel-emotion-intensity-statement-repetition-actor. Odd actors are male, even
ones female.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_varan.audio import AUDIO_SUFFIXES
from s3prl_varan.corpora.metadata import (
    Clip,
    CorpusSummary,
    check_clips,
    convert_clips,
    output_folder,
    require_folder,
    write_emotion_metadata,
)
from s3prl_varan.errors import UserError

LABELS = {
    name: i for i, name in enumerate("neutral happy sad angry fearful disgust surprised".split())
}
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
RELEASED = {
    "train": range(1, 20),
    "dev": range(20, 22),
    "test": range(22, 24),
}  # the split of VARAN's released code
SYNTHETIC_MARKER = "SYNTHETIC.txt"  # in the root of a corpus made by data/synthetic.py
_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_ACTOR = re.compile(r"Actor_(\d\d)")


def prepare_ravdess(
    root: str | Path, out: str | Path | None = None, *, skip_bad: bool = False
) -> CorpusSummary:
    """Write the metadata of RAVDESS, or of a corpus in its form, for `-v fold1` .. `fold4` and `-v released`.

    root: holds Actor_01 .. Actor_24, or folders that hold them. out: default root/meta_data. skip_bad: leave bad files out
    instead of stopping. Every file is decoded once. Raises UserError listing all misnamed and unreadable files.
    """
    base = require_folder(root, "RAVDESS")
    clips, problems = find_clips(base, exclude=out)
    folder = output_folder(base, out)
    remedy = "Mend or remove these files, or leave them out with --skip_bad."
    good, skipped = check_clips(clips, problems, skip_bad=skip_bad, remedy=remedy)
    summary = CorpusSummary("RAVDESS", base, folder, clips=len(good), skipped=skipped)
    if (base / SYNTHETIC_MARKER).exists():
        summary.name = "synthetic corpus"
    elif len(good) != NUM_CLIPS:
        summary.notes.append(f"RAVDESS speech has {NUM_CLIPS} clips, {len(good)} are used here")
    speaker_folds(good)  # too few actors: say so before anything is converted
    good, summary.converted = convert_clips(good, base, folder)
    folds = speaker_folds(good)
    released = released_split(good)
    if all(released.values()):
        folds["released"] = released
    else:
        summary.notes.append(
            "no 'released' split: it needs actors 1-19 (train), 20-21 (dev) and 22-23 (test)"
        )
    write_emotion_metadata(summary, LABELS, folds)
    return summary


def find_clips(root: Path, exclude: str | Path | None = None) -> tuple[list[Clip], list[str]]:
    """All speech clips under root/Actor_XX or root/*/Actor_XX, sorted, and a line per file whose name does not fit.

    Song (channel 02), video (modality 01, 02) and hidden files are passed over. Raises UserError when there are none.
    """
    folders = _actor_folders(root, exclude)
    clips: dict[str, Clip] = {}
    problems = []
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.suffix.lower() not in AUDIO_SUFFIXES:
                continue
            match = _NAME.fullmatch(path.stem)
            problem = (
                "not named like 03-01-06-01-02-01-12.wav"
                if match is None
                else _mismatch(match, folder)
            )
            if problem:
                problems.append(f"{path}: {problem}")
            elif match and match[1] == "03" and match[2] == "01":
                if path.stem in clips:
                    problems.append(f"{path}: same clip as {clips[path.stem].path}")
                else:
                    clips[path.stem] = Clip(path, EMOTIONS[match[3]], match[7])
    if not clips and not problems:
        raise UserError(
            f"{root}: {len(folders)} Actor_XX folders but no speech clip in them (names start with 03-01-). "
            "Unpack Audio_Speech_Actors_01-24.zip there."
        )
    return list(clips.values()), problems


def speaker_folds(clips: Sequence[Clip]) -> dict[str, dict[str, list[Clip]]]:
    """Four folds {"fold1": {"train", "dev", "test"}} without a speaker in two splits, balanced between male and female.

    With 24 actors: 6 in test (each actor in exactly one fold's test), 4 in dev, 14 in train.
    Raises UserError for fewer than four actors of either sex.
    """
    actors = sorted({int(clip.speaker) for clip in clips})
    men, women = [a for a in actors if a % 2 == 1], [a for a in actors if a % 2 == 0]
    if min(len(men), len(women)) < NUM_FOLDS:
        raise UserError(
            f"four speaker-independent folds need at least {NUM_FOLDS} male (odd) and {NUM_FOLDS} female (even) actors; "
            f"found {len(men)} and {len(women)}: {', '.join(f'{a:02d}' for a in actors) or 'none'}"
        )
    folds = {}
    for k in range(NUM_FOLDS):
        following = (k + 1) % NUM_FOLDS
        test = {*men[k::NUM_FOLDS], *women[k::NUM_FOLDS]}
        dev = {
            a for sex in (men, women) for a in sex[following::NUM_FOLDS][: max(1, len(sex) // 6)]
        }
        folds[f"fold{k + 1}"] = _split(
            clips, {"train": set(actors) - test - dev, "dev": dev, "test": test}
        )
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
    skip = Path(exclude).resolve() if exclude is not None else root.resolve() / "meta_data"
    for pattern in (
        "Actor_*",
        "*/Actor_*",
    ):  # the nearer one wins: some copies of the corpus hold everything twice
        found = [
            path
            for path in sorted(root.glob(pattern))
            if path.is_dir() and _ACTOR.fullmatch(path.name)
        ]
        found = [
            path
            for path in found
            if pattern == "Actor_*" or not path.resolve().is_relative_to(skip)
        ]
        if found:
            return found
    seen = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{root}: no folders Actor_01 .. Actor_24 here or one level below; found {seen}. Give the corpus root."
    )


def _mismatch(match: re.Match[str], folder: Path) -> str:
    if match[3] not in EMOTIONS:
        return f"emotion {match[3]} is not one of 01 .. 08"
    expected = _ACTOR.fullmatch(folder.name)
    if expected and expected[1] != match[7]:
        return f"names actor {match[7]} but lies in {folder.name}"
    return ""
