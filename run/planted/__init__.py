"""A corpus whose answer is known: which of two layers carries the label depends on the input.

Each clip's samples are the hidden states that `upstream.py` hands on: four layers, two of which
(CARRIERS) carry a label. In one, chosen by a bit, it is the clip's own, in the other any label at
all; each of the two shows which of them it is. So weights that follow the input can be right always
(I(L; X) up to ln 2 nats); the best that a fixed weighting of the layers can do is to guess between
the two labels, KNOWN_STATIC percent. (A linear head sees one layer or one sum of them: it cannot
use what the other shows.)
"""

import math
from pathlib import Path

import numpy as np
import soundfile

from planted.upstream import DIM, HOP, NUM_HIDDEN, SCALE

CARRIERS = (2, 3)  # hidden states
CLASSES = 6
NOISE = 0.3
FRAMES = 4
KNOWN_DYNAMIC = 100.0
KNOWN_STATIC = 100.0 * (0.5 + 0.5 / CLASSES)
KNOWN_INFORMATION = math.log(2)


def make_corpus(folder: Path, train: int, dev: int, test: int, seed: int = 0) -> Path:
    """Write the clips and labels.tsv (path, label, split) below `folder`; the table's path."""
    generator = np.random.default_rng(seed)
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    classes = generator.standard_normal((CLASSES, DIM - 1))
    classes *= 3 / np.linalg.norm(classes, axis=1, keepdims=True)
    lines = ["path\tlabel\tsplit"]
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        for number in range(count):
            label, other = generator.integers(CLASSES, size=2)
            bit = int(generator.integers(2))
            states = NOISE * generator.standard_normal((NUM_HIDDEN, DIM))
            states[CARRIERS[bit], :-1] += classes[label]
            states[CARRIERS[1 - bit], :-1] += classes[other]
            states[CARRIERS[bit], -1] += 2
            states[CARRIERS[1 - bit], -1] -= 2
            name = f"wavs/{split}{number:05d}.wav"
            frame = np.zeros(HOP)
            frame[: states.size] = states.ravel() / SCALE
            soundfile.write(folder / name, np.tile(frame, FRAMES).clip(-1, 1), 16000)
            lines.append(f"{name}\tclass{label}\t{split}")
    (folder / "labels.tsv").write_text("\n".join(lines) + "\n")
    return folder / "labels.tsv"
