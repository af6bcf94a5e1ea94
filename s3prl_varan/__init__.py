"""s3prl_varan: input-dependent layer aggregation (VARAN) and LoRA for s3prl's upstreams and SUPERB's downstreams.

How data flows: audio batch -> upstream.py (+ lora.py) -> features.py -> featurizers.py (posterior.py, priors.py) ->
downstream.py (heads.py, objective.py) -> metrics.py; runner.py drives it, experiment.py assembles it, cli.py parses.
"""

import importlib

_PUBLIC = {
    "layer_prior": "featurizers.priors",
    "LayerPosterior": "featurizers.posterior",
    "masked_mean": "features.pooling",
    "elbo": "layerwise.objective",
    "aggregate_log_probs": "layerwise.objective",
    "register_featurizer": "featurizers.registry",
    "Featurizer": "featurizers.registry",
    "build_featurizer": "featurizers.registry",
    "build_upstream": "upstream.wrapper",
    "UserError": "errors",
}
__all__ = list(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import public names on first use, so that the command line answers before torch is loaded."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 's3prl_varan' has no attribute '{name}'")
    return getattr(importlib.import_module(f"s3prl_varan.{_PUBLIC[name]}"), name)
