"""`python run/stress`, also from a clone that is not installed."""

import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(RUN), str(RUN.parent)]

from stress.cli import main  # noqa: E402

sys.exit(main())
