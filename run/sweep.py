#!/usr/bin/env python
"""Run a sweep: `python run/sweep.py SWEEP.yaml --workers 2`. See --help."""

import sys
from pathlib import Path

try:
    from s3prl_varan.sweep.cli import main
except ModuleNotFoundError:  # a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from s3prl_varan.sweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
