#!/usr/bin/env python
"""Pre-train a small WavLM on folders of unlabelled audio: `pretrain_micro.py CONFIG.yaml --data DIR [DIR ..] --out DIR`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="YAML such as s3prl_varan/pretrain/micro_wavlm.yaml")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="DIR",
        help="folders of flac, wav, opus, ogg or mp3",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="cache, checkpoints, metrics.jsonl, curves.png"
    )
    parser.add_argument("--resume", action="store_true", help="go on from DIR/last.ckpt")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from s3prl_varan.errors import UserError

    try:
        from s3prl_varan.pretrain.config import load_config
        from s3prl_varan.pretrain.trainer import Trainer

        print(Trainer(load_config(args.config), args.data, Path(args.out), args.resume).run())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
