"""-m inference: the prediction, the class probabilities and the layer posterior of files."""

import json
from argparse import Namespace
from pathlib import Path

import torch

from s3prl_varan.audio import read_audio
from s3prl_varan.errors import UserError
from s3prl_varan.layerwise.downstream import class_names, softmax_probs
from s3prl_varan.model import SpeechModel
from s3prl_varan.tasks.registry import Task


def infer(args: Namespace, task: Task, model: SpeechModel, device: torch.device) -> None:
    """Predict the file(s) of -t (joined by commas), print them, and append them to EXPDIR/inference.jsonl."""
    if not args.evaluate_split:
        raise UserError("-m inference needs -t, the audio file to predict.")
    if task.infer is not None:
        return task.infer(args, model, device)
    asked = args.evaluate_split
    paths = [Path(asked)] if Path(asked).exists() else [Path(name) for name in asked.split(",")]
    wavs = [read_audio(path) for path in paths]  # all readable before anything is predicted
    model.eval()
    names = class_names(model.downstream.expert)
    with open(Path(args.expdir) / "inference.jsonl", "a", encoding="utf-8") as log:
        for path, wav in zip(paths, wavs, strict=True):
            prediction, features = model.predict([wav.to(device)])
            probs = softmax_probs(prediction)[0].tolist()
            weights = features.layer_weights[0].tolist()
            labels = names or [str(index) for index in range(len(probs))]
            best = labels[max(range(len(probs)), key=probs.__getitem__)]
            by_class = dict(zip(labels, probs, strict=True))
            by_layer = dict(zip(map(str, model.featurizer.layers), weights, strict=True))
            row = {
                "file": str(path),
                "prediction": best,
                "probabilities": by_class,
                "layer_weights": by_layer,
            }
            log.write(json.dumps(row) + "\n")
            print(f"{path}: {best}")
            print(
                "  probabilities:",
                "  ".join(f"{label} {prob:.3f}" for label, prob in by_class.items()),
            )
            print(
                "  layers:       ",
                "  ".join(f"{layer}:{weight:.3f}" for layer, weight in by_layer.items()),
            )
