"""EmoDB (Burkhardt et al. 2005): 535 clips of 10 actors, 7 classes, as a table of labels.

File names are SPEAKER(2) TEXT(3) EMOTION(1) VERSION, such as 03a01Fa.wav; the letter is German.
"""

import re
from pathlib import Path

from s3prl_varan.audio import audio_files
from s3prl_varan.corpora.folds import LabelledClip
from s3prl_varan.corpora.labels import prepare_table
from s3prl_varan.corpora.metadata import CorpusSummary
from s3prl_varan.corpora.preparation import output_folder, require_folder
from s3prl_varan.errors import UserError

LABELS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "anxiety",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
NUM_CLIPS = 535
_NAME = re.compile(r"(\d\d)[ab]\d\d([WLEAFTN])[a-z]?")


def prepare_emodb(
    root: str | Path, out: str | Path | None = None, *, skip_bad: bool = False
) -> CorpusSummary:
    """Write the table of EmoDB with five speaker-independent folds.

    root: holds the recordings, or wav/ with them. out: default root/meta_data. skip_bad and
    errors: see `prepare_labels`.
    """
    base = require_folder(root, "EmoDB")
    places = (base, base / "wav")
    folder = next((each for each in places if each.is_dir() and audio_files(each)), None)
    if folder is None:
        raise UserError(f"{base}: no recordings in it (names are like 03a01Fa.wav)")
    clips, problems = [], []
    for path in audio_files(folder):
        match = _NAME.fullmatch(path.stem)
        if match:
            clips.append(LabelledClip(path.name, path, LABELS[match[2]], match[1]))
        else:
            problems.append(f"{path}: not named like 03a01Fa.wav")
    target = output_folder(base, out)
    summary = CorpusSummary(base if out is None else target, target, name="EmoDB")
    summary.note_others(clip.path for clip in clips)
    summary = prepare_table(summary, base, clips, problems, skip_bad=skip_bad)
    if summary.clips != NUM_CLIPS:
        summary.notes.append(f"EmoDB has {NUM_CLIPS} clips, {summary.clips} are used here")
    return summary
