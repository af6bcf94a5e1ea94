"""Command line of `python run/benchmark`: measure, print tables, save JSON and CSV."""

import argparse
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECTION_NAMES = ("startup", "steps", "memory", "growth", "epochs", "precision")
DESCRIPTION = """Time VARAN beside the weighted sum, the last layer and a plain loop over layers.

  startup    --help, and a new process up to its first training step
  steps      a training step: frozen, LoRA and fully fine-tuned upstream, class and CTC heads
  memory     its peak memory, each in a process of its own
  growth     featurizer, heads and loss alone, over layers, frames and batch size
  epochs     epochs without the feature cache, filling it, and reading it
  precision  VARAN's step in halves and with torch.compile

Upstreams have random weights: base is WavLM Base's size, tiny has 4 layers of 64. What is compared
is run in turns (A B C A B C), so that a machine that slows down slows all; shown are medians. On
a machine that others use as well, --clock cpu --threads 1 counts processor time, not waiting."""
TUNINGS, GEOMETRIES = ("frozen", "lora", "full"), ("base", "tiny")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmark", description=DESCRIPTION, formatter_class=form)
    add = parser.add_argument
    add("sections", nargs="*", type=_section, metavar="SECTION", help="default: all")
    add("--geometries", nargs="+", choices=GEOMETRIES, default=GEOMETRIES)
    add("--tunings", nargs="+", choices=TUNINGS, default=TUNINGS)
    add("--batch", type=int, default=4, help="clips (default 4)")
    add("--seconds", type=float, default=4.0, help="length of every clip (default 4)")
    add("--repeats", type=int, default=5, help="timed turns (default 5)")
    add("--threads", type=int, help="of torch (default: one per core)")
    add("--clock", choices=("wall", "cpu"), default="wall")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    out = "for SECTION.csv and benchmark.json"
    add("--out", type=Path, metavar="DIR", default="result/benchmark", help=out)
    add("--quick", action="store_true", help="as small as it gets, to see that it runs")
    return parser


def _section(name: str) -> str:
    if name not in SECTION_NAMES:
        known = ", ".join(SECTION_NAMES)
        raise argparse.ArgumentTypeError(f"unknown section {name}; expected {known}")
    return name


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return {
        "cpu": next(iter(models), platform.processor()),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{name: getattr(args, name) for name in ("threads", "clock", "batch", "seconds")},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = build_parser()
    args = parser.parse_args(argv)
    import pandas as pd
    import torch

    from benchmark.sections import SECTIONS
    from s3prl_varan.files import write_atomic

    warnings.simplefilter("ignore")
    logging.getLogger("s3prl_varan").setLevel(logging.ERROR)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if args.quick:
        args.geometries, args.batch, args.seconds, args.repeats = ["tiny"], 2, 0.5, 2
    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(args)}
    print("  ".join(f"{key} {value}" for key, value in results["machine"].items() if value))
    for name in args.sections or SECTION_NAMES:
        rows = results[name] = []
        for row in SECTIONS[name](args):
            rows.append(row)
            table = pd.DataFrame(rows)
            # What is measured stays, whatever comes after.
            write_atomic(args.out / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
            write_atomic(args.out / "benchmark.json", json.dumps(results, indent=2) + "\n")
            print(f"{name}: {len(rows)} figures", end="\r", file=sys.stderr)
        print(f"\n{name}\n{table.to_string(index=False, float_format=_figure)}", flush=True)
    return 0


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
