"""`runner.compile`: torch.compile of transformer layers, posterior and linear heads.

Their forwards are replaced one by one, so parameters keep their names in checkpoints, the hooks by
which s3prl collects hidden states fire outside, and experts that cannot be traced as a whole stay
as they are. Lengths and batch sizes are symbolic, so that batches of other lengths do not each
compile anew; evaluation, which has no gradients, compiles once more.
"""

import torch
from torch import nn

from s3prl_varan.errors import UserError
from s3prl_varan.featurizers.varan.posterior import LayerPosterior
from s3prl_varan.layerwise.heads import LinearHeads
from s3prl_varan.model import SpeechModel
from s3prl_varan.tuning.targets import transformer_layers


def compile_model(model: SpeechModel) -> str:
    """Compile in place, at the first batches to come; returns a line that says what.

    Raises UserError where this machine cannot.
    """
    check_compiler(next(model.parameters()).device)
    layers = [] if model.cached_encoder is not None else transformer_layers(model.upstream)
    parts: list[nn.Module] = [model.upstream.get_submodule(name) for name in layers]
    after = (getattr(model.featurizer, "posterior", None), model.downstream.heads)
    # Other heads may pack sequences, which cannot be traced.
    parts += [part for part in after if isinstance(part, LayerPosterior | LinearHeads)]
    # LoRA gives every layer a class of its own, each compiled for training and for evaluation.
    limit = 8 * max(1, len(layers))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=True)  # type: ignore[method-assign]
    return (
        f"compile: {len(layers)} layers of the upstream, {len(parts) - len(layers)} modules after "
        "it; the first steps are slow"
    )


def check_compiler(device: torch.device) -> None:
    """Compile something small, so that a machine without a compiler is told before training."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1.0)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds: no compiler, no Triton, an unsupported Python
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"runner.compile: torch.compile does not work here: {reason}. On a CPU it needs a C++ "
            "compiler (g++ or clang++), on a GPU Triton. Install it, or set runner.compile: false."
        ) from error
