"""The main job on a machine that has nothing yet: VARAN beside the weighted sum on a small corpus.

    python run/demo.py [FOLDER]

The corpus is spoken by eSpeak NG, the upstream is the built-in micro_wavlm, and nothing is
downloaded. FOLDER (default: demo) then holds the corpus, an experiment folder for each featurizer
and a report that compares them.
"""

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parent
SWEEP = RUN.parent / "downstream_configs" / "sweeps" / "demo.yaml"
DATA = "config.downstream_expert.datarc"


def call(script: str, *args: str) -> None:
    """Run one of our commands as a user would, showing it."""
    print(f"\n$ python run/{script} {' '.join(args)}", flush=True)
    subprocess.run([sys.executable, str(RUN / script), *args], check=True)


def main() -> None:
    """A corpus, two experiments, a table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    corpus, runs = folder / "corpus", folder / "runs"
    call("prepare_data.py", "synthetic", str(corpus))
    places = [f"{DATA}.root={corpus}", f"{DATA}.meta_data={corpus / 'meta_data'}"]
    settings = [word for place in places for word in ("--set", place)]
    call("sweep.py", str(SWEEP), "--out", str(runs), *settings)
    call("report.py", str(runs), "--out", str(folder / "report"))
    print(f"\nWhere the weights lie: {runs}/*/layer_weights.png")


if __name__ == "__main__":
    main()
