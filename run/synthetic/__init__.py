"""A small corpus of emotional prosody made on the spot with eSpeak NG, in RAVDESS's form.

For trying the tools on a machine without data. Emotions differ by speaking rate, pitch, pitch
range, loudness and sentence melody alone; voices overlap in all of these, so that no single cue
decides. Results on it say nothing about human emotion.
"""

import json
import random
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from s3prl_varan.audio import to_16k, write_audio
from s3prl_varan.corpora.metadata import CorpusSummary
from s3prl_varan.corpora.preparation import absolute
from s3prl_varan.corpora.ravdess import SYNTHETIC_MARKER, prepare_ravdess
from s3prl_varan.errors import UserError

STATEMENTS = (
    "The evening train leaves from the old station",
    "My neighbour carried the boxes up the stairs",
)
_MALE = "m1 m2 m3 m4 m5 m6 m7 m8 adam ed john robert".split()
_FEMALE = "f1 f2 f3 f4 f5 Annie linda steph anika belinda Alicia Andrea".split()
_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029")


@dataclass(frozen=True)
class Prosody:
    """How an emotion is spoken, relative to the speaker's own manner.

    Pitch, range and volume in eSpeak's units (0 to 100).
    """

    rate: float  # factor on words per minute
    pitch: float  # added to the base pitch
    pitch_range: float  # added to the pitch range
    volume: float  # factor on the loudness
    ending: str = "."


NEUTRAL = Prosody(1.0, 0, 0, 1.0)
PROSODY = {  # by RAVDESS's emotion code
    "01": NEUTRAL,
    "02": Prosody(0.90, -4, -12, 0.85),  # calm
    "03": Prosody(1.10, 12, 30, 1.15),  # happy
    "04": Prosody(0.78, -10, -25, 0.70),  # sad
    "05": Prosody(1.15, 4, 25, 1.60, "!"),  # angry
    "06": Prosody(1.30, 20, -10, 0.90),  # fearful
    "07": Prosody(0.82, -6, 15, 1.15),  # disgust
    "08": Prosody(0.98, 18, 45, 1.15, "?"),  # surprised
}


def synthesise_corpus(
    root: str | Path, *, actors: int = 24, repetitions: int = 1, seed: int = 0
) -> int:
    """Write root/Actor_XX/03-01-EE-II-SS-RR-XX.wav (16 kHz mono) and a note that it is synthetic.

    actors: 8 to 24, odd ones with male voices. Per actor 8 emotions x 2 statements x `repetitions`,
    so 384 clips by default, whose number is returned; the intensity (normal, strong) alternates.
    The same arguments give the same samples with the same eSpeak NG.
    Raises UserError when eSpeak NG is missing, or root holds something else.
    """
    if not 8 <= actors <= 24 or not 1 <= repetitions <= 99:
        raise UserError(
            f"actors must be 8 to 24 and repetitions 1 to 99, got {actors} and {repetitions}"
        )
    base = absolute(root)
    library, data = _espeak()
    _claim(base)
    utterances = plan(actors, repetitions, seed)
    job = {"library": library, "data": data, "seed": seed + 1}
    rate, recordings = _speak(job | {"utterances": list(utterances.values())})
    for name, samples in zip(utterances, recordings, strict=True):
        write_audio(base / f"Actor_{name[-2:]}" / f"{name}.wav", _to_16k(samples, rate))
    return len(utterances)


def plan(actors: int, repetitions: int, seed: int) -> dict[str, dict[str, str | int]]:
    """What to say and how: {file stem: {text, voice, rate [words/min], volume, pitch, range}}."""
    utterances: dict[str, dict[str, str | int]] = {}
    for actor in range(1, actors + 1):
        chance = random.Random(f"{seed}-{actor}")
        pair, male = (actor - 1) // 2, actor % 2 == 1
        accent = _ACCENTS[(pair + (0 if male else 3)) % len(_ACCENTS)]
        voice = f"{accent}+{(_MALE if male else _FEMALE)[pair]}"
        base_rate = chance.uniform(150, 200)
        base_pitch = chance.uniform(25, 50) if male else chance.uniform(40, 65)
        base_range, base_volume = chance.uniform(35, 55), chance.uniform(75, 105)
        for code, emotion in PROSODY.items():
            for statement, text in enumerate(STATEMENTS, start=1):
                for repetition in range(1, repetitions + 1):
                    strong = code != "01" and (actor + int(code) + statement + repetition) % 2 == 0
                    by = 1.35 if strong else 1.0
                    rate = base_rate * emotion.rate**by * chance.gauss(1, 0.05)
                    volume = base_volume * emotion.volume**by * chance.gauss(1, 0.10)
                    pitch = base_pitch + by * emotion.pitch + chance.gauss(0, 4)
                    pitch_range = base_range + by * emotion.pitch_range + chance.gauss(0, 8)
                    fields = (3, 1, int(code), 1 + strong, statement, repetition, actor)
                    utterances["-".join(f"{field:02d}" for field in fields)] = {
                        "text": text + emotion.ending,
                        "voice": voice,
                        "rate": _clip(rate, 90, 400),
                        "volume": _clip(volume, 20, 200),
                        "pitch": _clip(pitch, 0, 99),
                        "range": _clip(pitch_range, 0, 99),
                    }
    return utterances


def prepare_synthetic(
    root: str | Path, out: str | Path | None = None, *, skip_bad: bool = False, **options: int
) -> CorpusSummary:
    """Make the corpus (options: see `synthesise_corpus`), then prepare it as RAVDESS."""
    synthesise_corpus(root, **options)
    return prepare_ravdess(root, out, skip_bad=skip_bad)


def _clip(value: float, low: int, high: int) -> int:
    return int(min(max(value, low), high))


def _espeak() -> tuple[str, str]:
    """Paths of the library and of its data folder."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "the synthetic corpus needs eSpeak NG: pip install espeakng-loader"
        ) from error
    library = Path(espeakng_loader.get_library_path())
    data = library.parent / "espeak-ng-data"
    if not library.is_file() or not data.is_dir():
        raise UserError(
            f"eSpeak NG is incomplete ({library}): pip install --force-reinstall espeakng-loader"
        )
    return str(library), str(data)


def _claim(base: Path) -> None:
    """Make the folder and its note, unless it holds something that is not a synthetic corpus."""
    if base.exists() and not base.is_dir():
        raise UserError(f"{base} is a file; give a folder for the synthetic corpus")
    if base.is_dir() and any(base.iterdir()) and not (base / SYNTHETIC_MARKER).exists():
        raise UserError(f"{base} is not empty and not a synthetic corpus; give a new folder")
    try:
        base.mkdir(parents=True, exist_ok=True)
        (base / SYNTHETIC_MARKER).write_text(
            "Synthetic speech made by s3prl_varan with eSpeak NG, in RAVDESS's form. Not RAVDESS "
            "and not human speech:\nfor trying the tools only. It may be deleted and made again at "
            "any time.\n",
            encoding="utf-8",
        )
        # Of an earlier run, maybe with more actors.
        for old in base.glob("Actor_??/03-01-??-??-??-??-??.wav"):
            old.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {base} ({error.strerror}). Choose another folder."
        ) from error


def _speak(job: dict) -> tuple[int, list[bytes]]:
    """Sample rate and 16-bit samples per utterance, from a fresh process (espeak.py says why)."""
    command = [sys.executable, str(Path(__file__).with_name("espeak.py"))]
    done = subprocess.run(command, input=json.dumps(job).encode(), capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit status {done.returncode}"
        raise UserError(
            f"eSpeak NG failed: {reason}. Try: pip install --force-reinstall espeakng-loader"
        )
    out, position = done.stdout, 4
    (rate,) = struct.unpack_from("=i", out)
    recordings = []
    while position < len(out):
        (count,) = struct.unpack_from("=i", out, position)
        recordings.append(out[position + 4 : position + 4 + 2 * count])
        position += 4 + 2 * count
    return rate, recordings


def _to_16k(samples: bytes, rate: int):  # noqa: ANN202 - float32 numpy array [num_samples]
    import numpy
    import torch

    wave = numpy.frombuffer(samples, dtype=numpy.int16).astype(numpy.float32) / 32768
    return to_16k(torch.from_numpy(wave), rate).clamp(-1, 1).numpy()
