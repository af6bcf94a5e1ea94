"""Mutated configs: each runs as it says, or is refused by one message that names the key."""

import copy
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from s3prl_varan.app.cli import parse_args
from s3prl_varan.config.optimizer import build_optimizer, build_scheduler
from s3prl_varan.config.reading import config_root, read_config
from s3prl_varan.config.resolve import resolve
from s3prl_varan.errors import UserError
from s3prl_varan.tasks import task_names

CASES = 60  # of each base
DIM, HIDDEN, RATE = 24, 5, 320
HANGS = 30  # seconds
# What heads put out, where only a corpus would say.
OUTPUTS = {
    "emotion": ["angry", "happy", "neutral", "sad"],
    "classification": ["high", "low", "middle"],
    "fluent_commands": {
        "action": ["bring", "increase"],
        "object": ["shoes", "volume", "heat"],
        "location": ["none", "kitchen"],
    },
}
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


def cases(name: str, bait: str) -> Iterator[Case]:
    """CASES mutations of a base, the same every time."""
    rng, base = random.Random(name), read_base(name)
    kinds = [dropped, unknown, ill_typed, out_of_range, swapped, baited]
    weights = [10, 10, 40, 25, 5, 10]
    for kind in rng.choices(kinds, weights, k=CASES):
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


def baited(raw, rng, bait) -> tuple[str, list[str]]:
    key = rng.choice(BAITED)
    for at in range(1, key.count(".") + 1):
        section = ".".join(key.split(".")[:at])
        try:
            found = get(raw, section)
        except KeyError:
            continue
        if not isinstance(found, dict):
            drop(raw, section)
    put(raw, key, rng.choice([bait, f"nn.{bait}", f"torch.nn.{bait}", f"a if {bait} else b"]))
    return key, [key.rpartition(".")[2], key.split(".")[0]]


@pytest.fixture
def hang_guard():
    """A case that hangs fails instead of stopping the tests."""

    def late(*_: object) -> None:
        raise AssertionError(f"a case took more than {HANGS} s")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", BASES)
def test_a_mutated_config_works_or_is_refused_by_name(name, tmp_path, hang_guard):
    trap, path = tmp_path / "touched", tmp_path / "config.yaml"
    bait = f"__import__('os').system('touch {trap}')"
    task = BASES[name][0]
    failures, ends = [], {"works": 0, "refused": 0}
    for what, raw, named in cases(name, bait):
        path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
        signal.alarm(HANGS)
        try:
            build(task, path)
            ends["works"] += 1
        except UserError as error:
            ends["refused"] += 1
            said = str(error)
            if not any(each in said for each in named):
                failures.append(f"{what}: the message does not name it: {said}")
            if "Traceback" in said or 'File "' in said or "0x" in said:
                failures.append(f"{what}: not a message for people: {said}")
        except Exception as error:  # noqa: BLE001 (any other is the failure that is looked for)
            failures.append(f"{what}: {type(error).__name__}: {error}")
        signal.alarm(0)
        assert not trap.exists(), what
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
    assert ends["works"] > CASES / 20 and ends["refused"] > CASES / 3, ends


def build(task: str, path: Path) -> None:
    """All that is made of a config before a corpus or an upstream is touched."""
    args = ["-u", "wavlm", "-d", task, "-f", "varan", "-c", str(path)]
    settings = resolve(parse_args(args))
    json.dumps(settings.stored())
    config = settings.config
    if task in OUTPUTS:
        settings.task.__dict__["outputs"] = OUTPUTS[task]
    featurizer = settings.featurizer.build(HIDDEN, DIM, config.featurizer, None)
    config.featurizer.objective(settings.task.released_nll)
    heads = settings.task.build_heads(DIM, featurizer.num_outputs, RATE, config.heads)
    assert isinstance(heads, nn.Module) and list(heads.parameters())
    parts = {"featurizer": featurizer, "downstream": nn.Linear(2, 2)}
    optimizer = build_optimizer(parts, config.optimizer)
    build_scheduler(optimizer, config.runner.total_steps, config.scheduler)


@pytest.mark.parametrize("name", BASES)
def test_the_bases_work(name, tmp_path):
    """Otherwise the cases above are refused for what is wrong with their base."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(read_base(name)))
    build(BASES[name][0], path)


def test_there_are_enough_cases_and_all_differ():
    seen = [json.dumps(raw, default=str) for name in BASES for _, raw, _ in cases(name, "bait")]
    assert len(seen) >= 500 and len(set(seen)) > 0.9 * len(seen)


@pytest.mark.parametrize("select", ["RNNs", "Wav2Letter"])
def test_a_head_cannot_have_more_frames_than_the_upstream(select, tmp_path):
    for rate, works in ((320, True), (640, True), (-1, True), (100, False), (0, False)):
        raw = read_base("asr-rnns")
        put(raw, "downstream_expert.modelrc.select", select)
        put(raw, f"downstream_expert.modelrc.{select}.total_rate", rate)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(raw))
        if works:
            build("asr", path)
            continue
        with pytest.raises(UserError, match=rf"modelrc.{select}.total_rate: .*found {rate}"):
            build("asr", path)
