#!/usr/bin/env python
"""Linear probes of every layer of micro_wavlm, of its untrained twins and of log-mel: probes.csv, probes.md, probes.png.

Twins: `random`, weights as drawn; `step 0`, where pre-training starts: the same but for a mel-spaced first convolution.

Emotion and speaker on RAVDESS; by frame, phones on English speech with transcripts (needs the extra `probe`).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights",
        help="safetensors or pre-training checkpoint (.ckpt); default: the shipped weights",
    )
    parser.add_argument("--ravdess", help="folder that holds Actor_01 ..")
    parser.add_argument(
        "--train_speech", help="split in LibriSpeech's layout that the phone probe is trained on"
    )
    parser.add_argument("--test_speech", nargs="*", default=[], help="splits it is tested on")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if bool(args.train_speech) != bool(args.test_speech):
        parser.error("the phone probe needs --train_speech and --test_speech together")
    if not args.ravdess and not args.train_speech:
        parser.error("nothing to probe: give --ravdess, or --train_speech and --test_speech")
    return args


def clips(splits: list[str]) -> list:
    from s3prl_varan.pretrain.phones import aligned_clips

    found = []
    for split in splits:
        aligned, rest = aligned_clips(Path(split))
        print(
            f"{split}: {len(aligned)} clips aligned, {rest} left out (words that are not in CMUdict)"
        )
        found += aligned
    return found


def run(args: argparse.Namespace) -> None:
    from s3prl_varan.pretrain import probe
    from s3prl_varan.pretrain.export import export_weights
    from s3prl_varan.pretrain.probe_report import markdown, write_report
    from s3prl_varan.upstream.micro_wavlm import CONFIG
    from s3prl_varan.upstream.wrapper import build_upstream

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    weights = args.weights
    if weights and weights.endswith(".ckpt"):
        export_weights(Path(weights), out / "probed.safetensors")
        weights = str(out / "probed.safetensors")
    train, test = clips([args.train_speech] if args.train_speech else []), clips(args.test_speech)
    start = build_upstream("micro_wavlm", model_config=str(CONFIG))
    probe.start_as_pretraining(start, Path(args.ravdess or args.train_speech))
    systems = {
        "micro_wavlm": probe.upstream_encoder(build_upstream("micro_wavlm", ckpt=weights)),
        "step 0": probe.upstream_encoder(start),
        "random": probe.upstream_encoder(build_upstream("micro_wavlm", model_config=str(CONFIG))),
        "fbank": probe.log_mel,
    }
    scores = []
    if args.ravdess:
        scores += probe.probe_ravdess(systems, Path(args.ravdess))
    if args.train_speech:
        scores += probe.probe_phones(systems, train, test)
    write_report(scores, out)
    print(markdown(scores))


def main() -> int:
    args = parse_args()
    from s3prl_varan.errors import UserError

    try:
        run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
