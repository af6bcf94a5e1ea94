"""Speaker verification on any corpus with speakers: whom to train on, and trials of the others.

What is prepared: OUT/prepared_speakers.tsv, in the columns of prepared labels (label is the
speaker; split is train, dev or test, no speaker in two), OUT/dev_trials.txt and OUT/test_trials.txt
with a line `1 NAME NAME` (one speaker) or `0 NAME NAME` (two) for each trial, as VoxCeleb1 has it.
"""

import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_varan.audio import audio_files
from s3prl_varan.corpora.folds import LabelledClip
from s3prl_varan.corpora.labels import numbered_rows, table_text, usable_clips
from s3prl_varan.corpora.metadata import SPLITS, CorpusSummary, SplitRow
from s3prl_varan.corpora.preparation import (
    absolute,
    first_problems,
    output_folder,
    read_table_text,
)  # fmt: skip
from s3prl_varan.errors import UserError
from s3prl_varan.files import write_texts

TABLE = "prepared_speakers.tsv"
LISTS = {"dev": "dev_trials.txt", "test": "test_trials.txt"}
LINE = re.compile(r"([01])\s+(\S+)\s+(\S+)")
SHARE = 6  # dev and test are one speaker in so many each, where their numbers are not given
TRIES = 100  # draws for each trial that is wanted, at most


@dataclass(frozen=True)
class Trial:
    """Are two clips, by their names, of one speaker?"""

    same: bool
    first: str
    second: str

    def __str__(self) -> str:
        return f"{int(self.same)} {self.first} {self.second}"


def prepare_trials(
    source: str | Path,
    out: str | Path | None = None,
    *,
    audio_root: str | Path | None = None,
    dev_speakers: int | None = None,
    test_speakers: int | None = None,
    trials: int = 20000,
    seed: int = 0,
    skip_bad: bool = False,
) -> CorpusSummary:
    """Part the speakers of a corpus into train, dev and test, and draw trials of dev and test.

    source: a folder with a folder of recordings for each speaker, or a CSV or TSV with the columns
    path and speaker (start and end in seconds, if it has them; others are passed over). Paths are
    relative to audio_root, by default the table's folder. out: default meta_data in the folder, or
    beside the table. skip_bad: leave out what has a problem. Raises UserError with all problems
    (the first ten in words); then nothing was written.
    """
    place = absolute(source)
    if place.is_dir():
        home, (clips, problems) = place, _in_folders(place)
    else:
        home = place.parent
        clips, problems = _in_table(place, home if audio_root is None else absolute(audio_root))
    target = output_folder(home, out)
    if target / TABLE == place:
        raise UserError(f"{place} would be overwritten: choose another folder with --out.")
    good, skipped = usable_clips(clips, problems, place.name, skip_bad=skip_bad)
    names: dict[str, list[str]] = defaultdict(list)
    for clip in good:
        names[clip.speaker].append(clip.name)
    generator = random.Random(seed)
    parts = _parts(names, {"test": test_speakers, "dev": dev_speakers}, generator)
    split_of = {speaker: split for split, speakers in parts.items() for speaker in speakers}
    drawn = {
        split: draw_trials({each: names[each] for each in parts[split]}, trials, generator)
        for split in LISTS
    }
    splits = {"split": [split_of[clip.speaker] for clip in good]}
    texts = {target / TABLE: table_text(good, splits, target)}
    for split, found in drawn.items():
        texts[target / LISTS[split]] = "".join(f"{trial}\n" for trial in found)
    write_texts(texts)
    summary = CorpusSummary(target, target, name=place.name, clips=len(good), skipped=skipped)
    for split in SPLITS:
        mine = [clip for clip in good if split_of[clip.speaker] == split]
        hours = sum(clip.seconds for clip in mine) / 3600
        counts = {"trials": len(drawn.get(split, ()))}
        summary.rows.append(SplitRow("-", split, len(mine), len(parts[split]), hours, counts))
    return summary


def _in_folders(root: Path) -> tuple[list[LabelledClip], list[str]]:
    """The recordings in the folders of `root`, each named after its speaker."""
    clips = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for path in audio_files(folder, below=True):
            shown = path.relative_to(root).as_posix()
            clips.append(LabelledClip(shown, path, folder.name, folder.name))
    if not clips:
        raise UserError(
            f"{root}: expected a folder of recordings for each speaker, found no recording in any "
            "folder. Give a table with the columns path and speaker instead."
        )
    return clips, _twice(clips)


def _in_table(path: Path, base: Path) -> tuple[list[LabelledClip], list[str]]:
    """The clips of a table with the columns path and speaker, and a line for each bad row."""
    text = read_table_text(path, "a folder, or a CSV or TSV file with the columns path and speaker")
    (_, columns), *rows = [row for row in numbered_rows(path, text) if row[1]] or [(1, [])]
    lacking = [name for name in ("path", "speaker") if name not in columns]
    if lacking:
        raise UserError(f"{path}, line 1: no column {' and no column '.join(lacking)}")
    clips, problems = [], []
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=False))
        where = f"{path.name}, line {number}"
        try:
            start, end = float(row.get("start") or 0), float(row.get("end") or math.inf)
        except ValueError:
            start = end = math.nan
        if not row.get("path") or not row.get("speaker"):
            problems.append(f"{where}: no path, or no speaker")
        elif not 0 <= start < end:
            problems.append(f"{where}: start and end: expected seconds, the end after the start")
        else:
            stretch = start, None if end == math.inf else end
            clips.append(_clip(row["path"], row["speaker"], base, *stretch))
    return clips, [*problems, *_twice(clips)]


def _clip(shown: str, speaker: str, base: Path, start: float, end: float | None) -> LabelledClip:
    speaker = " ".join(speaker.split())
    path = Path(os.path.normpath(base / shown))
    return LabelledClip(shown, path, speaker, speaker, start=start, end=end)


def _twice(clips: Sequence[LabelledClip]) -> list[str]:
    """A line for each name that two clips have, in which trials could not tell them apart."""
    counts = Counter(clip.name for clip in clips)
    return [f"{name}: listed twice" for name, count in counts.items() if count > 1]


def _parts(
    names: Mapping[str, Sequence[str]], wanted: Mapping[str, int | None], generator: random.Random
) -> dict[str, list[str]]:
    """The speakers of each split: so many as wanted, or a share; the rest are train."""
    left, parts = dict(names), {}
    for split, count in wanted.items():
        count = max(2, len(names) // SHARE) if count is None else count
        parts[split] = hold_out(left, count, generator)
        left = {speaker: mine for speaker, mine in left.items() if speaker not in parts[split]}
    if len(left) < 2 or any(len(parts[split]) < 2 for split in wanted):
        found = ", ".join(f"{len(each)} for {split}" for split, each in parts.items())
        raise UserError(
            f"{len(names)} speakers are too few: {found} and {len(left)} for training, where at "
            "least two are needed for each (dev and test: with two clips or more)."
        )
    return {"train": sorted(left), **parts}


# ---- shared with the task, which makes a dev list where there is none


def hold_out(names: Mapping[str, Sequence[str]], count: int, generator: random.Random) -> list[str]:
    """At most `count` of the speakers (names of clips by speaker) with two clips or more."""
    able = sorted(speaker for speaker, mine in names.items() if len(mine) > 1)
    return sorted(generator.sample(able, min(count, len(able))))


def draw_trials(
    names: Mapping[str, Sequence[str]], count: int, generator: random.Random
) -> list[Trial]:
    """`count` different trials, half of them of one speaker; fewer where there are no more.

    names: the clips' by speaker, two or more of each of two or more speakers. Speakers are drawn
    first, each as often as another, then their clips.
    """
    speakers, found = sorted(names), dict[tuple[str, ...], Trial]()
    alike = sum(math.comb(len(mine), 2) for mine in names.values())
    apart = math.comb(sum(map(len, names.values())), 2) - alike
    for same, wanted in ((True, min(count // 2, alike)), (False, min(count - count // 2, apart))):
        enough = len(found) + wanted
        for _ in range(TRIES * wanted):
            if len(found) == enough:
                break
            if same:
                pair = generator.sample(names[generator.choice(speakers)], 2)
            else:
                pair = [generator.choice(names[each]) for each in generator.sample(speakers, 2)]
            found.setdefault(tuple(sorted(pair)), Trial(same, *pair))
    return list(found.values())


def read_trials(path: Path) -> list[Trial]:
    """The trials of a list. UserError, a problem in each line, where it is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    trials, problems = [], []
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line.strip())
        if match:
            trials.append(Trial(match[1] == "1", match[2], match[3]))
        elif line.strip():
            problems.append(
                f"{path}, line {number}: expected 1 or 0 and two clips, found {line.strip()!r}"
            )
    if not problems and len({trial.same for trial in trials}) < 2:
        problems.append(f"{path}: expected trials of one speaker (1) and of two (0)")
    if problems:
        raise UserError("\n".join(first_problems(problems)))
    return trials
