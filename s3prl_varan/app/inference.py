"""-m inference: what a trained model says of files and folders, in batches and bounded memory.

Tasks that transcribe cut a long recording at quiet moments; pieces of all files share the batches.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from s3prl_varan.audio import SAMPLE_RATE, header_samples
from s3prl_varan.model import SpeechModel
from s3prl_varan.recordings import Piece, find_audio, read_all
from s3prl_varan.tasks.shapes.base import Task
from s3prl_varan.training.guards import (
    check_longest,
    naming_clips,
    require_finite,
    require_finite_weights,
)  # fmt: skip

OUTPUT = "inference.jsonl"


def infer(asked: str, task: Task, model: SpeechModel, device: torch.device, folder: Path) -> None:
    """Predict the files and folders `asked` (joined by commas).

    Prints `path TAB answer` and appends a JSON line each to FOLDER/inference.jsonl. UserError, with
    everything that cannot be read or is too long, before anything is predicted.
    """
    # A file's name may have commas in it.
    names = [asked] if Path(asked).exists() else asked.split(",")
    paths = find_audio(names)
    model.to(device).eval()
    require_finite_weights(model)
    longest = round(SAMPLE_RATE * task.longest_piece) if task.longest_piece else None
    sizes = [(str(path), min(filter(None, (header_samples(path), longest)))) for path in paths]
    check_longest(model.upstream, sizes, device)
    done: list[dict[str, Any]] = []
    with open(folder / OUTPUT, "a", encoding="utf-8") as log:
        for batch in _batches(read_all(paths, task.longest_piece), task.batch_size(False)):
            for piece, answer in zip(batch, predict(task, model, batch, device), strict=True):
                done.append(answer)
                if piece.last:
                    row = {"file": str(piece.path), **joined(task, done)}
                    log.write(json.dumps(row, ensure_ascii=False) + "\n")
                    log.flush()
                    print(f"{row['file']}\t{task.text(row)}", flush=True)
                    done = []


def predict(
    task: Task, model: SpeechModel, pieces: list[Piece], device: torch.device
) -> list[dict[str, Any]]:
    """The task's answer for each piece, with its stretch and its layer weights."""
    wavs, names = [piece.wave.to(device) for piece in pieces], [str(each.path) for each in pieces]
    with naming_clips(names, wavs):
        prediction, feats = model.predict(wavs)
    require_finite(model, prediction, names)
    layers = list(map(str, model.featurizer.layers)) if model.featurizer.weighs_layers else []
    weights = feats.layer_weights.float().cpu().tolist()
    return [
        {
            "start": round(piece.start, 2),
            "end": round(piece.end, 2),
            **answer,
            "layer_weights": dict(zip(layers, shares, strict=bool(layers))),
        }
        for piece, answer, shares in zip(pieces, task.answers(prediction), weights, strict=True)
    ]


def joined(task: Task, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """A file's row out of its pieces; layer weights are means over its seconds."""
    seconds = [piece["end"] - piece["start"] for piece in pieces]
    total = sum(seconds) or 1.0
    row = {
        **{key: value for key, value in task.join(pieces).items() if key not in ("start", "end")},
        "seconds": pieces[-1]["end"],
        "layer_weights": {
            layer: sum(
                piece["layer_weights"][layer] * share
                for piece, share in zip(pieces, seconds, strict=True)
            )
            / total
            for layer in pieces[0]["layer_weights"]
        },
    }
    if len(pieces) > 1:
        row["segments"] = pieces
    return row


def _batches(pieces: Iterator[Piece], size: int) -> Iterator[list[Piece]]:
    while batch := list(islice(pieces, size)):
        yield batch
