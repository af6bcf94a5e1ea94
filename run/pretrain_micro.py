#!/usr/bin/env python
"""Pre-train a small WavLM on folders of unlabelled audio.

pretrain_micro.py CONFIG.yaml --data DIR [DIR ..] --out DIR
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a clone that is not installed

from s3prl_varan.errors import UserError


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("config", help="YAML such as run/micro_wavlm/micro_wavlm.yaml")
    folders = "folders of flac, wav, opus, ogg or mp3"
    add("--data", nargs="+", required=True, metavar="DIR", help=folders)
    written = "cache, checkpoints, metrics.jsonl, curves.png"
    add("--out", required=True, metavar="DIR", type=Path, help=written)
    add("--resume", action="store_true", help="go on from DIR/last.ckpt")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_args()
    try:
        from micro_wavlm.config import load_config
        from micro_wavlm.training import pretrain

        print(pretrain(load_config(args.config), args.data, args.out, resume=args.resume))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
