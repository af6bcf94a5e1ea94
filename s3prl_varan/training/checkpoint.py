"""Checkpoints: what was trained, what it needs, how to go on. Loading one runs no code.

    states-STEP.ckpt   everything needed to resume
    dev-best.ckpt      the best on dev so far, for evaluation
Both hold the featurizer, the heads, and of the upstream only what was trained. They are torch's
zip files and at their end a line with the checksum of all that is before it: those of the zip leave
out names, padding and the directory.
"""

import random
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from s3prl_varan.config.settings import RunSettings, Stored
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.files import atomic_path
from s3prl_varan.model import SpeechModel
from s3prl_varan.tuning.lora import load_lora_state_dict, lora_state_dict

BEST = "dev-best.ckpt"
VERSION = 2  # of the format; 1 is that of s3prl_varan 0.1
NONE = type(None)
Kinds = dict[str, tuple[type, ...]]
FIELDS: Kinds = {
    "upstream": (dict,),
    "lora": (dict, NONE),
    "Upstream": (dict, NONE),
    "Featurizer": (dict,),
    "Downstream": (dict,),
    "Args": (dict,),
    "Config": (dict,),
    "Step": (int,),
    "Best": (dict,),
    "Outputs": (dict, list, str, int, NONE),
}
STATES = ("Optimizer", "Scheduler", "Random", "Unlogged")  # of a states-STEP.ckpt, besides
UPSTREAM: Kinds = {"name": (str,), "ckpt": (str, NONE), "fingerprint": (str,)}
LORA: Kinds = {"options": (dict,), "state": (dict,)}
BEST_SO_FAR: Kinds = {
    "step": (int,),
    "value": (float, int, NONE),
    "figures": (dict, NONE),
    "evaluations_since": (int,),
}
CHECKSUM = b"crc32 %08x\n"
BLOCK = 1 << 20  # bytes read at a time


@dataclass
class Best:
    """The best evaluation on dev so far."""

    step: int = 0
    value: float | None = None
    figures: dict[str, float] | None = None
    evaluations_since: int = 0

    def update(self, step: int, figures: dict[str, float], metric: str, higher: bool) -> bool:
        """Take note of an evaluation; is it a new best?"""
        value = figures[metric]
        improved = self.value is None or (value > self.value if higher else value < self.value)
        self.evaluations_since = 0 if improved else self.evaluations_since + 1
        if improved:
            self.step, self.value, self.figures = step, value, figures
        return improved


class _Summed:
    """A file whose checksum is known when it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, 0

    def write(self, data: bytes) -> int:
        """As a file does."""
        self.sum = zlib.crc32(data, self.sum)
        return self.file.write(data)

    def flush(self) -> None:
        """torch asks for it."""
        self.file.flush()


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """torch.save and a checksum, whole or not at all. UserError where the disk has no room."""
    with atomic_path(path, _bytes_of(payload)) as temporary, open(temporary, "wb") as file:
        summed: Any = _Summed(file)
        try:
            torch.save(payload, summed)
        except RuntimeError as error:  # torch's own, upon one of the file's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.write(CHECKSUM % summed.sum)


def _bytes_of(value: Any) -> int:
    """Of the tensors in it, which is nearly all of a checkpoint."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(map(_bytes_of, value))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours. UserError where it is none, is damaged or would need code to run."""
    problem = damage(path)
    if problem:
        raise UserError(f"{path}: {problem}")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and torch's own, of many kinds
        raise UserError(
            f"{path}: not a checkpoint of this program ({type(error).__name__}). It was not "
            "unpickled, since that could run code from it."
        ) from error
    problems = field_problems(payload)
    if problems:
        raise problems_error(f"{path}: not a checkpoint of this program:", problems[:8])
    return payload


def damage(path: Path) -> str:
    """What is wrong with the file itself, "" where nothing is. Every byte is read and checked."""
    total, left = 0, path.stat().st_size - len(CHECKSUM % 0)
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, BLOCK))):
            total, left = zlib.crc32(block, total), left - len(block)
        end = file.read()
    if end == CHECKSUM % total:
        return ""
    if re.fullmatch(rb"crc32 [0-9a-f]{8}\n", end):
        return "damaged: it is not what was written, by its checksum"
    return (
        "not a checkpoint that can be read: no checksum at its end. It is damaged, another file, "
        "or made by s3prl_varan 0.1, whose checkpoints this version does not read (use version 0.1 "
        "for it, or train again; reports read its result.json as before)."
    )


def field_problems(payload: Any) -> list[str]:
    """What a checkpoint lacks or has in another form than this program writes it."""
    if not isinstance(payload, dict):
        return [f"expected named parts, found {type(payload).__name__}"]
    problems = _kind_problems(payload, FIELDS)
    if problems:
        return problems
    problems = _kind_problems(payload["upstream"], UPSTREAM, "upstream.")
    problems += _kind_problems({**asdict(Best()), **payload["Best"]}, BEST_SO_FAR, "Best.")
    states = {key: payload[key] or {} for key in ("Featurizer", "Downstream", "Upstream")}
    if payload["lora"] is not None:
        problems += _kind_problems(payload["lora"], LORA, "lora.")
        states["lora.state"] = payload["lora"].get("state")
    for part, state in states.items():
        if isinstance(state, dict) and not _tensors_by_name(state):
            problems.append(f"'{part}' holds more than tensors by name")
    if payload["Step"] < 0:
        problems.append(f"'Step' is {payload['Step']}, expected at least 0")
    return problems


def _kind_problems(values: dict[str, Any], kinds: Kinds, prefix: str = "") -> list[str]:
    problems = [f"no '{prefix}{key}'" for key in kinds if key not in values]
    return problems + [
        f"'{prefix}{key}' is {type(values[key]).__name__}, expected {_names(expected)}"
        for key, expected in kinds.items()
        if key in values and not isinstance(values[key], expected)
    ]


def _tensors_by_name(state: dict[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)


def states_of(folder: Path) -> list[Path]:
    """The states-STEP.ckpt of an experiment folder, by step; other names are passed over."""
    found = {path: re.fullmatch(r"states-([0-9]+)\.ckpt", path.name) for path in folder.glob("*")}
    steps = {path: int(name[1]) for path, name in found.items() if name}
    return sorted(steps, key=lambda path: steps[path])


def find_checkpoint(place: str, *, resume: bool) -> Path:
    """-e names a checkpoint or an experiment folder.

    Of a folder: the latest states-*.ckpt to resume, else the best on dev. Where the latest is
    damaged, UserError that offers the one before it.
    """
    path = Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"-e: neither a checkpoint nor an experiment folder: {place}")
    states, best = states_of(path), path / BEST
    if best.is_file() and not resume:
        return best
    if not states:
        wanted = "states-*.ckpt" if resume else BEST
        raise UserError(
            f"-e: no {wanted} in {place}: was this run trained to its first checkpoint?"
        )
    problem = damage(states[-1])
    if problem:
        whole = next((each for each in reversed(states[:-1]) if not damage(each)), None)
        offer = "No older one is there: start anew with --overwrite."
        if whole is not None:
            offer = f"The latest that is whole is {whole}: remove {states[-1]} to go on from it."
        raise UserError(f"{states[-1]}: {problem}. {offer}")
    return states[-1]


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


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The state of every generator that a step draws from, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what random_states gave."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def random_kept() -> Iterator[None]:
    """What is drawn meanwhile, were it by a module imported for the first time, leaves no trace."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)
