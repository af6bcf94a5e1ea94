"""Command line of run/benchmark.py: measure, print tables, save JSON and CSV."""

import argparse
import csv
import io
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECTION_NAMES = ("startup", "steps", "memory", "growth", "epochs", "precision")
DESCRIPTION = """Time VARAN beside the weighted sum, the last layer and a plain loop over layers.

  startup    --help, and a new process up to its first training step
  steps      a training step: frozen, LoRA and fully fine-tuned upstream, emotion (er) and CTC heads
  memory     its peak memory, each in a process of its own
  growth     featurizer, heads and loss alone, over layers, frames and batch size
  epochs     epochs without the feature cache, filling it, and reading it
  precision  VARAN's step in halves and with torch.compile

Upstreams have random weights: base is WavLM Base's size, tiny has 4 layers of 64. What is compared is run in turns
(A B C A B C), so that a machine that slows down slows all; shown are medians. On a machine that others use as well,
--clock cpu --threads 1 counts processor time instead of waiting."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: all")
    parser.add_argument(
        "--geometries", nargs="+", choices=("base", "tiny"), default=["base", "tiny"]
    )
    parser.add_argument(
        "--tunings",
        nargs="+",
        choices=("frozen", "lora", "full"),
        default=["frozen", "lora", "full"],
    )
    parser.add_argument("--batch", type=int, default=4, help="clips (default 4)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="length of every clip (default 4)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed turns (default 5)")
    parser.add_argument("--threads", type=int, help="of torch (default: one per core)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="result/benchmark",
        help="for SECTION.csv and benchmark.json",
    )
    parser.add_argument(
        "--quick", action="store_true", help="everything as small as it gets, to see that it runs"
    )
    return parser


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns."""
    header = list(rows[0])
    lines = [header, *([_cell(row.get(name)) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def machine(threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": threads, "gpu": gpu, "torch": torch.__version__,
        "python": platform.python_version(), "clock": args.clock, "batch": args.batch, "seconds": args.seconds,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save. Returns the exit status: 2 for a mistake in the input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.sections if name not in SECTION_NAMES]
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)}; expected {', '.join(SECTION_NAMES)}")
    import logging
    import warnings

    import torch

    warnings.simplefilter("ignore")
    logging.getLogger("s3prl_varan").setLevel(logging.ERROR)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    from s3prl_varan.benchmark.sections import SECTIONS, Settings

    if args.quick:
        args.geometries, args.batch, args.seconds, args.repeats = ["tiny"], 2, 0.5, 2
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings = Settings(
        tuple(args.geometries), tuple(args.tunings), args.batch, args.seconds, args.repeats, threads, args.clock, args.device,
        quick=args.quick,
    )  # fmt: skip
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(threads, args)}
    print(
        "  ".join(
            f"{name} {value}" for name, value in results["machine"].items() if value is not None
        )
    )
    for name in args.sections or SECTION_NAMES:
        rows = results[name] = []
        for row in SECTIONS[name](settings):
            rows.append(row)
            save(out, name, results)  # what is measured stays, whatever comes after
            print(f"{name}: {len(rows)} figures", end="\r", file=sys.stderr)
        print(f"\n{name}\n{table(rows)}", flush=True)
    return 0


def save(out: Path, name: str, results: dict[str, Any]) -> None:
    """Write DIR/benchmark.json and the section's CSV."""
    from s3prl_varan.training.checkpoint import write_atomic

    text = io.StringIO()
    writer = csv.DictWriter(text, list(results[name][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(results[name])
    write_atomic(out / f"{name}.csv", text.getvalue())
    write_atomic(out / "benchmark.json", json.dumps(results, indent=2) + "\n")
