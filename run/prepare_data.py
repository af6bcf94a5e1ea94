#!/usr/bin/env python
"""Turn a corpus into the metadata that training reads.

    python prepare_data.py ravdess ROOT              RAVDESS speech: four speaker-independent folds and the released split
    python prepare_data.py iemocap ROOT              IEMOCAP as in SUPERB: five folds, one session left out each
    python prepare_data.py synthetic ROOT            make a small synthetic corpus there, then prepare it like RAVDESS
    python prepare_data.py librispeech ROOT          length tables for any folder in LibriSpeech's layout
    python prepare_data.py manifest FILE.tsv         the same for recordings listed as `path TAB text`

Each command has its own --help.
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
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--out",
        metavar="DIR",
        help="where the metadata goes (default: meta_data in the corpus folder)",
    )
    shared.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out what has a problem, and say so, instead of stopping",
    )
    speech = argparse.ArgumentParser(add_help=False)
    speech.add_argument(
        "--build_dict",
        action="store_true",
        help="write OUT/char.dict with the corpus's own letters",
    )

    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="corpus", required=True, metavar="CORPUS")
    for name, text in (
        ("ravdess", "holds Actor_01 .. Actor_24"),
        ("iemocap", "holds Session1 .. Session5"),
    ):
        commands.add_parser(name, parents=[shared], help=f"folder that {text}").add_argument(
            "root", metavar="ROOT", help=text
        )

    synthetic = commands.add_parser(
        "synthetic", parents=[shared], help="folder to make the corpus in"
    )
    synthetic.add_argument(
        "root", metavar="ROOT", help="a new folder, or an earlier synthetic corpus to replace"
    )
    synthetic.add_argument("--actors", type=int, default=24, help="8 to 24 voices (default 24)")
    synthetic.add_argument(
        "--repetitions",
        type=int,
        default=1,
        help="clips per actor, emotion and sentence (default 1)",
    )
    synthetic.add_argument("--seed", type=int, default=0)

    librispeech = commands.add_parser(
        "librispeech", parents=[shared, speech], help="folder that holds the splits"
    )
    librispeech.add_argument("root", metavar="ROOT", help="holds <split>/<speaker>/<chapter>/")
    librispeech.add_argument(
        "--splits", nargs="+", metavar="NAME", help="only these (default: all that are found)"
    )
    librispeech.add_argument(
        "--headers_only",
        action="store_true",
        help="do not decode every file: fast, misses torn ones",
    )

    manifest = commands.add_parser(
        "manifest", parents=[shared, speech], help="text file with lines path TAB text"
    )
    manifest.add_argument("manifest", metavar="FILE.tsv")
    manifest.add_argument(
        "--audio_root",
        metavar="DIR",
        help="what the paths are relative to (default: the file's folder)",
    )
    manifest.add_argument("--dev_ratio", type=float, default=0.1)
    manifest.add_argument("--test_ratio", type=float, default=0.1)
    manifest.add_argument("--seed", type=int, default=0, help="of the split")
    manifest.add_argument(
        "--unknown",
        choices=("refuse", "drop_symbol", "drop_utterance"),
        default="refuse",
        help="what to do about digits and symbols outside the alphabet",
    )
    return parser


def prepare(args: argparse.Namespace) -> object:
    """Run the chosen preparation; the result prints as its summary."""
    if args.corpus == "iemocap":
        from s3prl_varan.corpora.iemocap import prepare_iemocap

        return prepare_iemocap(args.root, args.out, skip_bad=args.skip_bad)
    if args.corpus == "librispeech":
        from s3prl_varan.corpora.librispeech import prepare_librispeech

        decode = not args.headers_only
        options = {"skip_bad": args.skip_bad, "build_dict": args.build_dict, "decode": decode}
        return prepare_librispeech(args.root, args.out, args.splits, **options)
    if args.corpus == "manifest":
        from s3prl_varan.corpora.manifest import prepare_manifest

        options = {
            key: value
            for key, value in vars(args).items()
            if key not in ("corpus", "manifest", "out")
        }
        return prepare_manifest(args.manifest, args.out, **options)
    if args.corpus == "synthetic":
        from s3prl_varan.corpora.synthetic import synthesise_corpus

        synthesise_corpus(
            args.root, actors=args.actors, repetitions=args.repetitions, seed=args.seed
        )
    from s3prl_varan.corpora.ravdess import prepare_ravdess

    return prepare_ravdess(args.root, args.out, skip_bad=args.skip_bad)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, prepare, print. Returns the exit status: 2 for a mistake in the input."""
    args = build_parser().parse_args(argv)
    try:
        print(prepare(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
