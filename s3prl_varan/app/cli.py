"""Command line of run_downstream: s3prl's flags, with -f naming the featurizer. Parses only."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from s3prl_varan.errors import UserError
from s3prl_varan.featurizers import featurizer_names
from s3prl_varan.files import FULL
from s3prl_varan.tasks import task_names
from s3prl_varan.training.stopping import Interrupted, ending_by_signal

DESCRIPTION = "Train and evaluate a SUPERB downstream on any s3prl upstream with a featurizer."
EPILOG = """examples:
  run_downstream.py -u wavlm -d TASK -f varan --data ROOT
  run_downstream.py -u wavlm -d TASK -f weighted_sum -v fold2 --seed 1
  run_downstream.py -u whisper -k openai/whisper-base -d TASK -f varan --lora
  run_downstream.py -u my.py:Expert -d my.py:Task -f my.py:Featurizer
  run_downstream.py -m evaluate -t test -e result/downstream/EXPERIMENT
  run_downstream.py -m inference -t file.wav -e result/downstream/EXPERIMENT
"""


class _Parser(argparse.ArgumentParser):
    """Explains the one flag that differs from s3prl's."""

    def error(self, message: str) -> NoReturn:
        if "-f/--featurizer" in message and "expected one argument" in message:
            message = (
                f"-f needs the name of a featurizer ({', '.join(featurizer_names())}). "
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
    _add_run(parser.add_argument_group("run"))
    _add_task(parser.add_argument_group("downstream"))
    _add_upstream(parser.add_argument_group("upstream"))
    _add_features(parser.add_argument_group("features"))
    _add_machine(parser.add_argument_group("machine"))
    return parser


def _add_run(group: Any) -> None:
    add = group.add_argument
    add("-m", "--mode", choices=["train", "evaluate", "inference"], default="train")
    add(
        *("-t", "--evaluate_split"),
        metavar="SPLIT",
        help="split to evaluate (default: the task's test), or files and folders for inference",
    )
    add(
        "-o",
        "--override",
        metavar="KEY=VALUE,,...",
        help='e.g. "config.optimizer.lr=1e-4,,args.seed=2"',
    )
    add(
        *("-e", "--past_exp"),
        metavar="{CKPT,EXPDIR}",
        help="resume training from, or evaluate, this experiment",
    )
    add("-a", "--auto_resume", action="store_true", help="resume if the folder holds checkpoints")
    add(
        *("-i", "--init_ckpt"),
        metavar="CKPT",
        help="start from the weights of a checkpoint, with fresh settings",
    )
    add("-c", "--config", metavar="YAML", help="default: downstream_configs/TASK/config.yaml")
    add("-n", "--expname", help="experiment folder is result/downstream/EXPNAME")
    add("-p", "--expdir", help="experiment folder")
    add("--overwrite", action="store_true", help="start anew in a folder that holds an experiment")


def _add_task(group: Any) -> None:
    names = ", ".join(task_names())
    add = group.add_argument
    add("-d", "--downstream", metavar="TASK", help=f"{names}; or FILE.py:CLASS, MODULE:CLASS")
    add(
        "--data",
        metavar="ROOT",
        help="where the corpus lies: sets all its paths and splits in the config, below -o",
    )
    add("-v", "--downstream_variant", metavar="FOLD", help="e.g. fold1")
    add("--folds", metavar="all|FOLD,...", help="train on every fold, one after another, average")


def _add_upstream(group: Any) -> None:
    add = group.add_argument
    add(
        *("-u", "--upstream"),
        help="any name of s3prl.hub (`*_local` with -k), whisper (with -k), micro_wavlm; or "
        "FILE.py:CALLABLE, MODULE:CALLABLE",
    )
    add(
        *("-k", "--upstream_ckpt"),
        metavar="{PATH,URL,HUB_ID}",
        help="checkpoint, where the upstream needs one",
    )
    add(
        "-g",
        "--upstream_model_config",
        metavar="PATH",
        help="model config, where the upstream needs one",
    )
    add("-r", "--upstream_refresh", action="store_true", help="download cached checkpoints again")
    add("-s", "--upstream_feature_selection", default="hidden_states", metavar="KEY")
    add(
        "--upstream_feature_normalize",
        action="store_true",
        help="layer-normalise every hidden state",
    )
    add("--upstream_trainable", action="store_true", help="fine-tune the whole upstream")
    add(
        "--lora",
        action="store_true",
        help="train LoRA adapters in the upstream (section lora: of the config)",
    )


def _add_features(group: Any) -> None:
    names = ", ".join(featurizer_names())
    add = group.add_argument
    add(
        *("-f", "--featurizer"),
        help=f"{names}; or FILE.py:CLASS, MODULE:CLASS (default: varan)",
    )
    add(
        *("-l", "--upstream_layer_selection"),
        type=int,
        metavar="N",
        help="hidden state of -f layer; 0 = input",
    )
    add("--cache", metavar="DIR", help="keep a frozen upstream's features in DIR (or `auto`)")
    add(
        "--cache_gb",
        type=float,
        default=20.0,
        metavar="GB",
        help="size budget of the cache (default 20)",
    )


def _add_machine(group: Any) -> None:
    add = group.add_argument
    add("--seed", type=int, default=1337)
    add("--device", help="cuda or cpu (default: cuda when there is one)")
    add("--cache_dir", metavar="DIR", help="where s3prl keeps downloads (of Hugging Face: HF_HOME)")
    add("--verbose", action="store_true", help="print the model, log more")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parsed flags; `given` names those on the command line, which must agree with -e's."""
    parser = build_parser()
    args = parser.parse_args(argv)
    defaults = {action.dest: action.default for action in parser._actions}
    args.given = sorted(name for name in vars(args) if getattr(args, name) != defaults[name])
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of run_downstream.py and s3prl-varan: 0, or 2 for a mistake in the input."""
    args = parse_args(argv)
    try:
        with ending_by_signal():
            if args.folds:
                from s3prl_varan.app.folds import run_folds

                run_folds(args)
            else:
                from s3prl_varan.app.run import run

                run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # TensorBoard's events or a new folder: no other is left as it is
        if error.errno not in FULL:
            raise
        print(f"error: no room to write {error.filename or 'a file'}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    return 0
