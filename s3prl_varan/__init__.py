"""s3prl_varan: input-dependent layer aggregation (VARAN) and LoRA for s3prl and SUPERB.

Start at model.py, the path from waveforms to loss. app/run.py carries out a command, training/
drives the model, tasks/ and featurizers/ have a room for each `-d` and `-f`.
"""

import importlib

_PUBLIC = {
    "Featurizer": "featurizers.base",
    "Item": "tasks.shapes.base",
    "LayerPosterior": "featurizers.varan.posterior",
    "Task": "tasks.shapes.base",
    "UserError": "errors",
    "UtteranceTask": "tasks.shapes.utterance",
    "aggregate_log_probs": "layerwise.objective",
    "build_upstream": "upstream.wrapper",
    "elbo": "layerwise.objective",
    "layer_prior": "featurizers.varan.priors",
    "masked_mean": "features.pooling",
}
__all__ = list(_PUBLIC)
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Import public names on first use, so that the command line answers before torch is loaded."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 's3prl_varan' has no attribute '{name}'")
    return getattr(importlib.import_module(f"s3prl_varan.{_PUBLIC[name]}"), name)
