"""From a pre-training checkpoint to the weights that `-u micro_wavlm` loads: half precision, safetensors."""

import hashlib
import os
from pathlib import Path

import torch

from s3prl_varan.errors import UserError


def export_weights(checkpoint: Path, path: Path) -> str:
    """Write the encoder of `checkpoint` (no head, no optimiser) in float16 to `path`; returns its SHA-256."""
    from safetensors.torch import save

    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint {checkpoint}")
    state = torch.load(checkpoint, weights_only=True)["model"]
    encoder = {k.removeprefix("wavlm."): v for k, v in state.items() if k.startswith("wavlm.")}
    half = {k: v.to(torch.float16).contiguous() for k, v in encoder.items()}
    wrong = [k for k, v in half.items() if not v.isfinite().all()]
    if wrong:
        raise UserError(f"{checkpoint}: values beyond float16 in {', '.join(wrong)}")
    content = save(half)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(content)
    os.replace(partial, path)
    return hashlib.sha256(content).hexdigest()
