"""Checkpoints: what was trained, what it needs, how to go on. Plain tensors and values, so loading never runs code.

    states-STEP.ckpt   everything needed to resume       dev-best.ckpt   the best on dev so far, for evaluation
Both hold the featurizer, the heads, and of the upstream only what was trained.
"""

import os
from pathlib import Path
from typing import Any

import torch

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.layerwise.downstream import HeadsOnly
from s3prl_varan.model import SpeechModel

BEST = "dev-best.ckpt"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(payload, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours; UserError where it is none, is damaged or would need code to run."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and OS errors of many kinds
        raise UserError(
            f"{path}: not a checkpoint that can be read ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(payload, dict) or "Featurizer" not in payload:
        raise UserError(f"{path}: not a checkpoint of this program (no 'Featurizer' in it).")
    return payload


def find_checkpoint(place: str, *, resume: bool) -> Path:
    """-e names a checkpoint or an experiment folder: of that, the latest states-*.ckpt to resume, else the best on dev."""
    path = Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"-e: neither a checkpoint nor an experiment folder: {place}")
    states = sorted(path.glob("states-*.ckpt"), key=lambda file: int(file.stem.split("-")[1]))
    best = path / BEST
    candidates = states[-1:] if resume else ([best] if best.is_file() else states[-1:])
    if not candidates:
        raise UserError(
            f"-e: no {'states-*.ckpt' if resume else BEST} in {place}: was this run trained to its first checkpoint?"
        )
    return candidates[0]


def model_state(model: SpeechModel, *, lora: dict[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint holds of the model. `lora`: the LoRA options as plain values, or None."""
    from s3prl_varan.tuning.lora import lora_state_dict

    upstream = model.upstream
    full = upstream.state_dict() if model.trains_upstream and lora is None else None
    return {
        "upstream": {
            "name": upstream.name,
            "ckpt": upstream.ckpt,
            "fingerprint": upstream.fingerprint(),
        },
        "lora": None if lora is None else {"options": lora, "state": lora_state_dict(upstream)},
        "Upstream": full,
        "Featurizer": model.featurizer.state_dict(),
        "Downstream": model.downstream.state_dict(),
    }


def load_model_state(model: SpeechModel, payload: dict[str, Any], source: Path) -> None:
    """Put a checkpoint's weights into `model`; UserError where it was made with another upstream or other sizes."""
    from s3prl_varan.tuning.lora import load_lora_state_dict

    needs, has = payload["upstream"], model.upstream
    if needs["fingerprint"] != has.fingerprint():
        raise UserError(
            f"{source} was trained on upstream '{needs['name']}' (-k {needs['ckpt']}, weights {needs['fingerprint'][:12]}), "
            f"this one is '{has.name}' (-k {has.ckpt}, weights {has.fingerprint()[:12]}). Give it the upstream it needs."
        )
    if payload["lora"] is not None:
        load_lora_state_dict(model.upstream, payload["lora"]["state"])
    if payload["Upstream"] is not None:
        _load(model.upstream, payload["Upstream"], "upstream", source)
    _load(model.featurizer, payload["Featurizer"], "featurizer", source)
    heads_alone = isinstance(model.downstream.expert, HeadsOnly)
    state = payload["Downstream"]
    if heads_alone:  # the expert's own buffers (such as its best score) have no place there
        state = {
            name: tensor for name, tensor in state.items() if name in model.downstream.state_dict()
        }
    _load(model.downstream, state, "downstream", source)


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
        raise problems_error(
            f"{source} does not fit this model:",
            problems[:8],
            "Use the config and flags it was trained with.",
        )
    module.load_state_dict(state)
