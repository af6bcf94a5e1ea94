"""Code that came with a file: checkpoints, configs and pickles that would run something."""

import copy
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from s3prl_varan.training.checkpoint import save_checkpoint, states_of
from stress.ground import Ground, Trial
from stress.mutations import BAITED, drop_what_is_no_section, put

REFERENCES = ("upstream", "downstream", "featurizer")


class Pickled:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def bait(ground: Ground, rng: random.Random) -> Iterator[Trial]:
    """None of it may run; what is refused is refused by one message."""
    reference = ground.reference()
    whole = torch.load(states_of(reference)[-1], weights_only=True)
    marker = ground.new("ran")
    for what, payload in _payloads(whole, marker, ground, rng):
        folder = ground.new("bait")
        folder.mkdir()
        for name in ("dev-best.ckpt", "states-24.ckpt"):
            if isinstance(payload, bytes):
                (folder / name).write_bytes(payload)
            else:
                save_checkpoint(folder / name, payload)
        for call in rng.sample(_calls(ground, folder), 2):
            yield _tried(ground, f"{what} in a checkpoint", call, marker)
    for what, text in _configs(ground, marker):
        path = ground.new("config").with_suffix(".yaml")
        path.write_text(text)
        call = ground.train(ground.new("bait"), "-c", str(path), runner__total_steps=1)
        yield _tried(ground, f"{what} in a config", call, marker)
    yield _pickled_upstream(ground, marker)


def _tried(ground: Ground, what: str, call: list[str], marker: Path) -> Trial:
    ended = ground.run(call)
    if marker.exists():
        marker.unlink()
        return Trial(what, f"ran its code: {call}")
    broken = "Traceback" in ended.said or ended.code not in (0, 2)
    return Trial(what, f"{call}: {ended.tail}" if broken else "")


def _payloads(
    whole: dict[str, Any], marker: Path, ground: Ground, rng: random.Random
) -> Iterator[tuple[str, Any]]:
    yield "a pickle", pickle.dumps(Pickled(marker))
    for key in ("Outputs", "Config", "Optimizer"):
        yield "a pickle", {**whole, key: Pickled(marker)}
    for key in rng.sample(BAITED, 3):
        payload = copy.deepcopy(whole)
        drop_what_is_no_section(payload["Config"], key)
        put(payload["Config"], key, _evil(marker))
        yield "Python for eval", payload
    module = ground.new("evil").with_suffix(".py")
    module.write_text(f"open({str(marker)!r}, 'w')\nfrom fixed import Expert\n")
    for flag in REFERENCES:
        for reference in (f"{module}:Expert", f"{module.stem}:Expert", f"{module.stem}.Expert"):
            yield "a reference", {**whole, "Args": {**whole["Args"], flag: reference}}
    pickled = ground.new("evil").with_suffix(".pt")
    torch.save({"cfg": Pickled(marker), "model": {}}, pickled)
    args = {**whole["Args"], "upstream": "wavlm_local", "upstream_ckpt": str(pickled)}
    yield "a pickled upstream", {**whole, "Args": args}
    config = ground.new("evil").with_suffix(".yaml")
    config.write_text(f"a: {_tag(marker)}\n")
    args = {**whole["Args"], "upstream": "micro_wavlm", "upstream_model_config": str(config)}
    yield "a YAML tag", {**whole, "Args": args}


def _evil(marker: Path) -> str:
    return f"__import__('os').system('touch {marker}')"


def _tag(marker: Path) -> str:
    return f"!!python/object/apply:os.system ['touch {marker}']"


def _calls(ground: Ground, folder: Path) -> list[list[str]]:
    """All that reads a checkpoint."""
    own = ["-u", ground.fixed, "--device", "cpu"]
    clip = str(next(ground.corpus.glob("Actor_*/*.wav")))
    calls = [["-m", "evaluate", "-e"], ["-m", "train", "-e"], ["-m", "inference", "-t", clip, "-e"]]
    return [
        *([*call, str(folder), *flags] for call in calls for flags in (own, ["--device", "cpu"])),
        ground.train(folder, "-a"),
        ground.train(folder / "new", "-i", str(folder), runner__total_steps=1),
    ]


def _configs(ground: Ground, marker: Path) -> Iterator[tuple[str, str]]:
    tag = _tag(marker)
    yield "a YAML tag", f"runner: {{total_steps: {tag}}}\n"
    yield "a YAML tag", f"{tag}: 1\n"
    yield "a YAML tag", f"runner: !!python/name:os.system {{}}\nvaran: {tag}\n"
    yield "a YAML tag", f"a: &a {tag}\nb: *a\n"
    for key in BAITED:
        raw: dict[str, Any] = {}
        put(raw, key, _evil(marker))
        data = raw.setdefault("downstream_expert", {})["datarc"] = {}
        data |= {"root": str(ground.corpus), "meta_data": str(ground.corpus / "meta_data")}
        yield "Python for eval", yaml.safe_dump(raw)


def _pickled_upstream(ground: Ground, marker: Path) -> Trial:
    path = ground.new("evil").with_suffix(".pt")
    torch.save({"cfg": {}, "model": Pickled(marker)}, path)
    call = ground.train(ground.new("bait"), kind="finetune")
    call[call.index("-k") + 1] = str(path)
    return _tried(ground, "a pickled upstream of -k", call, marker)
