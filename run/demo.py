"""The main job on a machine that has nothing yet: makes a small synthetic corpus, then trains VARAN and the weighted sum on it.

    python run/demo.py [FOLDER]

The corpus is spoken by eSpeak NG, the upstream is the built-in micro_wavlm, and nothing is downloaded. FOLDER (default:
demo) then holds the corpus, the cached features and one experiment folder for each featurizer.
"""

import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parent
FEATURIZERS = ("varan", "weighted_sum")


def call(script: str, *args: str) -> None:
    """Run one of our commands as a user would, showing it."""
    print(f"\n$ python run/{script} {' '.join(args)}", flush=True)
    subprocess.run([sys.executable, str(RUN / script), *args], check=True)


def main() -> None:
    """Corpus, two experiments, one table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    corpus = folder / "corpus"
    call("prepare_data.py", "synthetic", str(corpus))
    data = "config.downstream_expert.datarc"
    override = f"{data}.root={corpus},,{data}.meta_data={corpus / 'meta_data'},,config.runner.early_stop=10"
    config = str(RUN.parent / "downstream_configs" / "emotion" / "fair.yaml")
    results = {}
    for name in FEATURIZERS:
        expdir = folder / name
        common = (
            "-c",
            config,
            "-o",
            override,
            "-p",
            str(expdir),
            "--overwrite",
            "--cache",
            str(folder / "cache"),
        )
        call("run_downstream.py", "-u", "micro_wavlm", "-d", "emotion", "-f", name, *common)
        results[name] = json.loads((expdir / "result.json").read_text())
    print("\nemotion, synthetic corpus, fold 1, micro_wavlm (frozen)")
    print(f"{'featurizer':<14}{'acc':>8}{'uar':>8}{'best step':>11}{'seconds':>9}")
    for name, result in results.items():
        figures = result["test"]["test"]
        print(
            f"{name:<14}{figures['acc']:8.2f}{figures['uar']:8.2f}{result['best_step']:11d}{result['seconds']:9.1f}"
        )
    print(f"\nWhere the weights lie: {folder}/*/layer_weights.png")


if __name__ == "__main__":
    main()
