"""Carry out a parsed command line: resolve the settings, check everything, build the model, run.

The order is deliberate: whatever can be wrong is found before the upstream is loaded or a corpus
decoded.
"""

import logging
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from s3prl_varan.app.build import build_cache, build_model
from s3prl_varan.compat import patch_torchaudio
from s3prl_varan.config.resolve import resolve
from s3prl_varan.config.settings import RunSettings
from s3prl_varan.errors import UserError
from s3prl_varan.files import CLIPS, METRICS, RESULT, clear_unfinished, held, holder
from s3prl_varan.model import SpeechModel
from s3prl_varan.tasks import find_task
from s3prl_varan.tasks.shapes.expert import ExpertTask
from s3prl_varan.training.artifacts import Artifacts
from s3prl_varan.training.checkpoint import (
    BEST,
    find_checkpoint,
    load_checkpoint,
    load_model_state,
    seed_everything,
    states_of,
    stored_settings,
)  # fmt: skip
from s3prl_varan.training.data import Loaders
from s3prl_varan.training.experts import ExpertLoaders, ExpertTrainer
from s3prl_varan.training.guards import check_longest
from s3prl_varan.training.loop import Trainer
from s3prl_varan.tuning.adapters import is_adapter, load_adapter
from s3prl_varan.upstream.downloads import use_cache_dir

logger = logging.getLogger(__name__)
RESULTS = Path("result/downstream")
Start = tuple[dict[str, Any], Path]  # a checkpoint's content and where it lies


def run(args: Namespace) -> None:
    """Train, evaluate or infer, as `args` (of app/cli.py) says."""
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(name)s: %(message)s",
        stream=sys.stderr,
    )
    # torch's, about the attention of any WavLM in s3prl
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
    patch_torchaudio()
    if args.cache_dir:
        use_cache_dir(args.cache_dir)
    check_call(args)
    settings, folder, start = prepare(args)
    settings.check_corpus()
    with only_one(folder) if args.mode == "train" else nullcontext():
        carry_out(args, settings, folder, start)


def carry_out(args: Namespace, settings: RunSettings, folder: Path, start: Start | None) -> None:
    """Build the model, put weights into it, and do what -m says."""
    seed_everything(settings.flags.seed)
    settings.task.expdir = folder
    model = build_model(settings)
    if start is not None:
        load_model_state(model, *start)
    elif args.init_ckpt:
        start_from(model, args.init_ckpt)
    if args.mode == "inference":
        from s3prl_varan.app.inference import infer

        infer(args.evaluate_split, settings.task, model, device_of(args), folder)
        return
    trainer = build_trainer(args, settings, model, folder, fresh=start is None)
    if args.mode == "train":
        trainer.run(start and start[0], settings.tested)
    else:
        trainer.test(settings.tested, start[0]["Step"] if start else 0)


def start_from(model: SpeechModel, place: str) -> None:
    """-i: the weights of a checkpoint, or of a folder of LoRA adapters, ours or PEFT's."""
    if is_adapter(place):
        load_adapter(model.upstream, place)
    else:
        source = find_checkpoint(place, resume=False)
        load_model_state(model, load_checkpoint(source), source)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Own the experiment folder, or UserError that says who does."""
    if is_helper():
        yield
        return
    with held(folder) as mine:
        if not mine:
            raise UserError(
                f"{folder} is in use by {holder(folder)}, which is training there. Wait for it, "
                "stop it, or choose another folder with -n or -p."
            )
        clear_unfinished(folder)
        yield


def is_helper() -> bool:
    """Is this one of several processes of a run, and not the one that writes its files?"""
    return int(os.environ.get("RANK", "0")) > 0


def check_call(args: Namespace) -> None:
    """Flags of this call that make no sense."""
    if args.device is not None and args.device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cuda or cpu, found '{args.device}'.")
    if (args.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no GPU here. Leave the flag out, or give --device cpu."
        )
    if args.cache and (args.lora or args.upstream_trainable):
        raise UserError(
            "--cache keeps a frozen upstream's features; with --lora or --upstream_trainable they "
            "change every step."
        )
    trains = args.downstream is None or find_task(args.downstream).trains
    if args.mode == "train" and not trains:
        raise UserError(f"-d {args.downstream}: nothing is trained: use -m evaluate -t SPLIT.")
    if args.mode != "train" and not args.past_exp and (trains or args.mode == "inference"):
        raise UserError(f"-m {args.mode} needs -e, the experiment folder or checkpoint to use.")
    if args.mode == "inference" and not args.evaluate_split:
        raise UserError("-m inference needs -t, the audio files or folders to predict.")


def prepare(args: Namespace) -> tuple[RunSettings, Path, Start | None]:
    """Settings, the experiment folder, and the checkpoint to start from if there is one."""
    place = args.past_exp
    settings = None
    if place is None and args.auto_resume:
        given = named_folder(args)
        if given is None or not states_of(given):
            settings = resolve(args)
            given = given or RESULTS / settings.folder_name
        place = str(given) if states_of(given) else None
    if place is None:
        if args.auto_resume:
            print("-a: no checkpoint to go on from, starting anew", file=sys.stderr)
        settings = settings or resolve(args)
        folder = named_folder(args) or RESULTS / settings.folder_name
        refuse_used(folder, overwrite=args.overwrite)
        if args.mode != "train":
            folder.mkdir(parents=True, exist_ok=True)
        return settings, folder, None
    source = find_checkpoint(place, resume=args.mode == "train")
    payload = load_checkpoint(source)
    settings = resolve(args, stored_settings(payload, source))
    folder = Path(args.expdir) if args.expdir else source.parent
    folder.mkdir(parents=True, exist_ok=True)
    return settings, folder, (payload, source)


def named_folder(args: Namespace) -> Path | None:
    """The experiment folder that -p or -n names."""
    if args.expdir:
        return Path(args.expdir)
    return RESULTS / args.expname if args.expname else None


def refuse_used(folder: Path, *, overwrite: bool) -> None:
    """Never start a new run on top of another by accident."""
    if not overwrite and (states_of(folder) or (folder / RESULT).is_file()):
        raise UserError(
            f"{folder} holds an experiment: resume it with -a, choose another with -n or -p, or "
            "add --overwrite."
        )


def claim(folder: Path, *, overwrite: bool) -> None:
    """Clear a folder for a new run, of one without a checkpoint too."""
    refuse_used(folder, overwrite=overwrite)
    used = states_of(folder)
    for pattern in (RESULT, BEST, METRICS, f"*{CLIPS}", "events.out.*"):
        used += folder.glob(pattern)
    for path in used:
        path.unlink(missing_ok=True)


def device_of(args: Namespace) -> torch.device:
    """--device, or a GPU where there is one."""
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def build_trainer(
    args: Namespace, settings: RunSettings, model: SpeechModel, folder: Path, *, fresh: bool
) -> Trainer:
    """The model on its device, with its batches, its cache and the files it writes.

    fresh: a new run; what another left in the folder goes now, when nothing is left to refuse.
    """
    options = settings.config.runner
    AcceleratorState._reset_state()  # several experiments may run in one process
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=args.device == "cpu",
        mixed_precision="no" if options.precision == "fp32" else options.precision,
        gradient_accumulation_steps=options.gradient_accumulate_steps,
    )
    model.to(accelerator.device)
    loaders = Loaders(
        settings.task,
        settings.flags.seed,
        by_length=options.batch_by_length,
        batch_seconds=options.batch_seconds,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    trainer = Trainer
    if isinstance(settings.task, ExpertTask):
        trainer, loaders = ExpertTrainer, ExpertLoaders(settings.task, settings.flags.seed)
    is_main = accelerator.is_main_process
    trained = options.train_dataloader if args.mode == "train" else None
    clips = {split: loaders.clips(split, split == trained) for split in settings.splits_read}
    sizes = chain.from_iterable(each.sizes() for each in clips.values())
    check_longest(model.upstream, sizes, accelerator.device)
    odd = settings.task.warnings({split: each.items for split, each in clips.items()})
    if odd and trained and is_main:
        logger.warning("\n  - ".join(["the corpus can be used, but:", *odd]))
    notes = []
    if args.cache:
        root = folder / "cache" if args.cache == "auto" else Path(args.cache)
        splits = settings.splits_read
        notes.append(build_cache(model, root, loaders, splits, budget_gb=args.cache_gb))
    if options.compile and args.mode == "train":
        from s3prl_varan.training.compiled import compile_model

        notes.append(compile_model(model))
    for note in notes if is_main else []:
        print(note, file=sys.stderr)
    if args.verbose and is_main:
        print(model)
    artifacts = None
    if is_main:
        if fresh and args.mode == "train":
            claim(folder, overwrite=args.overwrite)
        artifacts = Artifacts(folder, settings, model, board=args.mode == "train")
    return trainer(model, settings.task, settings.config, loaders, accelerator, folder, artifacts)
