"""Command line of run_downstream: s3prl's flags, with -f naming the featurizer. Parses only; everything heavy comes after."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from s3prl_varan.errors import UserError

DESCRIPTION = (
    "Train and evaluate a SUPERB downstream on any s3prl upstream with a featurizer of choice."
)
EPILOG = """examples:
  run_downstream.py -u wavlm -d emotion -f varan
  run_downstream.py -u wavlm -d emotion -f weighted_sum -v fold2 --seed 1
  run_downstream.py -u whisper -k openai/whisper-base -d emotion -f varan --lora
  run_downstream.py -m evaluate -t test -e result/downstream/EXPERIMENT
  run_downstream.py -m inference -t file.wav -e result/downstream/EXPERIMENT
"""


class _Parser(argparse.ArgumentParser):
    """Explains the one flag that differs from s3prl's."""

    def error(self, message: str) -> NoReturn:
        if "-f/--featurizer" in message and "expected one argument" in message:
            message = (
                "-f needs the name of a featurizer (varan, weighted_sum, last_layer, layer). "
                "s3prl's -f switch, fine-tuning the upstream, is --upstream_trainable here."
            )
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """All flags. Those of s3prl keep their letters and meaning."""
    parser = _Parser(
        prog="run_downstream.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = parser.add_argument_group("run")
    run.add_argument("-m", "--mode", choices=["train", "evaluate", "inference"], default="train")
    run.add_argument(
        "-t",
        "--evaluate_split",
        metavar="SPLIT",
        help="split to evaluate (default: the task's test), or file(s) for inference",
    )
    run.add_argument(
        "-o",
        "--override",
        metavar="KEY=VALUE,,...",
        help='e.g. "config.optimizer.lr=1e-4,,args.seed=2"',
    )
    run.add_argument(
        "-e",
        "--past_exp",
        metavar="{CKPT,EXPDIR}",
        help="resume training from, or evaluate, this experiment",
    )
    run.add_argument(
        "-a",
        "--auto_resume",
        action="store_true",
        help="resume if the experiment folder holds checkpoints",
    )
    run.add_argument(
        "-i",
        "--init_ckpt",
        metavar="CKPT",
        help="start from the weights of a checkpoint, with fresh settings",
    )
    run.add_argument(
        "-c",
        "--config",
        metavar="YAML",
        help="default: downstream_configs/DOWNSTREAM/FEATURIZER.yaml",
    )
    run.add_argument("-n", "--expname", help="experiment folder is result/downstream/EXPNAME")
    run.add_argument("-p", "--expdir", help="experiment folder")
    run.add_argument(
        "--overwrite", action="store_true", help="start anew in a folder that holds an experiment"
    )

    task = parser.add_argument_group("downstream")
    task.add_argument("-d", "--downstream", help="e.g. emotion, asr")
    task.add_argument("-v", "--downstream_variant", metavar="FOLD", help="e.g. fold1")
    task.add_argument(
        "--folds",
        metavar="all|FOLD,...",
        help="train on every fold, one after another, and average",
    )

    upstream = parser.add_argument_group("upstream")
    upstream.add_argument(
        "-u",
        "--upstream",
        help="any name of s3prl.hub (`*_local` with -k), whisper (with -k), micro_wavlm, or FILE.py:CALLABLE, MODULE:CALLABLE",
    )
    upstream.add_argument(
        "-k",
        "--upstream_ckpt",
        metavar="{PATH,URL,HUB_ID}",
        help="checkpoint, where the upstream needs one",
    )
    upstream.add_argument(
        "-g",
        "--upstream_model_config",
        metavar="PATH",
        help="model config, where the upstream needs one",
    )
    upstream.add_argument(
        "-r", "--upstream_refresh", action="store_true", help="download cached checkpoints again"
    )
    upstream.add_argument(
        "-s", "--upstream_feature_selection", default="hidden_states", metavar="KEY"
    )
    upstream.add_argument(
        "--upstream_feature_normalize",
        action="store_true",
        help="layer-normalise every hidden state",
    )
    upstream.add_argument(
        "--upstream_trainable", action="store_true", help="fine-tune the whole upstream"
    )
    upstream.add_argument(
        "--lora",
        action="store_true",
        help="train LoRA adapters in the upstream (section lora: of the config)",
    )

    features = parser.add_argument_group("features")
    features.add_argument(
        "-f", "--featurizer", help="varan (default), weighted_sum, last_layer, layer (with -l)"
    )
    features.add_argument(
        "-l",
        "--upstream_layer_selection",
        type=int,
        metavar="N",
        help="hidden state of -f layer; 0 = input",
    )
    features.add_argument(
        "--cache", metavar="DIR", help="keep a frozen upstream's features in DIR (or `auto`)"
    )
    features.add_argument(
        "--cache_gb",
        type=float,
        default=20.0,
        metavar="GB",
        help="size budget of the cache (default 20)",
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument("--seed", type=int, default=1337)
    machine.add_argument("--device", help="cuda or cpu (default: cuda when there is one)")
    machine.add_argument(
        "--cache_dir", metavar="DIR", help="where s3prl keeps downloaded checkpoints"
    )
    machine.add_argument("--verbose", action="store_true", help="print the model, log more")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parsed flags, with the ones given on the command line noted in `given` (they outlive -e's stored ones)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.given = sorted(
        action.dest
        for action in parser._actions
        if action.dest in vars(args) and getattr(args, action.dest) != action.default
    )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of run_downstream.py and s3prl-varan: 0 on success, 2 for a mistake in the input."""
    args = parse_args(argv)
    try:
        if args.folds:
            from s3prl_varan.app.folds import run_folds

            run_folds(args)
        else:
            from s3prl_varan.app.experiment import run

            run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; `-a` resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0
