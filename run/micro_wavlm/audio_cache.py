"""Folders of audio, decoded once into a memory-mapped int16 file that training reads crops from."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3prl_varan.audio import AUDIO_SUFFIXES, SAMPLE_RATE, read_audio
from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic

from .config import HOP, WINDOW

MIN_SAMPLES = SAMPLE_RATE // 2  # shorter pieces teach little


@dataclass(frozen=True)
class AudioCache:
    """All recordings end to end; piece i is samples[offsets[i]:offsets[i + 1]]."""

    samples: np.ndarray  # [total samples] int16, memory-mapped, 16 kHz
    offsets: np.ndarray  # [pieces + 1] int64, in samples
    folders: np.ndarray  # [pieces] int64: number of the folder that the piece is from

    @property
    def lengths(self) -> np.ndarray:
        """[pieces] samples."""
        return np.diff(self.offsets)

    @property
    def frame_counts(self) -> np.ndarray:
        """[pieces] frames that the convolutions make of each piece."""
        return (self.lengths - WINDOW) // HOP + 1

    @property
    def frame_offsets(self) -> np.ndarray:
        """[pieces + 1] first frame of each piece, of all pieces end to end."""
        return np.concatenate([[0], np.cumsum(self.frame_counts)])

    def wav(self, piece: int) -> np.ndarray:
        """[samples] float32 in [-1, 1)."""
        return as_float(self.samples[self.offsets[piece] : self.offsets[piece + 1]])


def as_float(samples: np.ndarray) -> np.ndarray:
    """int16 -> float32 in [-1, 1)."""
    return samples.astype(np.float32) / 32768.0


def find_audio(root: str | Path) -> list[Path]:
    """Every audio file below `root`, sorted. Raises UserError on an empty or absent folder."""
    suffixes = ", ".join(sorted(AUDIO_SUFFIXES))
    if not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give folders that hold {suffixes} files")
    files = sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise UserError(f"{root}: no audio files below it (looked for {suffixes})")
    return files


def build_cache(roots: list[str], out: Path, max_piece: float) -> AudioCache:
    """Decode everything below `roots` into `out`, unless a cache of the same folders is there.

    max_piece: seconds; longer recordings are cut into pieces of that length, pieces under 0.5 s are
    dropped.
    """
    index_path, audio_path = out / "audio.json", out / "audio.i16"
    key = {"roots": [str(Path(root)) for root in roots], "max_piece": max_piece}
    index = json.loads(index_path.read_text()) if index_path.is_file() else {}
    if index.get("key") != key:
        files = [(number, path) for number, root in enumerate(roots) for path in find_audio(root)]
        out.mkdir(parents=True, exist_ok=True)
        index_path.unlink(missing_ok=True)  # it comes last: where it is, the audio is whole
        index = {"key": key, **_decode(files, audio_path, int(max_piece * SAMPLE_RATE))}
        write_atomic(index_path, json.dumps(index))
    samples = np.memmap(audio_path, dtype=np.int16, mode="r")
    return AudioCache(samples, np.array(index["offsets"]), np.array(index["folders"]))


def _decode(files: list[tuple[int, Path]], target: Path, longest: int) -> dict[str, list[int]]:
    """Write the pieces of `files`, each with its folder's number; their offsets and folders."""
    offsets, folders = [0], []
    with open(target, "wb") as sink:
        for number, path in tqdm(files, desc="decoding", unit="file", mininterval=5):
            wav = np.clip(np.round(read_audio(path).numpy() * 32768.0), -32768, 32767)
            for start in range(0, len(wav), longest):
                piece = wav[start : start + longest].astype(np.int16)
                if len(piece) >= MIN_SAMPLES:
                    sink.write(piece.tobytes())
                    offsets.append(offsets[-1] + len(piece))
                    folders.append(number)
    if not folders:
        raise UserError(f"no recording of 0.5 s or more among {len(files)} files")
    return {"offsets": offsets, "folders": folders}
