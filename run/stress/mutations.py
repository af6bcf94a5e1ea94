"""Shipped configs and variants of them, and what is done to them at random."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from s3prl_varan.config.reading import config_root, read_config
from s3prl_varan.tasks import task_names

CASES = 60  # of each base
WRONG: list[Any] = [
    "word",
    "",
    True,
    False,
    None,
    [],
    {},
    [1, 2],
    ["word", None],
    {"word": 1},
    float("nan"),
    float("inf"),
    -float("inf"),
]
HUGE = [10**12, 10**30, 1e300, -(10**30)]
SMALL = [0, -1, -0.5, 0.5, 1, 1.5, 2**31]
BAITED = (
    "downstream_expert.modelrc.select",
    "downstream_expert.modelrc.UtteranceLevel.pooling",
    "downstream_expert.modelrc.UtteranceLevel.activation",
    "downstream_expert.modelrc.UtteranceLevel.post_net.select",
    "downstream_expert.modelrc.UtteranceLevel.pre_net.activation",
    "downstream_expert.modelrc.DeepModel.model_type",
    "downstream_expert.modelrc.RNNs.module",
    "downstream_expert.modelrc.RNNs.sample_style",
    "optimizer.name",
    "optimizer.torch_optim_name",
    "scheduler.name",
    "varan.prior",
    "varan.prediction",
    "heads.kind",
    "runner.precision",
)
SHIPPED = [path for name in task_names() for path in sorted((config_root() / name).glob("*.yaml"))]
# Heads and options that no shipped config selects.
VARIANTS = {
    "emotion-deep": ("emotion", {"downstream_expert.modelrc.select": "DeepModel"}),
    "emotion-nets": (
        "emotion",
        {
            "downstream_expert.modelrc.UtteranceLevel": {
                "pooling": "AttentivePooling",
                "activation": "Tanh",
                "pre_net": {"select": "FrameLevel", "hiddens": [8], "activation": "GELU"},
                "post_net": {"select": "FrameLevel", "hiddens": [8, 6], "activation": "ReLU"},
            },
            "varan.layers": [1, 2],
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["fc1"], "layers": [0, 1]},
        },
    ),
    "asr-rnns": ("asr", {"heads.kind": "expert", "downstream_expert.modelrc.RNNs.dim": [6, 5]}),
    "asr-wav2letter": (
        "asr",
        {
            "heads.kind": "expert",
            "downstream_expert.modelrc.select": "Wav2Letter",
            "downstream_expert.modelrc.Wav2Letter": {"total_rate": 320},
        },
    ),
}
BASES = {f"{path.parent.name}-{path.stem}": (path.parent.name, path, {}) for path in SHIPPED}
BASES |= {
    name: (task, config_root() / task / "config.yaml", changes)
    for name, (task, changes) in VARIANTS.items()
}


def read_base(name: str) -> dict[str, Any]:
    """A base as plain values; heads small, since how large they are is not what is tested."""
    task, path, changes = BASES[name]
    raw = read_config(path)
    for key, value in changes.items():
        put(raw, key, value)
    heads = raw.setdefault("heads", {})
    if name in VARIANTS and heads.get("kind", "expert") == "expert":
        heads["dropout"] = 0
    model = raw["downstream_expert"].setdefault("modelrc", {})
    for key in ("project_dim", "projector_dim"):
        if key in model:
            model[key] = 8
    if "RNNs" in model:
        model["RNNs"]["dim"] = [6, 5]
    return raw


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    raw[last] = value


def drop(raw: dict[str, Any], key: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        raw = raw[section]
    del raw[last]


def keys_of(raw: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key, sections too."""
    for key, value in raw.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def get(raw: dict[str, Any], key: str) -> Any:
    for section in key.split("."):
        raw = raw[section]
    return raw


Case = tuple[str, dict[str, Any], list[str]]  # what was done, the config, names a message may have


def cases(name: str, bait: str, seed: object = "", count: int = CASES) -> Iterator[Case]:
    """So many mutations of a base, the same for a seed."""
    rng, base = random.Random(f"{name}{seed}"), read_base(name)
    kinds = [dropped, unknown, ill_typed, out_of_range, swapped, baited]
    weights = [10, 10, 40, 25, 5, 10]
    for kind in rng.choices(kinds, weights, k=count):
        raw = copy.deepcopy(base)
        what, named = kind(raw, rng, bait)
        yield f"{kind.__name__}: {what}", raw, named


def dropped(raw, rng, bait) -> tuple[str, list[str]]:
    key = rng.choice(list(keys_of(raw)))
    drop(raw, key)
    return key, [key.rpartition(".")[2]]


def unknown(raw, rng, bait) -> tuple[str, list[str]]:
    sections = ["", *(key for key in keys_of(raw) if isinstance(get(raw, key), dict))]
    section = rng.choice(sections)
    known = list(get(raw, section) if section else raw) or ["key"]
    key = rng.choice([rng.choice(known) + "x", "qwertz", "Ω", "a b"])
    put(raw, f"{section}.{key}".lstrip("."), rng.choice([1, "word", None, {}]))
    return f"{section}.{key}", [key]


def ill_typed(raw, rng, bait) -> tuple[str, list[str]]:
    key, value = rng.choice(list(keys_of(raw))), rng.choice(WRONG)
    put(raw, key, value)
    return f"{key} = {value!r}", [key.rpartition(".")[2]]


def out_of_range(raw, rng, bait) -> tuple[str, list[str]]:
    numbers = [
        key
        for key in keys_of(raw)
        if isinstance(get(raw, key), int | float | list) and get(raw, key) is not True
    ]
    key, value = rng.choice(numbers), rng.choice([*HUGE, *SMALL])
    if isinstance(get(raw, key), list) and rng.random() < 0.8:
        value = [value] * rng.choice([1, len(get(raw, key))])
    put(raw, key, value)
    return f"{key} = {value!r}", [key.rpartition(".")[2]]


def swapped(raw, rng, bait) -> tuple[str, list[str]]:
    """The contents of two sections change places."""
    sections = [key for key in keys_of(raw) if isinstance(get(raw, key), dict)]
    one, other = rng.sample(sections, 2)
    first, second = copy.deepcopy(get(raw, one)), copy.deepcopy(get(raw, other))
    put(raw, one, second)
    if not f"{other}.".startswith(f"{one}."):
        put(raw, other, first)
    return f"{one} and {other}", [one, other]


def drop_what_is_no_section(raw: dict[str, Any], key: str) -> None:
    """Make way for a key whose sections are values here."""
    for at in range(1, key.count(".") + 1):
        section = ".".join(key.split(".")[:at])
        try:
            found = get(raw, section)
        except KeyError:
            continue
        if not isinstance(found, dict):
            drop(raw, section)


def baited(raw, rng, bait) -> tuple[str, list[str]]:
    key = rng.choice(BAITED)
    drop_what_is_no_section(raw, key)
    put(raw, key, rng.choice([bait, f"nn.{bait}", f"torch.nn.{bait}", f"a if {bait} else b"]))
    return key, [key.rpartition(".")[2], key.split(".")[0]]
