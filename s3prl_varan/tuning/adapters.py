"""Adapters on disk: PEFT's format for Hugging Face models, our own for every other upstream.

    peft          FOLDER/adapter_config.json + FOLDER/adapter_model.safetensors, names as
                  AutoModel.from_pretrained has them
    safetensors   FOLDER/adapter.safetensors, names as in our upstream; the header holds options,
                  upstream and its fingerprint, as JSON
The tensors and header of either are checked when read; PEFT's adapter_config.json has no place for
a digest.

Matrices are named and shaped as PEFT has them: lora_A [rank, in], lora_B [out, rank].
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.files import write_atomic
from s3prl_varan.options import read_options
from s3prl_varan.tuning.lora import load_lora_state_dict, lora_report, lora_state_dict
from s3prl_varan.tuning.options import LoraOptions
from s3prl_varan.tuning.targets import describe_targets, linear_targets
from s3prl_varan.tuning.tensor_files import read_tensors, write_tensors

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OUR_WEIGHTS = "adapter.safetensors"
FORMAT = "s3prl_varan.lora.1"
HEADER = {"format", "options", "upstream"}
PEFT_PREFIX = "base_model.model."
# Variants of LoRA in PEFT's config that mean another function than ours.
REFUSED = (
    *("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("fan_in_fan_out", "lora_bias"),
)


@dataclass
class Adapter:
    """An adapter as read from disk."""

    options: LoraOptions
    state: dict[str, Tensor]  # as of lora_state_dict
    # Name, ckpt and fingerprint of what it was trained on; PEFT's format has none.
    upstream: dict[str, Any] = field(default_factory=dict)


def is_adapter(place: str | Path) -> bool:
    """Is this a folder with an adapter in it, in one of the formats?"""
    return any((Path(place) / name).is_file() for name in (PEFT_CONFIG, OUR_WEIGHTS))


def hugging_face_model(upstream: nn.Module) -> tuple[str, Any] | None:
    """Name and module of the outermost transformers.PreTrainedModel in the upstream, or None."""
    for name, module in upstream.named_modules():
        if any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__):
            return name, module
    return None


def write_adapter(
    folder: str | Path, upstream: nn.Module, info: dict[str, Any], *, fmt: str = "auto"
) -> Path:
    """Write the adapters of an upstream that apply_lora prepared. Returns the folder.

    info: the upstream's name, ckpt and fingerprint. fmt: peft | safetensors | auto (peft where the
    format can hold them). UserError where peft is asked for and cannot.
    """
    folder = Path(folder)
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
        write_tensors(folder / OUR_WEIGHTS, lora_state_dict(upstream), header)
    return folder


def read_adapter(folder: str | Path, upstream: nn.Module) -> Adapter:
    """Read either format; names come out as in `upstream`, which may have LoRA already or not.

    UserError where the files are damaged, mean something else, or have no place in this upstream.
    """
    folder = Path(folder)
    if (folder / PEFT_CONFIG).is_file():
        return _read_peft(folder, upstream)
    path = folder / OUR_WEIGHTS
    state, header = read_tensors(_there(path))
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path}: expected a safetensors file with format '{FORMAT}', found "
            f"{header.get('format')!r}."
        )
    if set(header) != HEADER:
        raise UserError(f"{path}: expected {sorted(HEADER)} in its header, found {sorted(header)}.")
    options = _read_options(json.loads(header["options"]), path)
    return Adapter(options, state, json.loads(header["upstream"]))


def load_adapter(upstream: nn.Module, folder: str | Path) -> None:
    """Start from an adapter on disk: ours, or PEFT's.

    upstream: as apply_lora prepared it, with its fingerprint asked for before. UserError if the
    adapter was trained on another upstream, or means another LoRA than this one; then it names
    the keys of the config to set.
    """
    adapter = read_adapter(folder, upstream)
    check_upstream(adapter.upstream, upstream, str(folder))
    if not lora_report(upstream).modules:
        raise UserError(f"{folder} holds LoRA adapters: add --lora to start from them.")
    problems = _differences(adapter, upstream)
    if problems:
        raise problems_error(
            f"{folder} is an adapter of another form than this run's. To start from it, set:",
            problems,
        )
    load_lora_state_dict(upstream, adapter.state)


def check_upstream(needs: dict[str, Any], upstream: Any, source: str) -> None:
    """UserError, with both names, if `source` was trained on other weights than `upstream`'s.

    needs: name, ckpt and fingerprint as `source` has them, or nothing.
    """
    needed = needs.get("fingerprint")
    if needed and hasattr(upstream, "fingerprint") and needed != upstream.fingerprint():
        raise UserError(
            f"{source} was trained on upstream '{needs['name']}' (-k {needs['ckpt']}, weights "
            f"{needed[:12]}), this one is '{upstream.name}' (-k {upstream.ckpt}, weights "
            f"{upstream.fingerprint()[:12]}). Give it the upstream it needs."
        )


def _differences(adapter: Adapter, upstream: nn.Module) -> list[str]:
    """Keys of the config, as the adapter needs them, in which this upstream's LoRA is another."""
    report = lora_report(upstream)
    theirs, ours = adapter.options, report.options
    keys = [] if theirs.rank == ours.rank else ["rank"]
    # The factor of the delta, which `alpha: null` makes 1, and PEFT's alphas need not be whole.
    if not math.isclose(theirs.scale * theirs.rank, ours.scale * ours.rank, rel_tol=1e-6):
        keys.append("alpha")
    # Not the options: `targets: ffn` and [fc1, fc2] may mean the same matrices.
    adapted = {name.rpartition(".lora_")[0] for name in adapter.state if ".lora_" in name}
    if adapted != set(report.modules):
        keys += ["targets", "layers"]
    if {name for name in adapter.state if ".lora_" not in name} != set(report.extras):
        keys += ["train_norms", "train_biases"]
    pairs = [(key, getattr(theirs, key), getattr(ours, key)) for key in keys]
    return [
        f"lora.{key}: {json.dumps(there)} (here {json.dumps(here)})"
        for key, there, here in pairs
        if there != here
    ]


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
    write_tensors(folder / PEFT_WEIGHTS, tensors, {"format": "pt"})
    write_atomic(folder / PEFT_CONFIG, json.dumps(config, indent=2))


def _read_peft(folder: Path, upstream: nn.Module) -> Adapter:
    path = folder / PEFT_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    _check_peft_config(config, path)
    tensors, _ = read_tensors(_there(folder / PEFT_WEIGHTS))
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
            f"{folder / PEFT_WEIGHTS} does not fit this upstream, these tensors have no place in "
            "it:",
            unknown[:8] or ["(the file is empty)"],
            "Was it trained on another model, or on a part (a decoder) that the upstream leaves "
            "out?",
        )
    dropout = config.get("lora_dropout") or 0.0
    values = {"rank": config["r"], "alpha": config["lora_alpha"], "dropout": dropout}
    options = _read_options(values, path)
    if config.get("use_rslora"):  # rank-stabilised: the factor is alpha / sqrt(rank)
        options = replace(options, alpha=options.scale * options.rank**1.5)
    where = describe_targets(upstream, {name.rpartition(".")[0] for name in state})
    return Adapter(replace(options, targets=where.targets, layers=where.layers), state)


def _check_peft_config(config: Any, path: Path) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: expected an adapter with peft_type LORA.")
    problems = [f"'{key}' is missing" for key in ("r", "lora_alpha") if key not in config]
    problems += [f"{key}: {config[key]} is not supported" for key in REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias: {config['bias']} is not supported")
    if problems:
        raise problems_error(
            f"{path}: only plain LoRA of one rank can be read.",
            problems,
            "Merge it with PEFT, use the result.",
        )


def _read_options(values: Any, path: Path) -> LoraOptions:
    """Options as a file has them, checked as those of a config are."""
    problems: list[str] = []
    options = read_options(LoraOptions, values, "lora", problems)
    if options is None:
        raise problems_error(f"{path} holds no LoRA options that can be used:", problems)
    return options


def _peft_names(upstream: nn.Module) -> dict[str, str]:
    """Name of a matrix as PEFT may know it -> its name in the upstream.

    PEFT's is inside AutoModel, or inside a model with a head.
    """
    found = hugging_face_model(upstream)
    if found is None:
        raise UserError(
            "This adapter is in PEFT's format, for Hugging Face models, but the upstream is none."
        )
    prefix, model = f"{found[0]}.", found[1]
    outer = ["", f"{model.base_model_prefix}."] if model.base_model_prefix else [""]
    if type(model).__name__ == "WhisperEncoder":
        outer += ["encoder.", "model.encoder."]
    names = [each.name for each in linear_targets(upstream) if each.name.startswith(prefix)]
    return {each + name.removeprefix(prefix): name for each in outer for name in names}


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no adapter: expected {OUR_WEIGHTS}, or {PEFT_CONFIG} with "
            f"{PEFT_WEIGHTS}."
        )
    return path
