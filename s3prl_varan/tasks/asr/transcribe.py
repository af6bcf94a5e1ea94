"""-m inference for speech recognition: files and folders of any length to text, in batches and bounded memory.

A recording is read piece by piece and cut at the quietest moment of every 20 to 30 s; pieces of all files share the batches.
"""

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_varan.audio import SAMPLE_RATE, examine_audio_files
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.model import SpeechModel

AUDIO_SUFFIXES = (".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
LONGEST, EARLIEST_CUT, QUIET = (
    30.0,
    20.0,
    0.08,
)  # seconds: a piece, where it may be cut, the stretch that must be quiet
OUTPUT = "inference.jsonl"


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording."""

    file: int  # which of the files
    start: float  # seconds
    wave: Tensor  # [num_samples], 16 kHz
    last: bool  # of its file

    @property
    def end(self) -> float:
        """Seconds."""
        return self.start + len(self.wave) / SAMPLE_RATE


def transcribe_files(args: Namespace, model: SpeechModel, device: torch.device) -> None:
    """Transcribe the files and folders of -t (joined by commas): print `path TAB text`, append a JSON line each to EXPDIR."""
    paths = find_audio(args.evaluate_split.split(","))
    expert: Any = model.downstream.expert
    model.eval()
    done: list[dict[str, Any]] = []
    with open(Path(args.expdir) / OUTPUT, "a", encoding="utf-8") as log:
        for batch in _batches(all_pieces(paths), max(1, int(expert.datarc["eval_batch_size"]))):
            for piece, segment in zip(
                batch, recognise(model, [piece.wave.to(device) for piece in batch]), strict=True
            ):
                done.append({"start": round(piece.start, 2), "end": round(piece.end, 2), **segment})
                if piece.last:
                    row = {"file": str(paths[piece.file]), **joined(done, model.featurizer.layers)}
                    log.write(json.dumps(row, ensure_ascii=False) + "\n")
                    log.flush()
                    print(f"{row['file']}\t{row['text']}", flush=True)
                    done = []


def recognise(model: SpeechModel, waves: list[Tensor]) -> list[dict[str, Any]]:
    """Text, score, frames and layer weights of each waveform. score: mean over frames of the best unit's log-probability."""
    prediction, features = model.predict(waves)
    log_probs = prediction.log_probs.float().log_softmax(dim=-1).cpu().contiguous()
    lengths = prediction.lengths.tolist()
    expert: Any = model.downstream.expert
    _, words = expert._decode(log_probs, lengths)
    weights = features.layer_weights.float().cpu().tolist()
    best = log_probs.amax(dim=-1)
    return [
        {
            "text": " ".join(words[row]),
            "score": float(best[row, :length].mean()),
            "frames": length,
            "layer_weights": weights[row],
        }
        for row, length in enumerate(lengths)
    ]


def joined(segments: list[dict[str, Any]], layers: list[int]) -> dict[str, Any]:
    """A file's row out of its pieces: text, score and layer posterior (means over its frames), and the pieces if several."""
    frames = [segment["frames"] for segment in segments]
    total = sum(frames)
    mean = lambda values: (
        sum(value * count for value, count in zip(values, frames, strict=True)) / total
    )  # noqa: E731
    by_layer = zip(*(segment["layer_weights"] for segment in segments), strict=True)
    row: dict[str, Any] = {
        "text": " ".join(segment["text"] for segment in segments if segment["text"]),
        "score": mean([segment["score"] for segment in segments]),
        "seconds": segments[-1]["end"],
        "layer_weights": {
            str(layer): mean(values) for layer, values in zip(layers, by_layer, strict=True)
        },
    }
    if len(segments) > 1:
        shown = ("start", "end", "text", "score", "layer_weights")
        row["segments"] = [{key: segment[key] for key in shown} for segment in segments]
    return row


def find_audio(names: Iterable[str]) -> list[Path]:
    """Audio files, and those under the folders among `names`. UserError that lists everything that cannot be read."""
    paths: list[Path] = []
    problems: list[str] = []
    for name in names:
        place = Path(name).expanduser()
        if place.is_dir():
            inside = sorted(
                path
                for path in place.rglob("*")
                if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
            )
            paths += inside
            if not inside:
                problems.append(f"{place}: no audio files ({', '.join(AUDIO_SUFFIXES)}) in it")
        else:
            paths.append(place)
    problems += [
        file.problem
        for file in examine_audio_files(paths, min_samples=1, decode=False)
        if file.problem
    ]
    if problems:
        raise problems_error("-t: not everything can be transcribed:", problems)
    return paths


def all_pieces(paths: list[Path]) -> Iterator[Piece]:
    """Pieces of all files, in order."""
    for index, path in enumerate(paths):
        start, pieces = 0.0, read_pieces(path)
        wave = next(pieces, None)
        if wave is None:
            raise UserError(f"{path}: its header promises samples, but none can be decoded.")
        while wave is not None:
            following = next(pieces, None)
            yield Piece(index, start, wave, last=following is None)
            start += len(wave) / SAMPLE_RATE
            wave = following


def read_pieces(path: Path) -> Iterator[Tensor]:
    """[num_samples] at 16 kHz, mono, each at most LONGEST seconds; together they are the whole recording, nothing twice."""
    import soundfile
    import torchaudio

    held = torch.empty(0)
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate, longest = file.samplerate, int(LONGEST * file.samplerate)
            ended = False
            while not ended or len(held):
                while not ended and len(held) <= longest:
                    block = torch.from_numpy(file.read(longest, dtype="float32", always_2d=True))
                    ended = len(block) == 0
                    held = torch.cat([held, block.mean(dim=1)]) if not ended else held
                if len(held) == 0:
                    return
                if not bool(held.isfinite().all()):
                    raise UserError(f"{path}: holds values that are not finite (NaN or infinity)")
                cut = quietest(held, rate) if len(held) > longest else len(held)
                piece, held = held[:cut], held[cut:]
                yield (
                    piece
                    if rate == SAMPLE_RATE
                    else torchaudio.functional.resample(piece, rate, SAMPLE_RATE)
                )
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from error


def quietest(wave: Tensor, rate: int) -> int:
    """Sample in the middle of the quietest stretch between EARLIEST_CUT and LONGEST seconds."""
    size, start, end = int(QUIET * rate), int(EARLIEST_CUT * rate), int(LONGEST * rate)
    energy = wave[start:end].square().unfold(0, size, max(1, size // 2)).mean(dim=1)
    return start + int(energy.argmin()) * max(1, size // 2) + size // 2


def _batches(pieces: Iterator[Piece], size: int) -> Iterator[list[Piece]]:
    while batch := list(islice(pieces, size)):
        yield batch
