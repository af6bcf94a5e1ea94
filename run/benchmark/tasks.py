"""The benchmark's tasks, on noise: a label a clip, and a sequence of symbols by CTC."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s3prl_varan.audio import SAMPLE_RATE, write_audio
from s3prl_varan.tasks.shapes.base import Item
from s3prl_varan.tasks.shapes.ctc import CTCTask
from s3prl_varan.tasks.shapes.utterance import UtteranceTask

LABELS_PER_SECOND = 14  # characters, about LibriSpeech's
NEVER = 10**6
CONFIG = {
    "runner": dict.fromkeys(("total_steps", "eval_step", "save_step", "log_step"), NEVER),
    "heads": {"kind": "linear", "dim": 256},
    "downstream_expert": {"datarc": {"pre_load": True, "num_workers": 0}},
}


def write_noise(folder: Path, clips: int, seconds: tuple[float, float]) -> None:
    """Files of noise between two lengths."""
    generator = np.random.default_rng(0)
    for number in range(clips):
        wave = 0.1 * generator.standard_normal(int(SAMPLE_RATE * generator.uniform(*seconds)))
        write_audio(folder / f"{number:03d}.wav", wave.astype("float32"))


class Noise:
    """What the tasks share: all splits are the .wav files of `root`, with random targets."""

    config = CONFIG
    data: Any

    def splits(self) -> list[str]:
        return ["train", "dev"]

    def items(self, split: str) -> list[Item]:
        paths = sorted(Path(self.data.root).glob("*.wav"))
        return [Item(path.stem, path, self.draw(1.0)) for path in paths]

    def draw(self, seconds: float) -> Any:
        """A random target for a clip."""
        raise NotImplementedError


class Labels(Noise, UtteranceTask):
    """One of four labels a clip."""

    name = "labels"

    @dataclass(frozen=True)
    class Data(UtteranceTask.Data):
        """Section `datarc`."""

        root: str = ""

    def read_outputs(self) -> list[str]:
        return list("abcd")

    def draw(self, seconds: float) -> int:
        return random.randrange(len(self.outputs))


class Symbols(Noise, CTCTask):
    """A sequence of 31 symbols and the blank."""

    name, metric = "symbols", "loss"
    records = score = texts = answers = None  # it is never evaluated

    @dataclass(frozen=True)
    class Data(CTCTask.Data):
        """Section `datarc`."""

        root: str = ""

    def read_outputs(self) -> list[str]:
        return [str(number) for number in range(32)]

    def draw(self, seconds: float) -> list[int]:
        count = max(1, round(LABELS_PER_SECOND * seconds))
        return [random.randrange(1, len(self.outputs)) for _ in range(count)]
