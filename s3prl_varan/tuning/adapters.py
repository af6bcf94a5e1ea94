"""Adapters on disk: PEFT's format for Hugging Face models, safetensors with a JSON header for every other upstream.

    peft          FOLDER/adapter_config.json + FOLDER/adapter_model.safetensors, names as AutoModel.from_pretrained has them
    safetensors   FOLDER/adapter.safetensors, names as in our upstream; the header holds options, upstream and its fingerprint

Matrices are named and shaped as PEFT has them: lora_A [rank, in], lora_B [out, rank].
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.tuning.lora import (
    LoraReport,
    apply_lora,
    load_lora_state_dict,
    lora_report,
    lora_state_dict,
)
from s3prl_varan.tuning.options import LoraOptions
from s3prl_varan.tuning.targets import linear_targets

PEFT_CONFIG, PEFT_WEIGHTS, OWN = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter.safetensors",
)
FORMAT = "s3prl_varan.tuning.lora.1"
PEFT_PREFIX = "base_model.model."
FORMATS = ("auto", "peft", "safetensors")


@dataclass
class Adapter:
    """An adapter as read from disk."""

    options: LoraOptions
    state: dict[str, Tensor]  # as of lora_state_dict
    upstream: dict[str, Any] = field(
        default_factory=dict
    )  # name, ckpt, fingerprint; PEFT's format has none


def hugging_face_model(upstream: nn.Module) -> tuple[str, Any] | None:
    """Name and module of the outermost transformers.PreTrainedModel in the upstream, or None."""
    for name, module in upstream.named_modules():
        if any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__):
            return name, module
    return None


def write_adapter(
    folder: str | Path, upstream: nn.Module, info: dict[str, Any], *, fmt: str = "auto"
) -> Path:
    """Write the adapters of an upstream that apply_lora prepared. info: its name, ckpt and fingerprint.

    fmt: peft | safetensors | auto (peft where the format can hold them). Returns the folder. UserError where peft cannot.
    """
    folder = Path(folder)
    assert fmt in FORMATS, fmt
    reasons = _peft_problems(upstream)
    if fmt == "peft" and reasons:
        raise problems_error(
            "PEFT's format cannot hold these adapters:",
            reasons,
            "Use --format safetensors, or --merge.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if fmt == "peft" or (fmt == "auto" and not reasons):
        _write_peft(folder, upstream, info)
    else:
        header = {
            "format": FORMAT,
            "options": json.dumps(asdict(lora_report(upstream).options)),
            "upstream": json.dumps(info),
        }
        _write_safetensors(folder / OWN, lora_state_dict(upstream), header)
    return folder


def read_adapter(folder: str | Path, upstream: nn.Module) -> Adapter:
    """Read either format; names come out as in `upstream`. UserError where the files are damaged or mean something else."""
    folder = Path(folder)
    if (folder / PEFT_CONFIG).is_file():
        return _read_peft(folder, upstream)
    state, header = _read_safetensors(folder / OWN)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{folder / OWN}: expected a safetensors file with format '{FORMAT}', found {header.get('format')!r}."
        )
    return Adapter(
        LoraOptions(**json.loads(header["options"])), state, json.loads(header["upstream"])
    )


def load_adapter(upstream: nn.Module, folder: str | Path) -> LoraReport:
    """Put an adapter from disk on an upstream without LoRA. UserError if it was trained on another upstream."""
    adapter = read_adapter(folder, upstream)
    check_upstream(adapter.upstream, upstream, str(folder))
    report = apply_lora(upstream, adapter.options)
    load_lora_state_dict(upstream, adapter.state)
    return report


def check_upstream(needs: dict[str, Any], upstream: Any, source: str) -> None:
    """UserError, with both names, if `source` was trained on other weights than those of `upstream` (an Upstream)."""
    if (
        needs.get("fingerprint")
        and hasattr(upstream, "fingerprint")
        and needs["fingerprint"] != upstream.fingerprint()
    ):
        raise UserError(
            f"{source} was trained on upstream '{needs['name']}' (-k {needs['ckpt']}, weights {needs['fingerprint'][:12]}), "
            f"this one is '{upstream.name}' (-k {upstream.ckpt}, weights {upstream.fingerprint()[:12]}). "
            "Give it the upstream it needs."
        )


def _peft_problems(upstream: nn.Module) -> list[str]:
    """Why PEFT's format cannot hold the adapters, or PEFT would not honour them."""
    found, report = hugging_face_model(upstream), lora_report(upstream)
    if found is None:
        return ["the upstream is no Hugging Face model"]
    problems = []
    if report.extras:
        problems.append(f"norms or biases were trained too ({len(report.extras)} tensors)")
    if any(not name.startswith(f"{found[0]}.") for name in report.modules):
        problems.append("some adapted matrices are outside the Hugging Face model")
    if found[1].config.model_type == "wavlm" and any("_proj" in name for name in report.modules):
        problems.append(
            "Hugging Face's WavLM reads the raw weights of its attention, where PEFT has no effect"
        )
    return problems


def _write_peft(folder: Path, upstream: nn.Module, info: dict[str, Any]) -> None:
    found = hugging_face_model(upstream)
    assert found is not None
    prefix, model = found
    # AutoModel makes a whole WhisperModel, the upstream holds its encoder.
    outer = "encoder." if type(model).__name__ == "WhisperEncoder" else ""
    report = lora_report(upstream)
    options = report.options
    names = {name: outer + name[len(prefix) + 1 :] for name in report.modules}
    state = lora_state_dict(upstream)
    tensors = {
        f"{PEFT_PREFIX}{names[name]}.{part}.weight": state[f"{name}.{part}"]
        for name in names
        for part in ("lora_A", "lora_B")
    }
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": info.get("ckpt"),
        "r": options.rank,
        "lora_alpha": options.rank if options.alpha is None else options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": sorted(names.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    _write_safetensors(folder / PEFT_WEIGHTS, tensors, {"format": "pt"})
    _write_atomic(folder / PEFT_CONFIG, json.dumps(config, indent=2).encode())


def _read_peft(folder: Path, upstream: nn.Module) -> Adapter:
    path = folder / PEFT_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    _check_peft_config(config, path)
    tensors, _ = _read_safetensors(folder / PEFT_WEIGHTS)
    places = _peft_names(upstream)
    state, unknown = {}, []
    for key, value in tensors.items():
        stem, _, part = key.removeprefix(PEFT_PREFIX).removesuffix(".weight").rpartition(".")
        if part in ("lora_A", "lora_B") and stem in places:
            state[f"{places[stem]}.{part}"] = value.float()
        else:
            unknown.append(key)
    if unknown or not state:
        raise problems_error(
            f"{folder / PEFT_WEIGHTS} does not fit this upstream, these tensors have no place in it:",
            unknown[:8] or ["(the file is empty)"],
            "Was it trained on another model, or on a part (a decoder) that the upstream leaves out?",
        )
    rank, alpha = config["r"], config["lora_alpha"]
    if config.get("use_rslora"):
        alpha = alpha * rank**0.5  # rank-stabilised: alpha / sqrt(rank)
    targets = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in state))
    return Adapter(
        LoraOptions(
            rank=rank, alpha=alpha, dropout=config.get("lora_dropout") or 0.0, targets=targets
        ),
        state,
    )


def _check_peft_config(config: Any, path: Path) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: expected an adapter with peft_type LORA.")
    problems = [f"'{key}' is missing" for key in ("r", "lora_alpha") if key not in config]
    refused = (
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "fan_in_fan_out",
        "lora_bias",
    )
    problems += [f"{key}: {config[key]} is not supported" for key in refused if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias: {config['bias']} is not supported")
    if problems:
        raise problems_error(
            f"{path}: only plain LoRA of one rank can be read.",
            problems,
            "Merge it with PEFT, use the result.",
        )


def _peft_names(upstream: nn.Module) -> dict[str, str]:
    """Module name as PEFT may know it (inside AutoModel, or a model with a head) -> name in the upstream."""
    found = hugging_face_model(upstream)
    if found is None:
        raise UserError(
            "This adapter is in PEFT's format, for Hugging Face models, but the upstream is none."
        )
    prefix, model = found
    outer = ["", f"{model.base_model_prefix}."] if model.base_model_prefix else [""]
    if type(model).__name__ == "WhisperEncoder":
        outer += ["encoder.", "model.encoder."]
    inner = [
        target.name for target in linear_targets(upstream) if target.name.startswith(f"{prefix}.")
    ]
    return {each + name[len(prefix) + 1 :]: name for each in outer for name in inner}


def _write_safetensors(path: Path, state: dict[str, Tensor], header: dict[str, str]) -> None:
    from safetensors.torch import save

    _write_atomic(path, save({key: value.contiguous() for key, value in state.items()}, header))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no adapter: expected {OWN}, or {PEFT_CONFIG} with {PEFT_WEIGHTS}."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors, is it damaged? ({error})"
        ) from error


def _write_atomic(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
