"""Command line of `python run/stress`: try to break what is promised, print and save a table."""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

SHARES = {  # of the time
    "kills": 30,
    "signals": 15,
    "disk": 10,
    "damage": 10,
    "configs": 10,
    "clips": 10,
    "races": 10,
    "code": 5,
}
DESCRIPTION = """Try to break what docs/reliability.md promises, and count how often it held.

  kills    SIGKILL at random moments, then -a: weights, metrics and results equal to the bit
  signals  SIGTERM, SIGUSR1, SIGINT: saved at the next step, told, gone on from exactly
  disk     full disks and limits on file sizes while files are written
  damage   checkpoints with a bit flipped, cut off, lacking or misusing fields; stray names
  configs  mutated configs through all that reads a config
  clips    damaged recordings through the check of the corpus and a training
  races    several processes in one folder
  code     checkpoints, configs and pickles that would run something

Every command runs in a process of its own on a corpus of tones and tiny upstreams, which are made
on the spot. Each section runs whole rounds until its share of the budget is used, one at least."""


@dataclass
class Row:
    """A line of the table."""

    section: str
    what: str
    tried: int = 0
    held: int = 0
    problems: list[str] = field(default_factory=list)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("stress", description=DESCRIPTION, formatter_class=form)
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--budget", type=float, default=600, metavar="SECONDS", help="default 600")
    add("--only", nargs="+", choices=list(SHARES), metavar="NAME", help="some of the sections")
    where = "for stress.txt and stress.json (default result/stress)"
    add("--out", type=Path, default=Path("result/stress"), metavar="DIR", help=where)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything held, 1 otherwise."""
    args = build_parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("MPLBACKEND", "Agg")
    with tempfile.TemporaryDirectory(prefix="stress") as folder:
        rows = try_all(Path(folder), args.only or list(SHARES), args.seed, args.budget)
    args.out.mkdir(parents=True, exist_ok=True)
    table = text_table(rows)
    (args.out / "stress.txt").write_text(table)
    saved = {"seed": args.seed, "budget": args.budget, "rows": [asdict(row) for row in rows]}
    (args.out / "stress.json").write_text(json.dumps(saved, indent=1) + "\n")
    print(table)
    broken = [f"{row.section}, {row.what}: {each}" for row in rows for each in row.problems]
    print("\n\n".join(broken), file=sys.stderr)
    return int(bool(broken))


def try_all(folder: Path, names: Sequence[str], seed: int, budget: float) -> list[Row]:
    """Rounds of each section until its share of the budget, in seconds, is used."""
    from stress.bait import bait
    from stress.clips import clips
    from stress.configs import configs
    from stress.damage import damage
    from stress.disk import disk
    from stress.ground import Ground
    from stress.kills import kills, signals
    from stress.races import races

    sections = dict(
        zip(SHARES, (kills, signals, disk, damage, configs, clips, races, bait), strict=True)
    )
    ground = Ground(folder)
    total = sum(SHARES[name] for name in names)
    rows: list[Row] = []
    for name in names:
        rng = random.Random(f"{seed} {name}")
        until = time.monotonic() + budget * SHARES[name] / total
        found: dict[str, Row] = {}
        while True:
            for trial in sections[name](ground, rng):
                row = found.setdefault(trial.what, Row(name, trial.what))
                row.tried += trial.count
                row.held += 0 if trial.problem else trial.count
                row.problems += [trial.problem] if trial.problem else []
            ground.clear()
            if time.monotonic() >= until:
                break
        rows += found.values()
        print(text_table(found.values()), file=sys.stderr, flush=True)
    return rows


def text_table(rows: Iterable[Row]) -> str:
    """section, what, tried, held."""
    cells = [("section", "what", "tried", "held")]
    cells += [(row.section, row.what, f"{row.tried}", f"{row.held}") for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(4)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in cells
    ]
    return "\n".join(lines) + "\n"
