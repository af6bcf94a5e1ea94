"""Damaged and odd recordings: a training works, or one message names the file."""

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from s3prl_varan.corpora.ravdess import prepare_ravdess
from s3prl_varan.errors import UserError
from stress.ground import DATA, Ground, Trial

A_ROUND = 12
RATE = 16000
WAVE = 0.3 * np.sin(np.arange(4000) / 5).astype("float32")
Spoil = Callable[[Path, random.Random], str]  # changes a clip; what was done


def truncated(path: Path, rng: random.Random) -> str:
    """The file ends anywhere."""
    data = path.read_bytes()
    kept = rng.choice([0, 1, 11, 12, 20, 43, 44, 45, rng.randrange(len(data))])
    path.write_bytes(data[:kept])
    return f"cut at {kept}"


def flipped(path: Path, rng: random.Random) -> str:
    """Random bytes, half of the time in the header."""
    data = bytearray(path.read_bytes())
    places = [rng.randrange(rng.choice([60, len(data)])) for _ in range(rng.choice([1, 3, 30]))]
    for at in places:
        data[at] = rng.randrange(256)
    path.write_bytes(data)
    return f"bytes {places}"


def not_finite(path: Path, rng: random.Random) -> str:
    """NaN, infinite or huge samples."""
    wave, value = WAVE.copy(), rng.choice([np.nan, np.inf, -np.inf, 1e30])
    wave[rng.randrange(len(wave)) : rng.choice([len(wave), None])] = value
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return f"samples of {value}"


def empty(path: Path, rng: random.Random) -> str:
    """No samples, or nearly none, or silence."""
    length, level = rng.choice([(0, 1), (1, 1), (10, 1), (399, 1), (4000, 0)])
    soundfile.write(path, level * WAVE[:length], RATE)
    return f"{length} samples of level {level}"


def wrong_suffix(path: Path, rng: random.Random) -> str:
    """Something else under the name of a wav."""
    kind = rng.choice(["flac", "ogg", "text", "zeros", "folder", "nowhere"])
    path.unlink()
    if kind in ("flac", "ogg"):
        soundfile.write(path.with_suffix(f".{kind}"), WAVE, RATE)
        path.with_suffix(f".{kind}").rename(path)
    elif kind == "text":
        path.write_text("no audio at all\n" * 100)
    elif kind == "zeros":
        path.write_bytes(bytes(5000))
    elif kind == "folder":
        path.mkdir()
    else:
        os.symlink(path.with_name("nowhere"), path)
    return kind


def coded(path: Path, rng: random.Random) -> str:
    """8 bits, other codes, many channels, odd rates."""
    subtype = rng.choice(["PCM_U8", "PCM_24", "DOUBLE", "ALAW", "ULAW", "GSM610", "IMA_ADPCM"])
    rate = rng.choice([1, 100, 8000, 11025, 15999, 44100, 192000, 655350])
    channels = 1 if subtype in ("GSM610", "IMA_ADPCM") else rng.choice([1, 2, 8])
    soundfile.write(path, np.stack([WAVE] * channels, axis=1), rate, subtype=subtype)
    return f"{subtype}, {channels} channels at {rate} Hz"


def promising(path: Path, rng: random.Random) -> str:
    """A header that promises more than there is, or less."""
    data = bytearray(path.read_bytes())
    at, value = data.index(b"data") + 4, rng.choice([0, 1, 3, 2**31 - 1, 2**32 - 1])
    data[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    return f"header says {value} bytes"


SPOILERS = (truncated, flipped, not_finite, empty, wrong_suffix, coded, promising)


def clips(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """One clip of a corpus, before or after its preparation."""
    for number in range(A_ROUND):
        spoil = SPOILERS[number % len(SPOILERS)]
        corpus = ground.new("corpus")
        shutil.copytree(ground.corpus, corpus, copy_function=os.link)
        clip = rng.choice(sorted(corpus.glob("Actor_*/*.wav")))
        data = clip.read_bytes()
        clip.unlink()  # the other corpora have it too
        clip.write_bytes(data)
        done = spoil(clip, rng)
        problem = _tried(ground, corpus, clip, prepare=rng.random() < 0.3)
        yield Trial(f"clip {spoil.__name__}", problem and f"{done}: {problem}")
        shutil.rmtree(corpus)


def _tried(ground: Ground, corpus: Path, clip: Path, *, prepare: bool) -> str:
    """What is wrong with how a corpus was prepared and trained on."""
    if prepare:
        shutil.rmtree(corpus / "meta_data")
        try:
            prepare_ravdess(corpus)
        except UserError as error:
            return "" if clip.name in str(error) else f"does not name it: {error}"
        except Exception as error:  # noqa: BLE001 (the failure that is looked for)
            return f"preparation: {type(error).__name__}: {error}"
    place = f"{DATA}.root={corpus},,{DATA}.meta_data={corpus / 'meta_data'}"
    argv = ground.train(ground.new("spoilt"), runner__total_steps=2, runner__eval_step=2)
    argv[argv.index("-o") + 1] += f",,{place}"
    ended = ground.run(argv)
    if ended.code == 0:
        return ended.tail if "Traceback" in ended.said else ""
    return ended.refusal or ("" if clip.name in ended.said else f"not named: {ended.tail}")
