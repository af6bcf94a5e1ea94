"""Mixtures of two speakers, made from any corpus with speakers, in Kaldi's layout.

OUT/{train,dev,test} each hold wav/, wav.scp, segments, utt2spk, spk2utt, reco2dur and rttm; paths
are relative to their folder. A turn is an utterance, with whatever silence it begins and ends with.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_varan.audio import SAMPLE_RATE, audio_files, read_audio, write_audio
from s3prl_varan.corpora.folds import LabelledClip
from s3prl_varan.corpora.kaldi import Turn, rttm_text
from s3prl_varan.corpora.labels import TABLE, read_prepared, stretch_of, usable_clips
from s3prl_varan.corpora.metadata import SPLITS, CorpusSummary, SplitRow
from s3prl_varan.corpora.preparation import output_folder, require_folder
from s3prl_varan.errors import UserError
from s3prl_varan.files import atomic_path, write_texts

if TYPE_CHECKING:
    import torch

PAUSE = (0.1, 1.0)  # seconds between the turns of a speaker
EDGE = 0.5  # seconds of quiet before the first turn and after the last, at most
LEVEL = 2.5  # dB that a speaker is louder or softer than the mean, at most
RMS, PEAK = 0.05, 0.9  # of an utterance of mean level; of a mixture, at most
HELD_OUT = 6  # dev and test get one speaker in so many, each, and at least two
Voices = Mapping[str, Sequence[LabelledClip]]  # a speaker's utterances


def prepare_mixtures(
    root: str | Path,
    out: str | Path | None = None,
    *,
    train: int = 400,
    dev: int = 50,
    test: int = 50,
    utterances: int = 3,
    seed: int = 0,
    skip_bad: bool = False,
) -> CorpusSummary:
    """Write mixtures of two speakers each into OUT, an empty folder; all of it or nothing.

    root: what `labels` prepared (its folder or table), a corpus in LibriSpeech's layout, or a
    folder with a folder for each speaker. train, dev, test: how many mixtures; no speaker is in two
    of them. utterances: of each speaker in a mixture, at most. The same seed makes the same
    mixtures. Raises UserError with all that is wrong with the recordings, unless skip_bad.
    """
    place = Path(root).parent if Path(root).name == TABLE else root
    folder = require_folder(place, "mixtures")
    if min(train, dev, test, utterances) < 1:
        raise UserError("--train, --dev, --test and --utterances: expected at least 1 each.")
    good, skipped = usable_clips(find_utterances(folder), [], folder, skip_bad=skip_bad)
    target = output_folder(folder, out)
    if any(target.iterdir()):
        raise UserError(f"{target} is not empty: choose another folder with --out.")
    summary = CorpusSummary(target, target, name="mixtures", skipped=skipped)
    voices = part_speakers(good, seed, summary.notes)
    summary.clips = train + dev + test
    with atomic_path(target) as made:
        for split, count in zip(SPLITS, (train, dev, test), strict=True):
            seconds, both = _write_split(made / split, voices[split], count, utterances, seed)
            shares = {"% of time both speak": round(100 * both / seconds)}
            speakers = len(voices[split])
            summary.rows.append(SplitRow("-", split, count, speakers, seconds / 3600, shares))
    return summary


# ---- the speakers


def find_utterances(root: Path) -> list[LabelledClip]:
    """All of a corpus, with their speakers and, where it says, splits. UserError for none."""
    tables = [place for place in (root, root / "meta_data") if (place / TABLE).is_file()]
    if tables:
        found = []
        for row in (row for row in read_prepared(tables[0]) if row["speaker"]):
            start, end = stretch_of(row)
            clip = row["name"], tables[0] / row["path"], "", row["speaker"]
            found.append(LabelledClip(*clip, split=row.get("split", ""), start=start, end=end))
    else:
        chapters = {path.parents[1] for path in root.glob("*/*/*/*.trans.txt")}
        found = [
            LabelledClip(path.stem, path, "", folder.name, split=_split_of(folder, root))
            for folder in sorted(chapters or filter(Path.is_dir, root.iterdir()))
            for path in audio_files(folder, below=True)
        ]
    if not found:
        raise UserError(
            f"{root}: no recordings with speakers. Expected a table with a column speaker that "
            "`prepare_data.py labels` wrote, LibriSpeech's layout, or a folder for each speaker."
        )
    return found


def _split_of(speaker: Path, root: Path) -> str:
    """Of a speaker's folder; train-clean-100 is train."""
    name = speaker.relative_to(root).parts[0]
    return next((split for split in SPLITS if name.startswith(split)), "")


def part_speakers(clips: Sequence[LabelledClip], seed: int, notes: list[str]) -> dict[str, Voices]:
    """The speakers of each split: the corpus's own, where each has two and shares none.

    Else they are drawn, and `notes` says so.
    """
    voices: dict[str, list[LabelledClip]] = defaultdict(list)
    for clip in clips:
        voices["_".join(clip.speaker.split())].append(clip)
    splits = {name: {clip.split for clip in own} for name, own in voices.items()}
    parts = [[name for name in sorted(voices) if splits[name] == {split}] for split in SPLITS]
    if min(map(len, parts)) < 2 or sum(map(len, parts)) < len(voices):
        notes.append("splits were drawn: of the corpus's own not each has two speakers for itself")
        names = sorted(voices)
        if len(names) < 2 * len(SPLITS):
            found = ", ".join(names)
            raise UserError(f"six speakers are needed, two in each split; found are: {found}.")
        random.Random(seed).shuffle(names)
        held = max(2, len(names) // HELD_OUT)
        parts = [names[2 * held :], names[:held], names[held : 2 * held]]
    return {
        split: {name: voices[name] for name in sorted(part)}
        for split, part in zip(SPLITS, parts, strict=True)
    }


# ---- mixing


def mix(voices: Voices, utterances: int, rng: random.Random) -> "tuple[torch.Tensor, list[Turn]]":
    """A waveform [num_samples] and its turns, by their start.

    The second speaker begins at any moment of the first one's turns or pauses.
    """
    import torch

    placed, turns = [], []
    start, stop = rng.uniform(0, EDGE), 0.0
    for name in rng.sample(sorted(voices), 2):
        level = RMS * 10 ** (rng.uniform(-LEVEL, LEVEL) / 20)
        begin, end = start, start
        for clip in rng.sample(voices[name], min(rng.randint(1, utterances), len(voices[name]))):
            wave = read_audio(clip.path, start=clip.start, end=clip.end)
            rms = wave.square().mean().sqrt().clamp_min(1e-6)
            placed.append((round(begin * SAMPLE_RATE), level / rms * wave))
            end = begin + len(wave) / SAMPLE_RATE
            turns.append(Turn(name, round(begin, 3), round(end, 3)))
            begin = end + rng.uniform(*PAUSE)
        start, stop = rng.uniform(start, end), max(stop, end)
    mixture = torch.zeros(round((stop + rng.uniform(0, EDGE)) * SAMPLE_RATE) + 1)
    for at, wave in placed:
        mixture[at : at + len(wave)] += wave
    mixture *= PEAK / max(PEAK, float(mixture.abs().max()))
    return mixture, sorted(turns, key=lambda turn: turn.start)


def _write_split(
    folder: Path, voices: Voices, count: int, utterances: int, seed: int
) -> tuple[float, float]:
    """Mixtures and their lists; seconds in all, and those in which both speak."""
    lines: dict[str, list[str]] = defaultdict(list)
    spoken: dict[str, list[str]] = defaultdict(list)
    total = both = 0.0
    for number in range(count):
        name = f"{folder.name}-{number:05d}"
        wave, turns = mix(voices, utterances, random.Random(f"{seed} {name}"))
        write_audio(folder / "wav" / f"{name}.wav", wave.numpy())
        seconds = len(wave) / SAMPLE_RATE
        lines["wav.scp"].append(f"{name} wav/{name}.wav\n")
        lines["reco2dur"].append(f"{name} {seconds:.3f}\n")
        lines["rttm"].append(rttm_text(name, turns))
        for at, turn in enumerate(turns):
            own = f"{turn.speaker}-{name}-{at}"
            lines["segments"].append(f"{own} {name} {turn.start:.3f} {turn.end:.3f}\n")
            lines["utt2spk"].append(f"{own} {turn.speaker}\n")
            spoken[turn.speaker].append(own)
        total += seconds
        for one, other in combinations(turns, 2):  # a speaker's own do not overlap
            both += max(0.0, min(one.end, other.end) - max(one.start, other.start))
    lines["spk2utt"] = [f"{name} {' '.join(sorted(own))}\n" for name, own in spoken.items()]
    write_texts({folder / name: "".join(sorted(rows)) for name, rows in lines.items()})
    return total, both
