"""Look into a feature cache or empty it: the commands of run/cache.py."""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from s3prl_varan.errors import UserError

EPILOG = """DIR is what was given to --cache, or an experiment folder whose run had `--cache auto`.
Clearing is safe while something trains: it computes again what it misses."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="cache.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="what is stored, and how much of it")
    info.add_argument("dir", metavar="DIR")
    info.add_argument(
        "--verify", action="store_true", help="read everything and count damaged entries"
    )
    clear = commands.add_parser("clear", help="delete it")
    clear.add_argument("dir", metavar="DIR")
    clear.add_argument("--upstream", metavar="NAME", help="only what belongs to this upstream")
    return parser


def stores(root: str | Path) -> dict[Path, dict]:
    """The stores of a cache, folder -> what they hold. UserError where `root` is no cache."""
    from s3prl_varan.features.store import ABOUT

    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    files = sorted(root.glob(f"*/{ABOUT}")) or sorted((root / "cache").glob(f"*/{ABOUT}"))
    found = {}
    for file in files:
        try:
            found[file.parent] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # another program's, or cleared meanwhile
            continue
    return found


def info(root: str | Path, verify: bool = False) -> str:
    """A table of the stores."""
    from s3prl_varan.features.store import ArrayStore, readable_bytes, used_bytes

    lines, total = [], 0
    for folder, about in stores(root).items():
        store, size = ArrayStore(folder), used_bytes(folder)
        total += size
        damaged = f", {store.verify()} damaged" if verify else ""
        kept = "means over time" if about["kept"] == "means" else "all frames"
        checkpoint = f" ({about['checkpoint']})" if about.get("checkpoint") else ""
        states = f"{about['num_hidden']} hidden states of {about['dim']}"
        lines += [
            f"{folder.name}: {len(store)} clips, {readable_bytes(size)}{damaged}",
            f"    {about['upstream']}{checkpoint}, {states}, {kept}",
        ]
    if not lines:
        return f"{root}: no cached features"
    return "\n".join([*lines, f"{readable_bytes(total)} in all"])


def clear(root: str | Path, upstream: str | None = None) -> str:
    """Delete the stores (of one upstream), nothing else that may lie in the folder."""
    from s3prl_varan.features.store import readable_bytes, used_bytes

    found = stores(root)
    chosen = [folder for folder, about in found.items() if upstream in (None, about["upstream"])]
    if upstream is not None and not chosen:
        names = ", ".join(sorted({about["upstream"] for about in found.values()})) or "none"
        raise UserError(f"{root} holds nothing of upstream '{upstream}'. There: {names}.")
    size = sum(used_bytes(folder) for folder in chosen)
    for folder in chosen:
        shutil.rmtree(folder)
    return f"{root}: {len(chosen)} store(s), {readable_bytes(size)} deleted"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, act, print. Returns the exit status: 2 for a mistake in the input."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if args.command == "info":
            print(info(args.dir, args.verify))
        else:
            print(clear(args.dir, args.upstream))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
