"""Write an adapted upstream as a plain checkpoint.

s3prl's `-u FAMILY_local -k CKPT` or Hugging Face's from_pretrained read it.
"""

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.files import atomic_path
from s3prl_varan.tuning.adapters import hugging_face_model
from s3prl_varan.tuning.lora import merge_lora, merged_state_dict

# Where the families keep their weights: hubert, wav2vec2, data2vec; wavlm, lighthubert;
# distilhubert; mockingjay, tera.
WEIGHT_KEYS = ("model_weight", "model", "Distiller", "Transformer")


def export_merged(upstream: nn.Module, base_ckpt: str | None, path: str | Path) -> Path:
    """Write the upstream with its LoRA adapters folded in; the upstream itself is left as it is.

    base_ckpt: the checkpoint file it was built from, whose other content (config, dictionaries) is
    kept; not needed for WavLM's family, nor for Hugging Face models, which become a folder.
    UserError where the base is missing or another's.
    """
    expert, path = getattr(upstream, "expert", upstream), Path(path)
    found = hugging_face_model(expert)
    if found is not None:
        return _export_folder(expert, found[1], path)
    payload = _wavlm_payload(expert) or _replaced_weights(expert, base_ckpt)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(payload, temporary)
    return path


def _export_folder(expert: Any, model: Any, path: Path) -> Path:
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} exists: a Hugging Face model becomes a folder, name a new one.")
    plain = copy.deepcopy(model)
    merge_lora(plain)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        plain.save_pretrained(temporary)
        if hasattr(expert, "extracter"):
            # s3prl's hf_* experts look for its settings beside the weights.
            expert.extracter.save_pretrained(temporary)
    return path


def _wavlm_payload(expert: nn.Module) -> dict[str, Any] | None:
    """{"cfg", "model"} for WavLM and UniSpeech-SAT, whose experts hold their whole config.

    None for others.
    """
    from s3prl.upstream.wavlm.WavLM import WavLM

    model = getattr(expert, "model", None)
    if not isinstance(model, WavLM):
        return None
    return {"cfg": dict(vars(model.cfg)), "model": merged_state_dict(model)}


def _replaced_weights(expert: nn.Module, base_ckpt: str | None) -> dict[str, Any]:
    """The base checkpoint with the merged weights in the place of its own."""
    if base_ckpt is None or not Path(base_ckpt).is_file():
        raise UserError(
            f"The checkpoint file that the upstream was built from is needed, found {base_ckpt}: "
            "its config goes into the merged one. Give it with --base_ckpt (s3prl keeps its "
            "downloads in ~/.cache/s3prl/download)."
        )
    try:
        with torch.serialization.safe_globals([Namespace]):
            base = torch.load(base_ckpt, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own
        raise UserError(
            f"{base_ckpt} cannot be loaded without running code from it ({type(error).__name__})."
        ) from error
    base = base if isinstance(base, dict) else {}
    key = next((key for key in WEIGHT_KEYS if isinstance(base.get(key), dict)), None)
    if key is None:
        raise UserError(
            f"{base_ckpt}: expected an s3prl checkpoint with weights under one of "
            f"{', '.join(WEIGHT_KEYS)}."
        )
    state = _state_like(base[key], expert, base_ckpt)
    return {**base, key: {**base[key], **state}}


def _state_like(base: dict[str, Any], expert: nn.Module, source: str) -> dict[str, Tensor]:
    """The merged state of that part of the expert whose names are the base's."""
    whole = merged_state_dict(expert)
    adapted = [name for name in whole if name not in expert.state_dict()]  # moved by LoRA
    # The parts of the expert that hold all adapters, with their names inside the part.
    parts = [
        {
            name.removeprefix(f"{part}."): value
            for name, value in whole.items()
            if name.startswith(f"{part}.")
        }
        for part, _ in expert.named_modules()
        if part and all(name.startswith(f"{part}.") for name in adapted)
    ]
    known = lambda state: (sum(name in base for name in state), -len(state))  # noqa: E731
    best = max(parts, key=known, default={})
    problems = [f"'{name}' is missing" for name in best if name not in base]
    problems += [
        f"'{name}' has another shape"
        for name in best
        if name in base and base[name].shape != best[name].shape
    ]
    if problems or not best:
        raise problems_error(
            f"{source} is not the checkpoint of this upstream:",
            problems[:8] or ["no weights in common"],
        )
    return best
