#!/usr/bin/env python
"""Write the LoRA adapters of an experiment, or the upstream with the adapters folded in.

    python export_adapter.py result/downstream/EXP adapter
    python export_adapter.py result/downstream/EXP merged.pt --merge

The first writes a folder, in PEFT's format for Hugging Face upstreams, else safetensors; the second
what `-u wavlm_local -k merged.pt` and the like read.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if importlib.util.find_spec("s3prl_varan") is None:  # run from a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from s3prl_varan.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="export_adapter.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiment", metavar="{EXPDIR,CKPT}", help="folder or checkpoint of a run with --lora"
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder to write; with --merge a file, or a folder for Hugging Face upstreams",
    )
    parser.add_argument(
        "--format", choices=("auto", "peft", "safetensors"), default="auto", help="of the adapters"
    )
    parser.add_argument(
        "--merge", action="store_true", help="write a plain upstream checkpoint instead of adapters"
    )
    parser.add_argument(
        "--base_ckpt",
        metavar="PATH",
        help="--merge: the upstream's checkpoint file, if the run had no -k",
    )
    parser.add_argument(
        "-k",
        "--upstream_ckpt",
        metavar="PATH",
        help="the upstream's checkpoint, if it has moved since the run",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, export, print. Returns the exit status: 2 for a mistake in the input."""
    args = build_parser().parse_args(argv)
    try:
        from s3prl_varan.app.export import export_experiment
        from s3prl_varan.compat import patch_torchaudio

        patch_torchaudio()
        path = export_experiment(
            args.experiment,
            args.out,
            fmt=args.format,
            merge=args.merge,
            base_ckpt=args.base_ckpt,
            upstream_ckpt=args.upstream_ckpt,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
