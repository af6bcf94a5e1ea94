"""Time VARAN beside the weighted sum, the last layer and a plain loop: `python run/benchmark.py`. See --help."""

import sys
from pathlib import Path

try:
    from s3prl_varan.benchmark.cli import main
except ModuleNotFoundError:  # a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from s3prl_varan.benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
