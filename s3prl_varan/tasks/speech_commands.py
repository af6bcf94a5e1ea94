"""Keyword spotting (KS), `-d speech_commands`: ten words, `_unknown_` and `_silence_`.

Speech Commands v1 as it is unpacked: a folder for each of 30 words, with dev set apart by a hash of
the speaker; recordings of noise, of which random seconds are silence; and the test set with a
folder for each class.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError
from s3prl_varan.options import Count, Natural
from s3prl_varan.tasks.shapes.base import Item, first_there
from s3prl_varan.tasks.shapes.clips import random_stretch
from s3prl_varan.tasks.shapes.utterance import UtteranceTask

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
CLASSES = (*WORDS, UNKNOWN, SILENCE)
GAIN = 10 ** (-3 / 20)  # s3prl turns every clip down by 3 dB
SECOND = SAMPLE_RATE
SECTION = "config.downstream_expert.datarc"


class SpeechCommands(UtteranceTask):
    """Which of ten words a second of speech is, if any."""

    name = "speech_commands"
    title = "keyword spotting (KS)"
    draws_anew = True
    submission_folder = "ks_public"
    remedy = (
        "Unpack speech_commands_v0.01 and speech_commands_test_set_v0.01, a folder each, and give "
        "the folder that holds both with --data, or set speech_commands_root and "
        f"speech_commands_test_root in {SECTION}."
    )

    @dataclass(frozen=True, kw_only=True)
    class Data:
        """Section `downstream_expert.datarc`."""

        speech_commands_root: str  # words of train and dev, and _background_noise_
        speech_commands_test_root: str
        batch_size: Count = 32  # of training and of evaluation
        num_workers: Natural = 4
        pre_load: bool = False  # keep decoded clips in memory

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        return {
            "speech_commands_root": first_there(root, "speech_commands_v0.01", "train"),
            "speech_commands_test_root": first_there(
                root, "speech_commands_test_set_v0.01", "test"
            ),
        }

    def batch_size(self, training: bool) -> int:
        return self.data.batch_size

    def read_outputs(self) -> list[str]:
        return list(CLASSES)

    def items(self, split: str) -> list[Item]:
        # s3prl draws dev as it draws train, balanced and at random, so that no two evaluations are
        # of the same clips. Here every dev clip counts once.
        return self._test_items() if split == "test" else self._word_items(split)

    def load(self, item: Item, rng: random.Random, training: bool) -> Tensor:
        if not _is_noise(item):
            return GAIN * super().load(item, rng, training)
        # In an evaluation the same second every time.
        return GAIN * random_stretch(
            item.path, SECOND, rng if training else random.Random(item.name)
        )

    def num_samples(self, item: Item, training: bool) -> int:
        whole = super().num_samples(item, training)
        return min(whole, SECOND) if _is_noise(item) else whole

    def weights(self, items: Sequence[Item]) -> list[float]:
        """Every class is drawn as often as any other."""
        count = Counter(item.target for item in items)
        return [1 / count[item.target] for item in items]

    def _word_items(self, split: str) -> list[Item]:
        root = Path(self.data.speech_commands_root)
        folders = _folders(root, "speech_commands_root")
        clips = [clip for folder in folders if folder.name != NOISE for clip in _clips(folder)]
        noise = _clips(root / NOISE)
        missing = sorted(set(WORDS) - {clip.parent.name for clip in clips})
        chosen = [clip for clip in clips if _split_of(clip) == split]
        problems = []
        if missing:
            problems.append(f"{root}: no clips of {', '.join(missing)} (WORD/*.wav)")
        elif not chosen:
            problems.append(f"{root}: by the hash of the speakers, none of its clips is in {split}")
        if not noise:
            problems.append(f"{root / NOISE}: no *.wav, which are the class {SILENCE}")
        if problems:
            raise UserError("\n".join(problems))
        return [_item(clip) for clip in [*chosen, *noise]]

    def _test_items(self) -> list[Item]:
        root = Path(self.data.speech_commands_test_root)
        folders = _folders(root, "speech_commands_test_root")
        known = f"expected folders of the test set: {', '.join(CLASSES)}"
        others = [folder.name for folder in folders if folder.name not in CLASSES]
        if others:
            raise UserError(f"{root}: no class is named {', '.join(others)}; {known}")
        clips = [clip for folder in folders for clip in _clips(folder)]
        if not clips:
            raise UserError(f"{root}: no CLASS/*.wav in it; {known}")
        return [_item(clip) for clip in clips]


def _folders(root: Path, key: str) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{SECTION}.{key}: no folder {root}")
    return sorted(path for path in root.iterdir() if path.is_dir())


def _clips(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.wav"))


def _item(clip: Path) -> Item:
    folder = clip.parent.name
    label = SILENCE if folder == NOISE else folder if folder in CLASSES else UNKNOWN
    speaker = _speaker(clip) if "_nohash_" in clip.name else None
    return Item(f"{folder}-{clip.name}", clip, CLASSES.index(label), speaker)


def _is_noise(item: Item) -> bool:
    return item.path.parent.name == NOISE


def _speaker(clip: Path) -> str:
    return clip.name.partition("_nohash_")[0]


def _split_of(clip: Path) -> str:
    """train, dev, or the tenth that the test set replaces, by the rule in the corpus's README."""
    number = int(hashlib.sha1(_speaker(clip).encode()).hexdigest(), 16)
    percent = number % 2**27 * (100 / (2**27 - 1))
    return "dev" if percent < 10 else "left out" if percent < 20 else "train"
