"""Checkpoints: what was trained, what it needs, how to go on. Loading one runs no code.

    states-STEP.ckpt   everything needed to resume
    dev-best.ckpt      the best on dev so far, for evaluation
Both hold the featurizer, the heads, and of the upstream only what was trained.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from s3prl_varan.config.settings import RunSettings, Stored
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.files import atomic_path
from s3prl_varan.model import SpeechModel
from s3prl_varan.tuning.lora import load_lora_state_dict, lora_state_dict

BEST = "dev-best.ckpt"
VERSION = 2  # of the format; 1 is that of s3prl_varan 0.1
NEEDED = ("upstream", "lora", "Upstream", "Featurizer", "Downstream", "Outputs", "Args", "Config")


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(payload, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours. UserError where it is none, is damaged or would need code to run."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and OS errors of many kinds
        said = type(error).__name__
        raise UserError(
            f"{path}: not a checkpoint that can be read ({said}): damaged, or made by another "
            "program. It was not unpickled, since that would run code from it."
        ) from error
    if isinstance(payload, dict) and "Featurizer" in payload and "Version" not in payload:
        raise UserError(
            f"{path} was made by s3prl_varan 0.1, whose checkpoints this version does not read. "
            "Use version 0.1 for it, or train again; reports read its "
            "result.json as before."
        )
    missing = [key for key in NEEDED if not isinstance(payload, dict) or key not in payload]
    if missing:
        raise UserError(f"{path}: not a checkpoint of this program (no {', '.join(missing)}).")
    return payload


def states_of(folder: Path) -> list[Path]:
    """The states-STEP.ckpt of an experiment folder, by step; other names are passed over."""
    found = [path for path in folder.glob("states-*.ckpt") if path.stem.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.stem.split("-")[1]))


def find_checkpoint(place: str, *, resume: bool) -> Path:
    """-e names a checkpoint or an experiment folder.

    Of a folder: the latest states-*.ckpt to resume, else the best on dev.
    """
    path = Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"-e: neither a checkpoint nor an experiment folder: {place}")
    states, best = states_of(path), path / BEST
    candidates = [best] if best.is_file() and not resume else states[-1:]
    if not candidates:
        wanted = "states-*.ckpt" if resume else BEST
        raise UserError(
            f"-e: no {wanted} in {place}: was this run trained to its first checkpoint?"
        )
    return candidates[0]


def stored_settings(payload: dict[str, Any], source: Path) -> Stored:
    """What a checkpoint keeps of its run's settings."""
    return Stored(payload["Args"], payload["Config"], payload["Outputs"], source)


def model_state(model: SpeechModel, settings: RunSettings) -> dict[str, Any]:
    """What a checkpoint holds of the model, its settings and what its outputs mean."""
    upstream, stored = model.upstream, settings.stored()
    lora, full = None, None
    if settings.flags.lora:
        lora = {"options": asdict(settings.config.lora), "state": lora_state_dict(upstream)}
    elif model.trains_upstream:
        full = upstream.state_dict()
    return {
        "Version": VERSION,
        "upstream": {
            "name": upstream.name,
            "ckpt": upstream.ckpt,
            "fingerprint": upstream.fingerprint(),
        },
        "lora": lora,
        "Upstream": full,
        "Featurizer": model.featurizer.state_dict(),
        "Downstream": model.downstream.state_dict(),
        "Outputs": settings.task.outputs,
        "Args": stored["args"],
        "Config": stored["config"],
    }


def load_model_state(model: SpeechModel, payload: dict[str, Any], source: Path) -> None:
    """Put a checkpoint's weights into `model`.

    UserError where it was made with another upstream or other sizes.
    """
    needs, has = payload["upstream"], model.upstream
    if needs["fingerprint"] != has.fingerprint():
        raise UserError(
            f"{source} was trained on upstream '{needs['name']}' (-k {needs['ckpt']}, weights "
            f"{needs['fingerprint'][:12]}), this one is '{has.name}' (-k {has.ckpt}, weights "
            f"{has.fingerprint()[:12]}). Give it the upstream it needs."
        )
    if payload["lora"] is not None:
        load_lora_state_dict(model.upstream, payload["lora"]["state"])
    if payload["Upstream"] is not None:
        _load(model.upstream, payload["Upstream"], "upstream", source)
    _load(model.featurizer, payload["Featurizer"], "featurizer", source)
    _load(model.downstream, payload["Downstream"], "downstream", source)


def _load(module: torch.nn.Module, state: dict[str, Any], part: str, source: Path) -> None:
    own = module.state_dict()
    problems = [f"{part}: no '{key}' in the checkpoint" for key in own if key not in state]
    problems += [f"{part}: '{key}' is not in this model" for key in state if key not in own]
    problems += [
        f"{part}: '{key}' is {tuple(state[key].shape)} there, {tuple(own[key].shape)} here"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        remedy = "Use the config and flags it was trained with."
        raise problems_error(f"{source} does not fit this model:", problems[:8], remedy)
    module.load_state_dict(state)
