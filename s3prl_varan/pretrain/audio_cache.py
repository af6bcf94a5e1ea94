"""Folders of audio, decoded once into a memory-mapped int16 file that training reads crops from."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3prl_varan.audio import AUDIO_SUFFIXES, read_audio
from s3prl_varan.errors import UserError

from .config import HOP, SAMPLE_RATE, WINDOW

SUFFIXES = ", ".join(sorted(AUDIO_SUFFIXES))
MIN_SAMPLES = SAMPLE_RATE // 2  # shorter pieces teach little


@dataclass
class AudioCache:
    """All recordings end to end. Piece i is samples[offsets[i]:offsets[i + 1]] and has frame_counts[i] frames."""

    samples: np.ndarray  # [total samples] int16, memory-mapped, 16 kHz
    offsets: np.ndarray  # [pieces + 1] int64, in samples
    folders: np.ndarray  # [pieces] int64: which of `roots` the piece is from
    roots: list[str]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def frame_counts(self) -> np.ndarray:
        """[pieces] frames that the convolutions make of each piece."""
        return (self.lengths - WINDOW) // HOP + 1

    @property
    def frame_offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.frame_counts)])

    def wav(self, piece: int) -> np.ndarray:
        """[samples] float32 in [-1, 1)."""
        start, end = self.offsets[piece], self.offsets[piece + 1]
        return self.samples[start:end].astype(np.float32) / 32768.0


def find_audio(roots: list[str]) -> list[tuple[int, Path]]:
    """(number of the root, file) of every audio file below `roots`, sorted. Raises UserError on an empty or absent folder."""
    found: list[tuple[int, Path]] = []
    for number, root in enumerate(roots):
        if not Path(root).is_dir():
            raise UserError(
                f"--data {root}: no such folder; give folders that hold {SUFFIXES} files"
            )
        files = sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise UserError(f"--data {root}: no audio files below it (looked for {SUFFIXES})")
        found += [(number, path) for path in files]
    return found


def decode(path: Path) -> np.ndarray:
    """Read `path` as [samples] int16, 16 kHz, mono. Raises UserError naming a file that cannot be read."""
    wav = read_audio(path).numpy()
    return np.clip(np.round(wav * 32768.0), -32768, 32767).astype(np.int16)


def build_cache(roots: list[str], out: Path, max_piece: float) -> AudioCache:
    """Decode everything below `roots` into `out`/audio.i16, unless a cache of the same folders is there already.

    max_piece: seconds; longer recordings are cut into pieces of that length, pieces under 0.5 s are dropped.
    """
    from tqdm import tqdm

    meta_path, audio_path = out / "audio.json", out / "audio.i16"
    key = {"roots": [str(Path(r)) for r in roots], "max_piece": max_piece}
    if meta_path.is_file() and json.loads(meta_path.read_text())["key"] == key:
        return _open(meta_path, audio_path)
    files = find_audio(roots)
    out.mkdir(parents=True, exist_ok=True)
    offsets, folders = [0], []
    partial = audio_path.with_suffix(".tmp")
    with open(partial, "wb") as sink:
        for number, path in tqdm(files, desc="decoding", unit="file", mininterval=5):
            wav = decode(path)
            step = int(max_piece * SAMPLE_RATE)
            for start in range(0, len(wav), step):
                piece = wav[start : start + step]
                if len(piece) >= MIN_SAMPLES:
                    sink.write(piece.tobytes())
                    offsets.append(offsets[-1] + len(piece))
                    folders.append(number)
    if not folders:
        raise UserError("no recording of 0.5 s or more below " + ", ".join(roots))
    os.replace(partial, audio_path)
    write_atomically(meta_path, json.dumps({"key": key, "offsets": offsets, "folders": folders}))
    return _open(meta_path, audio_path)


def _open(meta_path: Path, audio_path: Path) -> AudioCache:
    meta = json.loads(meta_path.read_text())
    samples = np.memmap(audio_path, dtype=np.int16, mode="r")
    return AudioCache(
        samples, np.array(meta["offsets"]), np.array(meta["folders"]), meta["key"]["roots"]
    )


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)
