"""What of an experiment's flags and config decides its outcome: the identity of a cell, for its folder's name and for tables.

Sections and keys that a run never reads are left out (the prior's chi2_df under a uniform prior, `varan:` under weighted_sum)
and defaults are filled in, so that two ways of writing the same run are one cell. Free of heavy imports.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from s3prl_varan.config.options import (
    CALL_FLAGS,
    FEATURIZER_OPTIONS,
    SECTION_OPTIONS,
    HeadOptions,
    VaranOptions,
)

# Where a run lies, how it is logged and how fast it goes, not what comes out.
PLACE_FLAGS = (
    *CALL_FLAGS,
    "expdir",
    "expname",
    "config",
    "cache",
    "cache_gb",
    "cache_dir",
    "upstream_refresh",
)
PLACE_KEYS = (
    "runner.log_step",
    "runner.save_step",
    "runner.max_keep",
    "runner.compile",
    "downstream_expert.datarc.num_workers",
    "downstream_expert.datarc.pre_load",
    "downstream_expert.datarc.eval_batch_size",
    "upstream.gradient_checkpointing",
)
SECTIONS = ("runner", "optimizer", "scheduler", "specaug", "downstream_expert")
ID_LENGTH = 12  # hexadecimal digits of a cell's name


def relevant_settings(args: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Flat {"args.seed": 1, "config.varan.prior": "uniform", ...} of all that decides a run's outcome.

    `args` are the plain flags as result.json and config.yaml store them, `config` is the whole config as plain values.
    """
    featurizer = args.get("featurizer") or "varan"
    trained = bool(args.get("lora") or args.get("upstream_trainable"))
    flags = {
        name: value
        for name, value in args.items()
        if name not in PLACE_FLAGS and value not in (None, False)
    }
    if featurizer != "layer":
        flags.pop("upstream_layer_selection", None)
    wanted = [
        *SECTIONS,
        featurizer,
        *(["upstream"] if trained else []),
        *(["lora"] if args.get("lora") else []),
    ]
    own = FEATURIZER_OPTIONS.get(featurizer, VaranOptions if featurizer == "varan" else HeadOptions)
    typed = {**SECTION_OPTIONS, featurizer: own}
    sections = {
        name: {**(asdict(typed[name]()) if name in typed else {}), **(config.get(name) or {})}
        for name in wanted
    }
    flat = dict(_flatten({name: section for name, section in sections.items() if section}))
    unread = {*PLACE_KEYS, *_unread_head_keys(featurizer, sections[featurizer])}
    if not trained:
        unread.add("optimizer.upstream_lr")
    if featurizer in ("last_layer", "layer"):
        unread.add("optimizer.featurizer_lr")
    kept = {f"config.{key}": value for key, value in flat.items() if key not in unread}
    splits = "config.runner.eval_dataloaders"
    if kept.get(splits):  # only the split that chooses the best checkpoint matters
        kept[splits] = next((name for name in kept[splits] if str(name).startswith("dev")), None)
    return {**{f"args.{name}": value for name, value in flags.items()}, **kept}


def _unread_head_keys(featurizer: str, section: dict[str, Any]) -> list[str]:
    """Keys of the featurizer's section that its other values make idle."""
    unread = [] if section["head"] == "linear" else ["head_dim"]
    prior = str(section.get("prior", ""))  # VARAN alone has one
    if not prior.startswith("chi2"):
        unread += ["chi2_df", "chi2_nc"]
    if not prior.startswith("geometric"):
        unread += ["geometric_p"]
    return [f"{featurizer}.{key}" for key in unread]


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def cell_id(args: dict[str, Any], config: dict[str, Any]) -> str:
    """Name of the cell: a hash of what decides its outcome. The same on every machine and in every order of keys."""
    settings = {key: _plain_number(value) for key, value in relevant_settings(args, config).items()}
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def _plain_number(value: Any) -> Any:
    """1.0 and 1 are one value."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
