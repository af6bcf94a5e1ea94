"""From parsed flags to a running experiment: settle flags and config, check everything, build the model, run.

The order is deliberate: whatever can be wrong is checked before the upstream is loaded or a corpus decoded.
"""

import logging
import random
import sys
import warnings
from argparse import Namespace
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s3prl_varan.compat import import_downstream, patch_torchaudio
from s3prl_varan.config import reading as configs
from s3prl_varan.config.options import CALL_FLAGS
from s3prl_varan.config.reading import Config
from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.features.specaug import build_specaug
from s3prl_varan.featurizers.registry import build_featurizer, featurizer_class
from s3prl_varan.layerwise.downstream import adapt_expert, heads_only, quiet
from s3prl_varan.model import SpeechModel
from s3prl_varan.tasks.registry import Task, find_task
from s3prl_varan.training.checkpoint import find_checkpoint, load_checkpoint, load_model_state
from s3prl_varan.tuning.lora import apply_lora
from s3prl_varan.tuning.modes import (
    disable_layerdrop,
    enable_gradient_checkpointing,
    set_cnn_training,
    set_train_modes,
)
from s3prl_varan.upstream.wrapper import MixedShapesError, Upstream, build_upstream

logger = logging.getLogger(__name__)


def run(args: Namespace) -> None:
    """Carry out a parsed command line."""
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(name)s: %(message)s",
        stream=sys.stderr,
    )
    warnings.filterwarnings(
        "ignore", message="Support for mismatched key_padding_mask"
    )  # torch, of any WavLM in s3prl
    patch_torchaudio()
    if args.cache_dir:
        torch.hub.set_dir(args.cache_dir)
    args, config, payload, source = settle(args)
    task = find_task(args.downstream)
    if args.mode != "inference":
        section, variant = config.raw["downstream_expert"], args.downstream_variant
        task.check_data(section, variant, splits_used(args, config, task))
    seed_everything(args.seed)
    heads = payload.get("Heads") if payload is not None and args.mode == "inference" else None
    model = build_model(args, config, task, heads=heads)
    if payload is not None and source is not None:
        load_model_state(model, payload, source)
    from s3prl_varan.training.runner import Runner

    runner = Runner(args, config, task, model)
    if args.mode == "train":
        runner.train(payload if args.past_exp else None)
    elif args.mode == "evaluate":
        runner.evaluate_splits(payload["Step"] if payload else 0)
    else:
        from s3prl_varan.app.inference import infer

        infer(args, task, model, runner.device)


def settle(args: Namespace) -> tuple[Namespace, Config, dict[str, Any] | None, Path | None]:
    """Flags and config as they will be used, and the checkpoint to start from with its path (or None, None)."""
    if args.auto_resume and args.past_exp is None:
        folder = experiment_folder(args)
        args.past_exp = str(folder) if list(folder.glob("states-*.ckpt")) else None
    payload = source = None
    if args.past_exp:
        source = find_checkpoint(args.past_exp, resume=args.mode == "train")
        payload = load_checkpoint(source)
        args = restored_args(args, payload, source)
        raw, origin = payload["Config"], str(source)
    elif args.mode != "train":
        raise UserError(f"-m {args.mode} needs -e, the experiment folder or checkpoint to use.")
    else:
        raw, origin = fresh_config(args)
    apply_overrides(args, raw)
    check_flags(args)
    config = configs.check_config(raw, args.featurizer, shipped_reference(args.downstream), origin)
    if payload is None and args.init_ckpt:
        source = find_checkpoint(args.init_ckpt, resume=False)
        payload = load_checkpoint(source)
    check_splits(args, config)
    claim_folder(args)
    return args, config, payload, source


def fresh_config(args: Namespace) -> tuple[dict[str, Any], str]:
    """A new experiment's config as plain values, and where it was read. Checks the names it depends on."""
    missing = [
        flag
        for flag, name in (("-u", "upstream"), ("-d", "downstream"))
        if getattr(args, name) is None
    ]
    if missing:
        raise UserError(f"{' and '.join(missing)} needed, e.g. `-u wavlm -d emotion -f varan`.")
    find_task(args.downstream)
    args.featurizer = args.featurizer or "varan"
    featurizer_class(args.featurizer)
    path = configs.config_path(args.downstream, args.featurizer, args.config)
    args.config = str(path)
    return configs.read_config(path), str(path)


def shipped_reference(downstream: str) -> dict[str, Any]:
    """The union of the shipped configs of a downstream: every key there is known."""
    merged: dict[str, Any] = {}
    for path in sorted((configs.config_root() / downstream).glob("*.yaml")):
        _merge(merged, configs.read_config(path))
    return merged


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into.setdefault(key, value)


def restored_args(args: Namespace, payload: dict[str, Any], source: Path) -> Namespace:
    """The experiment's own flags, but for those that belong to this call; a given flag that contradicts them is refused."""
    stored = payload["Args"]
    clash = [
        name
        for name in args.given
        if name in stored
        and name not in (*CALL_FLAGS, "expdir", "cache_gb")
        and stored[name] != getattr(args, name)
    ]
    if "config" in clash and _same_config(args, payload):
        clash.remove("config")
    if clash:
        listed = ", ".join(
            f"--{name} (there {stored[name]!r}, here {getattr(args, name)!r})" for name in clash
        )
        raise UserError(
            f"{source} was made with other flags: {listed}. Leave them out, or override with -o args.NAME=VALUE."
        )
    expdir = args.expdir or str(source.parent)
    restored = Namespace(
        **{
            **vars(args),
            **{name: value for name, value in stored.items() if name not in CALL_FLAGS},
        }
    )
    restored.expdir = expdir
    return restored


def _same_config(args: Namespace, payload: dict[str, Any]) -> bool:
    """Does -c, a path other than the checkpoint's, say what it was made with? This call's -o may change both."""
    flags = Namespace(**{**vars(args), "downstream": payload["Args"]["downstream"]})
    path = configs.config_path(flags.downstream, payload["Args"]["featurizer"], args.config)
    given, stored = configs.read_config(path), deepcopy(payload["Config"])
    for raw in (given, stored):
        apply_overrides(flags, raw)
    return given == stored


def apply_overrides(args: Namespace, raw: dict[str, Any]) -> None:
    """-o, the highest priority: `config.*` into the config, `args.*` into the flags."""
    if not args.override or args.override.lower() == "none":
        return
    known = configs.known_keys(shipped_reference(args.downstream))
    for path, value in configs.split_override(args.override):
        if path[0] == "config":
            configs.override_config(raw, path[1:], value, known)
        elif len(path) != 2 or path[1] not in vars(args) or path[1] == "given":
            flags = [name for name in vars(args) if name != "given"]
            raise UserError(f"-o: unknown flag {'.'.join(path)}.{did_you_mean(path[-1], flags)}")
        else:
            setattr(args, path[1], value)


def check_flags(args: Namespace) -> None:
    """Flags that make no sense together."""
    if args.device is not None and args.device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cuda or cpu, found '{args.device}'.")
    if (args.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no GPU here. Leave the flag out, or give --device cpu."
        )
    if args.lora and args.upstream_trainable:
        raise UserError(
            "--lora freezes the upstream's own weights, --upstream_trainable trains them: choose one."
        )
    if args.cache and (args.lora or args.upstream_trainable):
        raise UserError(
            "--cache keeps a frozen upstream's features; with --lora or --upstream_trainable they change every step."
        )


def check_splits(args: Namespace, config: Config) -> None:
    """Every split that will be asked for exists. (s3prl's experts would turn its name into code.)"""
    task = find_task(args.downstream)
    known = task.splits(config.raw["downstream_expert"])
    asked = {
        "runner.eval_dataloaders": config.runner.eval_dataloaders,
        "runner.train_dataloader": [config.runner.train_dataloader],
    }
    if args.mode != "inference":
        asked["-t"] = split_names(args, task, config)
    for source, names in asked.items():
        for name in names:
            if name not in known:
                raise UserError(
                    f"{source}: unknown split '{name}', expected one of {', '.join(known)}.{did_you_mean(name, known)}"
                )
    if not any(name.startswith("dev") for name in config.runner.eval_dataloaders):
        raise UserError(
            "runner.eval_dataloaders: needs a dev split, it chooses the best checkpoint."
        )


def split_names(args: Namespace, task: Task, config: Config) -> list[str]:
    """The splits of -t (several joined by commas), or all of the task's test splits."""
    if args.evaluate_split:
        return args.evaluate_split.split(",")
    return [
        name for name in task.splits(config.raw["downstream_expert"]) if name.startswith("test")
    ]


def splits_used(args: Namespace, config: Config, task: Task) -> list[str]:
    """All splits this run will read."""
    trained = (
        [config.runner.train_dataloader, *config.runner.eval_dataloaders]
        if args.mode == "train"
        else []
    )
    return list(dict.fromkeys([*trained, *split_names(args, task, config)]))


def experiment_folder(args: Namespace) -> Path:
    """-p, or result/downstream/ with -n or a name made of what distinguishes the run."""
    if args.expdir:
        return Path(args.expdir)
    if args.expname:
        return Path("result/downstream") / args.expname
    if not args.upstream or not args.downstream:
        raise UserError("-u and -d (or -n, -p) are needed to name the experiment folder.")
    task = find_task(args.downstream)
    upstream = "".join(char if char.isalnum() or char in "-_." else "_" for char in args.upstream)
    featurizer = args.featurizer or "varan"
    if featurizer == "layer":
        featurizer += str(args.upstream_layer_selection)
    tuning = "lora" if args.lora else "finetune" if args.upstream_trainable else None
    parts = [
        upstream,
        args.downstream,
        featurizer,
        tuning,
        args.downstream_variant or task.default_fold,
        f"seed{args.seed}",
    ]
    return Path("result/downstream") / "_".join(filter(None, parts))


def claim_folder(args: Namespace) -> None:
    """Settle on the experiment folder; never start a new run on top of another by accident."""
    folder = experiment_folder(args)
    args.expdir = str(folder)
    if args.mode == "train" and not args.past_exp:
        used = [*folder.glob("states-*.ckpt"), *folder.glob("result.json")]
        if used and not args.overwrite:
            raise UserError(
                f"{folder} holds an experiment: resume it with -a, choose another with -n or -p, or add --overwrite."
            )
        for pattern in (
            "dev-best.ckpt",
            "metrics.jsonl",
            "events.out.*",
        ):  # of a run that ended before its first checkpoint too
            used += folder.glob(pattern)
        for path in used:
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build_model(
    args: Namespace, config: Config, task: Task, heads: dict[str, Any] | None = None
) -> SpeechModel:
    """Upstream, featurizer and adapted downstream as one module, drawn from the experiment's seed.

    `heads` (a checkpoint's, for inference): build these alone, without the expert and so without its corpus.
    """
    upstream, layer = load_upstream(args)
    upstream.fingerprint()  # of the weights as they came, before anything trains them
    tune_upstream(upstream, args, config)
    seed_everything(args.seed)
    featurizer = build_featurizer(
        args.featurizer, upstream.num_hidden, upstream.dim, config.featurizer, layer
    )
    if heads is not None:
        downstream = heads_only(heads, config.featurizer)
    else:
        expert = build_expert(args, config, task, upstream)
        seed_everything(args.seed)  # s3prl's emotion expert seeds the generator with a constant
        downstream = adapt_expert(
            task.name, expert, upstream.dim, featurizer.num_outputs, config.featurizer
        )
    return SpeechModel(
        upstream,
        featurizer,
        downstream,
        trains_upstream=args.lora or args.upstream_trainable,
        normalize=args.upstream_feature_normalize,
        specaug=build_specaug(config.raw.get("specaug")),
    )


def load_upstream(args: Namespace) -> tuple[Upstream, int | None]:
    """The upstream of -u, and the hidden state -l names in it.

    Where sizes differ from layer to layer, a featurizer that reads one layer gets an upstream that gives only that one.
    """
    selection, layer = args.upstream_feature_selection, args.upstream_layer_selection
    source = (
        args.upstream,
        args.upstream_ckpt,
        args.upstream_model_config,
        selection,
        args.upstream_refresh,
    )
    try:
        return build_upstream(*source), layer
    except MixedShapesError:
        if args.featurizer == "last_layer" and layer is None:
            return build_upstream(*source, layer=-1), None
        if args.featurizer == "layer" and layer is not None:
            return build_upstream(*source, layer=layer), 0
        raise


def tune_upstream(upstream: Upstream, args: Namespace, config: Config) -> None:
    """Make trainable what is to be trained of the upstream: LoRA adapters, all of it but the CNN, or nothing."""
    if not (args.lora or args.upstream_trainable):
        return
    options = config.upstream
    notes = [
        f"layer drop off, all hidden states are read: {changed}"
        for changed in disable_layerdrop(upstream)
    ]
    notes += set_train_modes(upstream, dropout=options.dropout, masking=options.masking)
    if args.lora:
        report = apply_lora(upstream, config.lora)
        notes.append(str(report))
    else:
        upstream.requires_grad_(True)
        set_cnn_training(upstream, options.train_cnn)
    if options.gradient_checkpointing:
        notes.append(f"gradient checkpointing of {enable_gradient_checkpointing(upstream)} layers")
    for note in notes:
        print(f"upstream: {note}")


def build_expert(
    args: Namespace, config: Config, task: Task, upstream: Upstream
) -> torch.nn.Module:
    """s3prl's own expert of the task, as s3prl builds it, then adjusted where the task says so."""
    module = import_downstream(task.name)
    section = config.raw["downstream_expert"]
    flags = {name: value for name, value in vars(args).items() if name not in config.raw}
    with torch.random.fork_rng(), quiet():
        expert = module.DownstreamExpert(
            upstream_dim=upstream.dim,
            upstream_rate=upstream.downsample_rate,
            **{**flags, **config.raw, "downstream_expert": task.expert_section(section)},
        )
    task.adjust(expert, section, args.downstream_variant)
    return expert


def plain_lora(args: Namespace, config: Config) -> dict[str, Any] | None:
    """The LoRA options a checkpoint stores, or None."""
    return asdict(config.lora) if args.lora else None
