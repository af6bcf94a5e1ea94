"""From a command line to RunSettings: the one place where flags and config are checked.

    settings = resolve(args)            # from the command line
    settings = resolve(args, stored)    # going on from, or using, what a checkpoint keeps

Nothing here reads a corpus or writes a file.
"""

from argparse import Namespace
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

from s3prl_varan.config.optimizer import OptimizerOptions, scheduler_problems
from s3prl_varan.config.reading import find_config, read_config, set_key, split_override
from s3prl_varan.config.sections import RunnerOptions, UpstreamOptions
from s3prl_varan.config.settings import Config, Flags, RunSettings, Stored
from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.features.specaug import SpecAugOptions
from s3prl_varan.featurizers import featurizer_names, find_featurizer
from s3prl_varan.layerwise.heads import HeadOptions
from s3prl_varan.names import is_reference, same_name
from s3prl_varan.options import plain, read_options
from s3prl_varan.tasks import find_task, task_names
from s3prl_varan.tasks.shapes.base import Task
from s3prl_varan.tuning.options import LoraOptions

NAMES = {"upstream": "-u", "downstream": "-d", "featurizer": "-f"}
# Keys of version 0.1 -> where they are now.
MOVED = {
    "head": "heads.kind",
    "head_dim": "heads.dim",
    "head_dropout": "heads.dropout",
    "share_heads": "heads.shared",
    "ctc_normalize": "downstream_expert.modelrc.ctc_normalize",
}


def resolve(args: Namespace, stored: Stored | None = None) -> RunSettings:
    """Flags and config as they will be used. UserError that lists what is wrong with them.

    args: the parsed command line (mode, evaluate_split, override and given belong to the call).
    """
    overrides = split_override(args.override)
    flags = _flags(args, stored, overrides)
    if flags.lora and flags.upstream_trainable:
        raise UserError(
            "--lora freezes the upstream's own weights, --upstream_trainable trains them: "
            "choose one."
        )
    task_class, featurizer = find_task(flags.downstream), find_featurizer(flags.featurizer)
    if stored is None:
        raw, origin = _fresh_config(flags, task_class)
        flags = Flags(**{**plain(flags), "config": None if origin is None else str(origin)})
    else:
        raw, origin = deepcopy(dict(stored.config)), stored.source
    if flags.data is not None and (stored is None or flags.data != stored.args.get("data")):
        _locate(raw, flags.data, task_class)
    for path, value in overrides:
        if path[0] == "config":
            set_key(raw, path[1:], value)
    source = str(origin or f"the default config of -d {flags.downstream}")
    if overrides:
        source += " with -o"
    config, task = _read(raw, source, flags, task_class, featurizer, stored)
    tested, splits = _splits(args, config.runner, task)
    return RunSettings(flags, config, task, featurizer, tested, splits)


def _flags(args: Namespace, stored: Stored | None, overrides: list) -> Flags:
    """Typed flags: the command line's, or a checkpoint's with what the command line may change."""
    known = [each.name for each in fields(Flags)]
    values = {name: getattr(args, name, None) for name in known}
    if stored is None:
        values["featurizer"] = values["featurizer"] or "varan"
        missing = [flag for name, flag in NAMES.items() if values[name] is None]
        if missing:
            raise UserError(
                f"{' and '.join(missing)} needed, e.g. `-u wavlm -d {task_names()[0]} -f varan`."
            )
    else:
        values = _restored(args, stored, known)
    for path, value in overrides:
        if path[0] != "args":
            continue
        if len(path) != 2 or path[1] not in known:
            raise UserError(
                f"-o: unknown flag {'.'.join(path)}.{did_you_mean(path[-1], known)} "
                f"Known: {', '.join(known)}."
            )
        values[path[1]] = value
    problems: list[str] = []
    flags = read_options(Flags, values, "args", problems)
    if flags is None:
        raise problems_error("Flags that cannot be used:", problems)
    return flags


def _restored(args: Namespace, stored: Stored, known: list[str]) -> dict[str, Any]:
    """A checkpoint's flags. What contradicts them is refused, and code that only they name."""
    kept = {name: stored.args[name] for name in known if name in stored.args}
    given = {name: getattr(args, name) for name in known if name in args.given}
    clash = [
        f"--{name} (there {kept.get(name)!r}, here {value!r})"
        for name, value in given.items()
        if name not in ("config", "data") and not same_name(kept.get(name), value)
    ]
    if not clash:
        kept |= {name: value for name, value in given.items() if name in (*NAMES, "data")}
        _refuse_unnamed_code(kept, [*given, *_overridden_flags(args)], stored.source)
        if "config" in given and not _same_config(args, given, stored):
            clash.append(f"--config (there {kept.get('config')!r}, here {given['config']!r})")
    if clash:
        raise UserError(
            f"{stored.source} was made with other flags: {', '.join(clash)}. Leave them out, or "
            "override with -o args.NAME=VALUE."
        )
    return kept


def _overridden_flags(args: Namespace) -> list[str]:
    return [path[1] for path, _ in split_override(args.override) if path[0] == "args"]


def _refuse_unnamed_code(kept: dict[str, Any], named: list[str], source: Path) -> None:
    """A file or module of the user's is imported because the command line names it, only then."""
    for name, flag in NAMES.items():
        if is_reference(kept.get(name)) and name not in named:
            raise UserError(
                f"{source} was made with {flag} {kept[name]}, a file or module that is not part "
                f"of this program. Importing it runs its code: name it yourself ({flag} "
                f"{kept[name]}) if you trust it."
            )


def _same_config(args: Namespace, given: dict[str, Any], stored: Stored) -> bool:
    """Does -c, maybe another path than the checkpoint's, say what it was made with?

    This call's -o may change both.
    """
    others = [name for name in args.given if name != "config"]
    kept = Namespace(**{**vars(args), "given": others})
    fresh = Namespace(**{**vars(args), **dict(stored.args), **given})
    return resolve(fresh).id == resolve(kept, stored).id


def _fresh_config(flags: Flags, task: type[Task]) -> tuple[dict[str, Any], Path | None]:
    """The config file's content and its path; the task's own defaults where it ships no file."""
    path = find_config(flags.downstream, flags.config)
    return (deepcopy(dict(task.config)), None) if path is None else (read_config(path), path)


def _locate(raw: dict[str, Any], root: str, task: type[Task]) -> None:
    """--data: the paths and splits of a corpus in `root`, put into the config.

    Splits to evaluate that the config names and the corpus has not give way to its first dev split.
    """
    if not Path(root).is_dir():
        raise UserError(f"--data: no folder {root}.")
    found = task.locate(Path(root))
    for key, value in found.items():
        set_key(raw, ["downstream_expert", "datarc", key], value)
        if value is None:
            del raw["downstream_expert"]["datarc"][key]
    runner = raw.get("runner")
    named = runner.get("eval_dataloaders") if isinstance(runner, dict) else None
    if isinstance(runner, dict) and isinstance(named, list):
        kept = [name for name in named if found.get(name, name) is not None]
        devs = [name for name, value in found.items() if value and name.startswith("dev")]
        if any(str(name).startswith("dev") for name in kept):
            devs = []
        runner["eval_dataloaders"] = [*devs[:1], *kept] or named


def _read(
    raw: dict[str, Any],
    source: str,
    flags: Flags,
    task_class: type[Task],
    featurizer: Any,
    stored: Stored | None,
) -> tuple[Config, Task]:
    """Config and task from plain values; one UserError for every unknown key and wrong value."""
    problems: list[str] = []
    typed = {
        "runner": RunnerOptions,
        "optimizer": OptimizerOptions,
        "upstream": UpstreamOptions,
        "lora": LoraOptions,
        "heads": HeadOptions,
        featurizer.name: featurizer.Options,
    }
    others = [name for name in featurizer_names() if name in raw and name != featurizer.name]
    typed |= {name: find_featurizer(name).Options for name in others}
    known = [*typed, "scheduler", "specaug", "downstream_expert", *featurizer_names()]
    for name in raw:
        if name not in known:
            hint = did_you_mean(name, known)
            problems.append(f"unknown section '{name}'.{hint} Known: {', '.join(sorted(known))}.")
    _say_what_moved(raw, [featurizer.name, *others], problems)
    built: dict[str, Any] = {
        name: read_options(cls, raw.get(name, {}), name, problems) for name, cls in typed.items()
    }
    specaug = None
    if raw.get("specaug"):
        specaug = read_options(SpecAugOptions, raw["specaug"], "specaug", problems)
    steps = built["runner"].total_steps if built["runner"] is not None else 1
    problems += scheduler_problems(raw.get("scheduler"), steps)
    runner, upstream = built["runner"], built["upstream"]
    if runner and upstream and runner.compile and upstream.gradient_checkpointing:
        problems.append(
            "runner.compile: does not go with upstream.gradient_checkpointing, switch one of them "
            "off"
        )
    problems += _stream_problems(flags, task_class, featurizer, built[featurizer.name])
    task = task_class.read(raw, flags, None if stored is None else stored.outputs, problems)
    own = built[featurizer.name]
    if own is not None and own.objective("per_example").rule not in task_class.rules:
        problems.append(
            f"{featurizer.name}.prediction: expected one of {', '.join(task_class.rules)} for "
            f"-d {flags.downstream}, found {own.objective('per_example').rule!r}"
        )
    if problems:
        raise problems_error(f"{source}: {len(problems)} problem(s) in the config:", problems)
    names = ("runner", "optimizer", "upstream", "lora", "heads")
    config = Config(
        **{name: built[name] for name in names},
        scheduler=raw.get("scheduler"),
        specaug=specaug,
        featurizer=own,
    )
    assert task is not None
    return config, task


def _stream_problems(flags: Flags, task: type[Task], featurizer: Any, own: Any) -> list[str]:
    """Does the task take what the featurizer hands on?"""
    if not task.trains and own is not None and (own.learns() or featurizer.several_streams):
        return [
            f"-f {flags.featurizer} has something to learn, and -d {flags.downstream} trains "
            "nothing: use -f layer -l N, one run for each layer."
        ]
    if not (task.one_stream and featurizer.several_streams):
        return []
    return [
        f"-f {flags.featurizer} hands on every layer by itself, for a head on each; -d "
        f"{flags.downstream} takes one stream of features. Use -f dynamic_sum (weights from "
        "the input, as varan's), weighted_sum, hconv, lap, last_layer, or layer with -l."
    ]


def _say_what_moved(raw: dict[str, Any], sections: list[str], problems: list[str]) -> None:
    """A line for each key of version 0.1; it is taken out, so that it is told of once."""
    for name in sections:
        section = raw.get(name)
        if not isinstance(section, dict):
            continue
        for key in [key for key in MOVED if key in section]:
            del section[key]
            problems.append(f"{name}.{key}: is {MOVED[key]} now, one for every featurizer")
    runner = raw.get("runner")
    if isinstance(runner, dict) and "fp16" in runner:
        if runner.pop("fp16"):
            problems.append("runner.fp16: write runner.precision: fp16")


def _splits(
    args: Namespace, runner: RunnerOptions, task: Task
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The splits to test, and all that this run reads. UserError for an unknown one."""
    known = task.splits()
    tested = [name for name in known if name.startswith("test")]
    asked = {
        "runner.train_dataloader": [runner.train_dataloader],
        "runner.eval_dataloaders": runner.eval_dataloaders,
    }
    if args.mode == "inference":
        tested = []
    elif args.evaluate_split:
        tested = args.evaluate_split.split(",")
        asked["-t"] = tested
    for source, names in asked.items():
        for name in names:
            if name not in known:
                raise UserError(
                    f"{source}: unknown split '{name}', expected one of {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )
    trained = [runner.train_dataloader, *runner.eval_dataloaders] if args.mode == "train" else []
    return tuple(tested), tuple(dict.fromkeys([*trained, *tested]))
