#!/usr/bin/env python
"""Turn a corpus into the metadata that training reads.

    python prepare_data.py labels FILE               your own: a CSV or TSV with the columns path,
                                                     label (speaker, fold or split, start, end)
    python prepare_data.py emodb ROOT                EmoDB: five speaker-independent folds
    python prepare_data.py ravdess ROOT              RAVDESS speech: four speaker-independent folds
                                                     and the released split
    python prepare_data.py iemocap ROOT              IEMOCAP as in SUPERB: five folds, one session
                                                     left out each
    python prepare_data.py synthetic ROOT            make a small synthetic corpus there, then
                                                     prepare it like RAVDESS
    python prepare_data.py trials SOURCE             speaker verification on your own recordings: a
                                                     folder for each speaker, or a table with the
                                                     columns path and speaker
    python prepare_data.py librispeech ROOT          length tables for any folder in LibriSpeech's
                                                     layout
    python prepare_data.py manifest FILE.tsv         the same for recordings listed as
                                                     `path TAB text`, or in the columns path,
                                                     text, speaker, split
    python prepare_data.py mixtures ROOT --out DIR   two speakers at a time, mixed from any corpus
                                                     with speakers: who speaks when

Each command has its own --help.
"""

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if importlib.util.find_spec("s3prl_varan") is None:  # run from a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from s3prl_varan.corpora.emodb import prepare_emodb
from s3prl_varan.corpora.iemocap import prepare_iemocap
from s3prl_varan.corpora.labels import prepare_labels
from s3prl_varan.corpora.librispeech import prepare_librispeech
from s3prl_varan.corpora.manifest import UNKNOWN, prepare_manifest
from s3prl_varan.corpora.mixtures import prepare_mixtures
from s3prl_varan.corpora.ravdess import prepare_ravdess
from s3prl_varan.corpora.trials import prepare_trials
from s3prl_varan.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line. A command's `prepare` takes the other arguments by their names."""
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
    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="corpus", required=True, metavar="CORPUS")
    _add_labels(commands.add_parser("labels", parents=[shared], help="table of labelled clips"))
    emodb = commands.add_parser("emodb", parents=[shared], help="folder that holds 03a01Fa.wav ...")
    emodb.add_argument("root", metavar="ROOT", help="holds the recordings, or wav/ with them")
    emodb.set_defaults(prepare=prepare_emodb)
    ravdess = commands.add_parser(
        "ravdess", parents=[shared], help="folder that holds Actor_01 .. Actor_24"
    )
    ravdess.add_argument("root", metavar="ROOT", help="holds Actor_01 .. Actor_24")
    ravdess.set_defaults(prepare=prepare_ravdess)
    iemocap = commands.add_parser(
        "iemocap", parents=[shared], help="folder that holds Session1 .. Session5"
    )
    iemocap.add_argument("root", metavar="ROOT", help="holds Session1 .. Session5")
    iemocap.set_defaults(prepare=prepare_iemocap)
    _add_synthetic(commands.add_parser("synthetic", parents=[shared], help="folder to make it in"))
    _add_trials(commands.add_parser("trials", parents=[shared], help="recordings by speaker"))
    _add_librispeech(
        commands.add_parser("librispeech", parents=[shared], help="folder that holds the splits")
    )
    _add_manifest(
        commands.add_parser("manifest", parents=[shared], help="text file with lines path TAB text")
    )
    _add_mixtures(
        commands.add_parser("mixtures", parents=[shared], help="corpus whose speakers to mix")
    )
    return parser


def prepare_synthetic(**options: Any) -> object:
    """Make the synthetic corpus, then prepare it."""
    from synthetic import prepare_synthetic as prepare

    return prepare(**options)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=prepare_labels)
    parser.add_argument(
        "table",
        metavar="FILE",
        help="CSV or TSV; the first line names its columns: path, label; speaker, fold or split, "
        "start and end (seconds) if there are such",
    )
    _add_audio_root(parser)
    parser.add_argument(
        "--folds",
        type=int,
        default=5,
        metavar="N",
        help="how many to make where FILE has neither fold nor split (default 5)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the folds")


def _add_audio_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--audio_root",
        metavar="DIR",
        help="what the paths are relative to (default: the file's folder)",
    )


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=prepare_synthetic)
    parser.add_argument(
        "root", metavar="ROOT", help="a new folder, or an earlier synthetic corpus to replace"
    )
    parser.add_argument("--actors", type=int, default=24, help="8 to 24 voices (default 24)")
    parser.add_argument(
        "--repetitions",
        type=int,
        default=1,
        help="clips per actor, emotion and sentence (default 1)",
    )
    parser.add_argument("--seed", type=int, default=0)


def _add_trials(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=prepare_trials)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="holds a folder of recordings for each speaker; or a CSV or TSV with the columns path "
        "and speaker (start and end, if it has them; what `labels` wrote will do)",
    )
    _add_audio_root(parser)
    for split in ("dev", "test"):
        parser.add_argument(
            f"--{split}_speakers", type=int, metavar="N", help="default: a sixth, at least two"
        )
    parser.add_argument(
        "--trials", type=int, default=20000, metavar="N", help="of dev and of test (default 20000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the speakers and trials")


def _add_librispeech(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=prepare_librispeech)
    parser.add_argument("root", metavar="ROOT", help="holds <split>/<speaker>/<chapter>/")
    parser.add_argument(
        "--splits", nargs="+", metavar="NAME", help="only these (default: all that are found)"
    )
    parser.add_argument(
        "--headers_only",
        action="store_false",
        dest="decode",
        help="do not decode every file: fast, misses torn ones",
    )
    _add_build_dict(parser)


def _add_manifest(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=prepare_manifest)
    parser.add_argument("manifest", metavar="FILE.tsv")
    _add_audio_root(parser)
    parser.add_argument("--dev_ratio", type=float, default=0.1)
    parser.add_argument("--test_ratio", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument(
        "--unknown",
        choices=UNKNOWN,
        default=UNKNOWN[0],
        help="what to do about digits and symbols outside the alphabet",
    )
    _add_build_dict(parser)


def _add_mixtures(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=prepare_mixtures)
    parser.add_argument(
        "root",
        metavar="ROOT",
        help="what `labels` prepared, LibriSpeech's layout, or a folder for each speaker",
    )
    for split, count in (("train", 400), ("dev", 50), ("test", 50)):
        text = f"mixtures of {split} (default {count})"
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=text)
    parser.add_argument(
        "--utterances",
        type=int,
        default=3,
        metavar="N",
        help="of each speaker in a mixture, at most (default 3)",
    )
    parser.add_argument("--seed", type=int, default=0)


def _add_build_dict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--build_dict",
        action="store_true",
        help="write OUT/char.dict with the corpus's own letters",
    )


def training_command(corpus: str, data: Path | None) -> str:
    """What trains on a corpus that the command `corpus` prepared, "" where --data cannot say it."""
    from s3prl_varan.tasks import find_task, task_names

    tasks = [name for name in task_names() if corpus in find_task(name).preparations]
    if not tasks or data is None:
        return ""
    place = shlex.quote(str(data))
    return f"train on it: python run_downstream.py -u wavlm -d {tasks[0]} -f varan --data {place}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, prepare, print. Returns the exit status: 2 for a mistake in the input."""
    options = vars(build_parser().parse_args(argv))
    corpus, prepare = options.pop("corpus"), options.pop("prepare")
    try:
        summary = prepare(**options)
        print("\n".join(filter(None, [str(summary), training_command(corpus, summary.data)])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
