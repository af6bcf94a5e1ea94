"""The main job on a machine that has nothing yet: VARAN beside the weighted sum on a small corpus.

    python run/demo.py [FOLDER]
    python run/demo.py --planted [FOLDER]

The corpus is spoken by eSpeak NG, the upstream is the built-in micro_wavlm, and nothing is
downloaded. FOLDER (default: demo) then holds the corpus, an experiment folder for each featurizer
and a report that compares them. --planted: a corpus with a known answer in its place, where weights
must follow the input (run/planted/): would VARAN find it, if there were something to find?
"""

import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parent
SWEEPS = RUN.parent / "downstream_configs" / "sweeps"
PLANTED_CLIPS = {"train": 4000, "dev": 500, "test": 500}
DATA = "config.downstream_expert.datarc"


def call(script: str, *args: str) -> None:
    """Run one of our commands as a user would, showing it."""
    print(f"\n$ python run/{script} {' '.join(args)}", flush=True)
    subprocess.run([sys.executable, str(RUN / script), *args], check=True)


def main() -> None:
    """A corpus, experiments, a table."""
    places = [word for word in sys.argv[1:] if word != "--planted"]
    folder = Path(places[0] if places else "demo")
    (planted if "--planted" in sys.argv[1:] else spoken)(folder)


def compare(sweep: str, folder: Path, *settings: str) -> Path:
    """Run a shipped sweep and its report below `folder`; where the experiments are."""
    runs = folder / "runs"
    chosen = [word for setting in settings for word in ("--set", setting)]
    call("sweep.py", str(SWEEPS / sweep), "--out", str(runs), *chosen)
    call("report.py", str(runs), "--out", str(folder / "report"))
    return runs


def spoken(folder: Path) -> None:
    """VARAN beside the weighted sum."""
    corpus = folder / "corpus"
    call("prepare_data.py", "synthetic", str(corpus))
    settings = f"{DATA}.root={corpus}", f"{DATA}.meta_data={corpus / 'meta_data'}"
    runs = compare("demo.yaml", folder, *settings)
    print(f"\nWhere the weights lie: {runs}/*/layer_weights.png")


def planted(folder: Path) -> None:
    """Weights that follow the input beside others, where it is known what they are worth."""
    from planted import KNOWN_DYNAMIC, KNOWN_INFORMATION, KNOWN_STATIC, make_corpus

    home = folder / "planted"
    prepared = home / "prepared"
    table = make_corpus(home, **PLANTED_CLIPS)
    call("prepare_data.py", "labels", str(table), "--out", str(prepared))
    upstream = RUN / "planted" / "upstream.py"
    settings = f"upstream={upstream}:planted", f"{DATA}.root={prepared}"
    runs = compare("planted.yaml", home, *settings)
    print(f"\n{'test accuracy in %':<44}{'known':>9}{'found':>9}")
    results = [json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))]
    for result in sorted(results, key=lambda each: each["test"]["test"]["acc"]):
        name, found = result["featurizer"], result["dynamics"].get("test")
        if name == "varan":
            name += f", posterior: {result['config']['varan']['posterior']}"
        known = KNOWN_STATIC if found is None else KNOWN_DYNAMIC
        print(f"{name:<44}{known:9.1f}{result['test']['test']['acc']:9.1f}")
        if found is not None:
            twin, nats = found["static_twin"]["acc"], found["information_nats"]
            print(f"{'  the same with its mean q':<44}{KNOWN_STATIC:9.1f}{twin:9.1f}")
            print(f"{'  I(L;X) in nats (at most)':<44}{KNOWN_INFORMATION:9.2f}{nats:9.2f}")


if __name__ == "__main__":
    main()
