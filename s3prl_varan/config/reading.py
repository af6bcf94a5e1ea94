"""The experiment's config: read from YAML, overridden with -o, checked as a whole before anything slow starts.

s3prl's structure (runner, optimizer, scheduler, specaug, downstream_expert) plus our sections: one per featurizer, carrying
its name (`varan:`), `lora:` and `upstream:`.
"""

import copy
import inspect
import re
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from s3prl_varan.config.options import (
    CHOICES,
    FEATURIZER_OPTIONS,
    SECTION_OPTIONS,
    HeadOptions,
    OptimizerOptions,
    RunnerOptions,
    UpstreamOptions,
)
from s3prl_varan.errors import UserError, did_you_mean, problems_error

FREE_SECTIONS = (
    "scheduler",
    "specaug",
    "downstream_expert",
)  # checked against what they are handed to


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 and everybody who writes configs do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """YAML text to plain Python values; never runs anything."""
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=512)
def _parsed(text: str) -> Any:
    """Parsed once: a sweep reads the same shipped configs for each of hundreds of cells, at 20 ms a file."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)


@dataclass
class Config:
    """The checked config. `raw` is the whole of it as plain values, for saving and for s3prl's experts."""

    raw: dict[str, Any]
    runner: RunnerOptions
    optimizer: OptimizerOptions
    optimizer_extra: dict[str, Any]
    featurizer: HeadOptions
    upstream: UpstreamOptions
    lora: Any  # LoraOptions


def config_root() -> Path:
    """Folder of the shipped configs: beside the package in a clone, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "downstream_configs"
    return beside if beside.is_dir() else package / "downstream_configs"


def config_path(downstream: str, featurizer: str, given: str | None) -> Path:
    """The config file to read: -c, or the shipped one of this downstream and featurizer."""
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise UserError(f"-c: no config file at {given}. Shipped ones are in {config_root()}.")
        return path
    folder = config_root() / downstream
    path = folder / f"{featurizer}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise UserError(
            f"No shipped config for -d {downstream} -f {featurizer} (there: {shipped}): give one with -c FILE."
        )
    return path


def read_config(path: Path) -> dict[str, Any]:
    """The file's content as plain values."""
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file that can be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: expected sections such as runner, optimizer, downstream_expert; found {type(raw).__name__}."
        )
    return raw


def split_override(text: str) -> list[tuple[list[str], Any]]:
    """ "config.a.b=1,,args.seed=2" -> [(["config", "a", "b"], 1), ...]; values are YAML."""
    pairs = []
    for item in filter(None, (part.strip() for part in text.split(",,"))):
        key, separator, value = item.partition("=")
        path = key.strip().split(".")
        if not separator or path[0] not in ("config", "args") or len(path) < 2:
            raise UserError(
                f"-o: expected config.SECTION.KEY=VALUE or args.FLAG=VALUE (several joined by ',,'), found '{item}'."
            )
        try:
            pairs.append((path, parse_yaml(value)))
        except yaml.YAMLError as error:
            raise UserError(f"-o: the value of {key.strip()} is not YAML: {value!r}.") from error
    return pairs


def override_config(
    raw: dict[str, Any], path: list[str], value: Any, known: dict[str, Any]
) -> None:
    """Set raw[path] = value; every key must exist in the config or in `known`, a reference of the same nested shape."""
    node: dict[str, Any] = raw
    reference: Any = known
    for depth, key in enumerate(path):
        choices = (
            {*(node or {}), *(reference or {})}
            if isinstance(reference, dict) or isinstance(node, dict)
            else set()
        )
        split = path[:-1] == ["downstream_expert", "datarc"] and _is_split(key, value)
        if key not in choices and not split:
            where = ".".join(["config", *path])
            listed = ", ".join(sorted(map(str, choices))) or "nothing below it"
            hint = did_you_mean(key, choices)
            raise UserError(f"-o: unknown key '{key}' in {where}.{hint} Known there: {listed}.")
        reference = reference.get(key) if isinstance(reference, dict) else None
        if depth == len(path) - 1:
            node[key] = value
        else:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]


def option_sections() -> dict[str, type]:
    """Our typed sections by name."""
    import s3prl_varan.featurizers.registry  # noqa: F401 (fills the registry)

    return {**SECTION_OPTIONS, **FEATURIZER_OPTIONS}


def known_keys(reference: dict[str, Any]) -> dict[str, Any]:
    """Every key a config may have: our typed sections, and `reference` (the shipped config) for the rest."""
    typed = {
        name: {field.name: None for field in fields(cls)} for name, cls in option_sections().items()
    }
    merged = {
        name: dict(section or {})
        for name, section in reference.items()
        if isinstance(section, dict)
    }
    for name, section in typed.items():
        merged[name] = {**merged.get(name, {}), **section}
    for name in FREE_SECTIONS:
        merged.setdefault(name, {})
    return merged


def check_config(
    raw: dict[str, Any], featurizer: str, reference: dict[str, Any], source: str
) -> Config:
    """The typed config, or one UserError that lists every unknown key and wrong value in `source`."""
    sections = option_sections()
    problems: list[str] = []
    for name in raw:
        if name not in sections and name not in FREE_SECTIONS:
            problems.append(
                f"unknown section '{name}'.{did_you_mean(name, [*sections, *FREE_SECTIONS])}"
            )
    built, extra = {}, {}
    for name, cls in sections.items():
        values = raw.get(name) or {}
        if not isinstance(values, dict):
            problems.append(f"{name}: expected keys and values, found {values!r}")
            values = {}
        if name == "optimizer":
            names = {field.name for field in fields(cls)}
            extra = {key: value for key, value in values.items() if key not in names}
            values = {key: value for key, value in values.items() if key in names}
        built[name] = build_options(cls, values, name, problems)
    problems += _runner_problems(built["runner"], built["upstream"])
    problems += _optimizer_problems(built["optimizer"], extra)
    problems += _scheduler_problems(raw.get("scheduler"))
    problems += _specaug_problems(raw.get("specaug"))
    problems += _downstream_problems(
        raw.get("downstream_expert"), reference.get("downstream_expert")
    )
    if problems:
        raise problems_error(f"{source}: {len(problems)} problem(s) in the config:", problems)
    return Config(
        raw,
        built["runner"],
        built["optimizer"],
        extra,
        built[featurizer],
        built["upstream"],
        built["lora"],
    )


def build_options(cls: type, values: dict[str, Any], section: str, problems: list[str]) -> Any:
    """A dataclass from plain values; what is unknown or of the wrong type goes into `problems`."""
    assert is_dataclass(cls)
    hints, kwargs = get_type_hints(cls), {}
    for key, value in values.items():
        if key not in hints:
            problems.append(
                f"{section}.{key}: unknown key.{did_you_mean(key, hints)} Known: {', '.join(hints)}."
            )
            continue
        try:
            kwargs[key] = coerce(value, hints[key])
        except ValueError:
            problems.append(f"{section}.{key}: expected {_readable(hints[key])}, found {value!r}")
            continue
        if key in CHOICES and kwargs[key] not in CHOICES[key]:
            expected = ", ".join("null" if choice is None else choice for choice in CHOICES[key])
            problems.append(
                f"{section}.{key}: expected one of {expected}; found {value!r}.{did_you_mean(value, CHOICES[key])}"
            )
            del kwargs[key]
    missing = [
        f.name
        for f in fields(cls)
        if f.default is MISSING and f.default_factory is MISSING and f.name not in kwargs
    ]
    if missing:
        problems.append(f"{section}: missing {', '.join(missing)}")
        return None
    try:
        return cls(**kwargs)
    except UserError as error:
        problems.append(f"{section}: {error}")
        return None


def coerce(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` (int, float, bool, str, list, dict, unions of them); ValueError if it is none."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return coerce(value, option)
            except ValueError:
                continue
        raise ValueError
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return [coerce(item, get_args(hint)[0]) for item in value]
    if hint is types.NoneType and value is None:
        return None
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if isinstance(value, float) else value
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    raise ValueError


def _readable(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
    return text.replace("NoneType", "null").replace("None", "null")


def _optimizer_problems(options: OptimizerOptions | None, extra: dict[str, Any]) -> list[str]:
    import torch

    if options is None:
        return []
    try:
        cls = optimizer_class(options)
    except UserError as error:
        return [str(error)]
    known = set(inspect.signature(cls).parameters) - {"params"}
    unknown = [key for key in extra if key not in known]
    assert issubclass(cls, torch.optim.Optimizer)
    return [
        f"optimizer.{key}: unknown to torch.optim.{cls.__name__}.{did_you_mean(key, known)}"
        for key in unknown
    ]


def optimizer_class(options: OptimizerOptions) -> type:
    """The torch.optim class of an optimizer section: s3prl's `TorchOptim` with a class name, or Adam and AdamW by name."""
    import torch

    known = {
        name: cls
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls) and name != "Optimizer"
    }
    name = options.torch_optim_name if options.name == "TorchOptim" else options.name
    if name not in known:
        key = (
            "optimizer.torch_optim_name"
            if options.name == "TorchOptim"
            else "optimizer.name (or TorchOptim)"
        )
        raise UserError(
            f"{key}: expected a class of torch.optim, found '{name}'.{did_you_mean(name, known)}"
        )
    return known[name]


def scheduler_functions() -> dict[str, Any]:
    """s3prl's learning-rate schedules by the name a config gives them."""
    from s3prl import schedulers

    return {
        name[len("get_") :]: fn
        for name, fn in vars(schedulers).items()
        if name.startswith("get_") and name != "get_scheduler"
    }


def _runner_problems(options: RunnerOptions | None, upstream: UpstreamOptions | None) -> list[str]:
    problems: list[str] = []
    if options is None:
        return problems
    if options.compile and upstream is not None and upstream.gradient_checkpointing:
        problems.append(
            "runner.compile: does not go with upstream.gradient_checkpointing, switch one of them off"
        )
    if options.batch_seconds is not None and not options.batch_by_length:
        problems.append(
            "runner.batch_seconds: sets the size of batches by length, so it needs runner.batch_by_length: true"
        )
    elif options.batch_seconds is not None and options.batch_seconds <= 0:
        problems.append(
            f"runner.batch_seconds: expected seconds > 0, found {options.batch_seconds:g}"
        )
    return problems


def _scheduler_problems(section: Any) -> list[str]:
    if not section:
        return []
    if not isinstance(section, dict) or "name" not in section:
        return [f"scheduler: expected `name:` and its options, found {section!r}"]
    known = scheduler_functions()
    if section["name"] not in known:
        return [
            f"scheduler.name: expected one of {', '.join(known)}.{did_you_mean(section['name'], known)}"
        ]
    takes = {*inspect.signature(known[section["name"]]).parameters, "warmup_ratio"} - {
        "optimizer",
        "num_training_steps",
    }
    unknown = [key for key in section if key not in takes and key != "name"]
    return [
        f"scheduler.{key}: unknown to {section['name']}.{did_you_mean(key, takes)}"
        for key in unknown
    ]


def _specaug_problems(section: Any) -> list[str]:
    from s3prl_varan.features.specaug import SpecAugOptions

    problems: list[str] = []
    if section and isinstance(section, dict):
        build_options(SpecAugOptions, section, "specaug", problems)
    elif section:
        problems.append(f"specaug: expected keys and values, or null for none; found {section!r}")
    return problems


def _is_split(key: str, value: Any) -> bool:
    """Lists under datarc whose key says what they are for are splits of the user's naming, e.g. `test-noisy: [noisy]`."""
    return isinstance(value, list) and str(key).startswith(("train", "dev", "test"))


def _downstream_problems(section: Any, reference: Any) -> list[str]:
    """datarc holds the keys s3prl's expert reads; the shipped config has them all. modelrc is the expert's own business."""
    if not isinstance(section, dict):
        return ["downstream_expert: this section is needed (datarc, modelrc)"]
    if not isinstance(reference, dict):
        return []
    problems = []
    known = reference.get("datarc") or {}
    for key, value in (section.get("datarc") or {}).items():
        if known and key not in known and not _is_split(key, value):
            problems.append(
                f"downstream_expert.datarc.{key}: unknown key.{did_you_mean(key, known)} Known: {', '.join(known)}."
            )
    return problems
