#!/usr/bin/env python
"""Linear probes of every layer of micro_wavlm, of its untrained twins and of log-mel.

Writes probes.csv, probes.md and probes.png. Twins: `random`, weights as drawn; `step 0`, where
pre-training starts: the same but for a mel-spaced first convolution. Emotion and speaker are probed
on RAVDESS; by frame, phones on English speech with transcripts (needs the extra `probe`).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a clone that is not installed

from s3prl_varan.errors import UserError


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    weights = "safetensors or pre-training checkpoint (.ckpt); default: the shipped weights"
    add("--weights", type=Path, metavar="FILE", help=weights)
    add("--ravdess", type=Path, metavar="DIR", help="folder that holds Actor_01 ..")
    train = "split in LibriSpeech's layout that the phone probe is trained on"
    add("--train_speech", type=Path, metavar="DIR", help=train)
    test = "splits it is tested on"
    add("--test_speech", type=Path, nargs="*", default=[], metavar="DIR", help=test)
    add("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    if bool(args.train_speech) != bool(args.test_speech):
        parser.error("the phone probe needs --train_speech and --test_speech together")
    if not args.ravdess and not args.train_speech:
        parser.error("nothing to probe: give --ravdess, or --train_speech and --test_speech")
    return args


def run(args: argparse.Namespace) -> None:
    """Probe what the flags ask for, write the report, print the table."""
    from micro_wavlm import probes
    from micro_wavlm.phones import aligned_clips
    from micro_wavlm.predictor import export_weights

    from s3prl_varan.upstream.micro_wavlm import CONFIG
    from s3prl_varan.upstream.wrapper import build_upstream

    args.out.mkdir(parents=True, exist_ok=True)
    if args.weights and args.weights.suffix == ".ckpt":
        export_weights(args.weights, args.out / "probed.safetensors")
        args.weights = args.out / "probed.safetensors"
    train = aligned_clips(args.train_speech) if args.train_speech else []
    test = [clip for split in args.test_speech for clip in aligned_clips(split)]
    trained = build_upstream("micro_wavlm", ckpt=args.weights and str(args.weights))
    untrained = build_upstream("micro_wavlm", model_config=str(CONFIG))
    start = build_upstream("micro_wavlm", model_config=str(CONFIG))
    probes.start_as_pretraining(start, args.ravdess or args.train_speech)
    models = {"micro_wavlm": trained, "step 0": start, "random": untrained}
    systems = {name: probes.upstream_encoder(upstream) for name, upstream in models.items()}
    systems["fbank"] = probes.log_mel
    scores = probes.probe_ravdess(systems, args.ravdess) if args.ravdess else []
    scores += probes.probe_phones(systems, train, test) if train else []
    probes.write_report(scores, args.out)
    print(probes.markdown(scores))


if __name__ == "__main__":
    try:
        run(parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
