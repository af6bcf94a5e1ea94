#!/usr/bin/env python
"""Compare experiments: `python run/report.py result/downstream/*`. See --help."""

import sys
from pathlib import Path

try:
    from s3prl_varan.report.cli import main
except ModuleNotFoundError:  # a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from s3prl_varan.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
