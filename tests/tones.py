"""What tests of audio and corpora share."""

import csv

import numpy
import soundfile


def tone(path, seconds=0.05, rate=16000, channels=1):
    """A quiet tone whose pitch depends on the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = numpy.arange(int(seconds * rate)) / rate
    wave = 0.3 * numpy.sin(2 * numpy.pi * (200 + sum(path.stem.encode()) % 200) * time)
    soundfile.write(path, numpy.stack([wave] * channels, axis=1), rate)
    return path


def table(path):
    """Rows of a length table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
