#!/usr/bin/env python
"""Linear probes of every layer of micro_wavlm, of its untrained twins and of log-mel: probes.csv, probes.md, probes.png.

Twins: `random`, weights as drawn; `step 0`, where pre-training starts: the same but for a mel-spaced first convolution.

Emotion and speaker on RAVDESS; by frame, the k-means units of another encoder (--teacher, -k of `-u whisper`).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="safetensors or pre-training checkpoint (.ckpt); default: the shipped weights")
    parser.add_argument("--ravdess", help="folder that holds Actor_01 ..")
    parser.add_argument("--train_speech", help="folder of recordings the frame probe is trained on")
    parser.add_argument("--test_speech", nargs="*", default=[], help="folders it is tested on")
    parser.add_argument("--teacher", help="checkpoint for `-u whisper`, whose units the frame probe predicts")
    parser.add_argument("--teacher_layer", type=int, default=3, help="its layer that is clustered")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    frames = (args.train_speech, args.teacher, args.test_speech)
    if any(frames) and not all(frames):
        parser.error("the frame probe needs --train_speech, --test_speech and --teacher together")
    if not args.ravdess and not any(frames):
        parser.error("nothing to probe: give --ravdess, or --train_speech, --test_speech and --teacher")
    return args


def run(args: argparse.Namespace) -> None:
    from s3prl_varan.pretrain import probe
    from s3prl_varan.pretrain.export import export_weights
    from s3prl_varan.pretrain.probe_report import markdown, write_report
    from s3prl_varan.upstream import build_upstream
    from s3prl_varan.upstreams.micro_wavlm import CONFIG

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    weights = args.weights
    if weights and weights.endswith(".ckpt"):
        export_weights(Path(weights), out / "probed.safetensors")
        weights = str(out / "probed.safetensors")
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
    if args.teacher:
        teacher = probe.upstream_encoder(build_upstream("whisper", ckpt=args.teacher))
        train = probe.read_folder(Path(args.train_speech))
        test = [wav for folder in args.test_speech for wav in probe.read_folder(Path(folder))]
        scores += probe.probe_frames(systems, teacher, args.teacher_layer, train, test)
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
