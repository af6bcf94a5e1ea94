"""LoRA on any upstream: W + (alpha / rank) B A in the place of a frozen W.

Hu et al. 2021, arXiv 2106.09685. s3prl's attentions hand their raw `.weight` to
F.multi_head_attention_forward, where a wrapper around the Linear module is never called. So W
itself is parametrized: whoever reads `.weight` gets the adapted matrix. Where a plain nn.Linear is
called as a module, the same product is computed as W x + (alpha / rank) B (A x), which needs no
gradient of the size of W and is the only place where dropout on the input of A has a meaning.

Adapters in files and checkpoints: {MODULE.lora_A: [rank, in], MODULE.lora_B: [out, rank]}, float32.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s3prl_varan.audio import SAMPLE_RATE
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.tuning.options import LoraOptions
from s3prl_varan.tuning.targets import (
    Target,
    find_targets,
    linear_targets,
    name_patterns,
    selected_layers,
    unknown_to_presets,
)

PARAMETRIZED = re.compile(r"\.?parametrizations\.(\w+)\.0$")


@dataclass
class LoraReport:
    """What apply_lora did. The upstream keeps it, see lora_report."""

    options: LoraOptions
    modules: list[str]  # names of the adapted matrices
    extras: list[str] = field(default_factory=list)  # names of norms and biases that train too
    adapter_parameters: int = 0
    extra_parameters: int = 0
    unknown: list[str] = field(default_factory=list)  # of these layers, but in no preset

    def __str__(self) -> str:
        extras = f" and {self.extra_parameters:,} of norms and biases" if self.extras else ""
        names = ", ".join(name_patterns(self.modules))
        left = ", ".join(name_patterns(self.unknown))
        left = (
            f" No preset adapts {left}: name them in lora.targets if they should." if left else ""
        )
        return (
            f"LoRA of rank {self.options.rank} on {len(self.modules)} matrices ({names}): "
            f"{self.adapter_parameters:,} parameters{extras}.{left}"
        )


class LoraDelta(nn.Module):
    """Parametrization of a matrix [out, in], float32.

    lora_A: [rank, in], kaiming uniform; lora_B: [out, rank], zeros, so that training starts from
    the base model.
    """

    def __init__(self, weight: Tensor, options: LoraOptions):
        super().__init__()
        rows, columns = weight.shape
        self.scale, self.dropout = options.scale, options.dropout
        like: Any = {"device": weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(options.rank, columns, **like))
        self.lora_B = nn.Parameter(torch.zeros(rows, options.rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def delta(self) -> Tensor:
        """(alpha / rank) B A, [out, in] float32 under autocast too."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.scale * (self.lora_B @ self.lora_A)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted matrix, in the type of the frozen one."""
        return weight + self.delta().to(weight.dtype)

    def low_rank(self, x: Tensor) -> Tensor:
        """(alpha / rank) B A dropout(x): [..., in] -> [..., out]."""
        x = F.dropout(x, self.dropout, self.training)
        return self.scale * F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    """Forward of an adapted nn.Linear; the weight as others see it is never formed."""
    adapted = self.parametrizations.weight
    return F.linear(x, adapted.original, self.bias) + adapted[0].low_rank(x)


def apply_lora(upstream: nn.Module, options: LoraOptions) -> LoraReport:
    """Freeze the upstream and put adapters on the matrices that `options` names.

    Only these train (and norms and biases, if asked); the outputs stay those of the base model
    until the first step. upstream: takes a list of 16 kHz waveforms (needed only to see whether
    dropout can be honoured). UserError where nothing matches, or dropout cannot be honoured.
    """
    assert not list(_adapters(upstream)), "apply_lora was called before"
    targets = find_targets(upstream, options)
    modules = dict(upstream.named_modules())
    taken = [
        target.name
        for target in targets
        if parametrize.is_parametrized(modules[target.module], target.parameter)
    ]
    if taken:
        raise UserError(
            f"lora.targets: {', '.join(name_patterns(taken))} already have a parametrization of "
            "their own."
        )
    if options.dropout:
        _refuse_idle_dropout(upstream, targets, options)
    upstream.requires_grad_(False)
    for module in modules.values():
        if hasattr(module, "_requires_grad"):
            # Hugging Face's CNN encoder asks for gradients unless told that it is frozen.
            module._requires_grad = False  # type: ignore[assignment]
    report = LoraReport(options, [target.name for target in targets], _extras(upstream, options))
    report.unknown = unknown_to_presets(upstream, options)
    for target in targets:
        module = modules[target.module]
        called = type(module).forward is nn.Linear.forward
        delta = LoraDelta(getattr(module, target.parameter), options).train(module.training)
        parametrize.register_parametrization(module, target.parameter, delta)
        if called:
            # The class is made for this module alone, and undone with the parametrization.
            type(module).forward = _linear_forward  # type: ignore[method-assign]
        report.adapter_parameters += delta.lora_A.numel() + delta.lora_B.numel()
    for name in report.extras:
        report.extra_parameters += upstream.get_parameter(name).requires_grad_(True).numel()
    vars(upstream)["lora_report"] = report
    return report


def lora_report(upstream: nn.Module) -> LoraReport:
    """What apply_lora did to this upstream; a report of nothing where it was not called."""
    return vars(upstream).get("lora_report") or LoraReport(LoraOptions(), [])


def lora_state_dict(upstream: nn.Module) -> dict[str, Tensor]:
    """What LoRA trains, on the CPU: adapters, and the norms and biases that train too."""
    return {name: value.detach().cpu().clone() for name, value in _trained(upstream).items()}


def load_lora_state_dict(upstream: nn.Module, state: dict[str, Tensor]) -> None:
    """Put what lora_state_dict gave into an upstream that apply_lora prepared alike.

    UserError where any tensor does not fit.
    """
    own = _trained(upstream)
    if not own:
        raise UserError(
            "These are LoRA adapters, but LoRA is not switched on for this upstream (--lora)."
        )
    problems = [
        f"'{name}' is {list(state[name].shape)} there, {list(own[name].shape)} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    missing = name_patterns(name for name in own if name not in state)
    problems += [f"'{name}' is missing" for name in missing]
    unknown = name_patterns(name for name in state if name not in own)
    problems += [f"'{name}' has no place in this upstream" for name in unknown]
    if problems:
        more = [f"... {len(problems)} in all"] if len(problems) > 8 else []
        remedy = "Use the rank, targets and layers they were trained with."
        raise problems_error(
            "The LoRA adapters do not fit this upstream:", problems[:8] + more, remedy
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def check_lora_gradients(upstream: nn.Module) -> list[str]:
    """After the first backward: UserError if a tensor that LoRA trains is outside the graph.

    Its gradient is None then. Zero is another matter: A's gradient is zero while B is zero.
    Returns the matrices whose B has a gradient of zero, worth a line in the log (e.g. q and k of
    clips of one frame).
    """
    gradients = {name: each.grad for name, each in _trained(upstream).items()}
    without = [name for name, gradient in gradients.items() if gradient is None]
    dead = list(dict.fromkeys(re.sub(r"\.lora_[AB]$", "", name) for name in without))
    if dead:
        names = name_patterns(target.name for target in linear_targets(upstream))
        raise problems_error(
            f"{len(dead)} LoRA tensors got no gradient, so they would never train:",
            [", ".join(dead[:12]) + (", ..." if len(dead) > 12 else "")],
            "Either the featurizer reads no layer above them (narrow lora.layers), or the upstream "
            f"does not use them. It has these matrices: {', '.join(names)}.",
        )
    return [
        name.removesuffix(".lora_B")
        for name, gradient in gradients.items()
        if name.endswith(".lora_B") and gradient is not None and not gradient.any()
    ]


def merge_lora(upstream: nn.Module) -> None:
    """Fold the adapters into plain weights and remove them; without LoRA nothing happens.

    The outputs stay equal up to rounding.
    """
    for _, target, delta in list(_adapters(upstream)):
        module: Any = upstream.get_submodule(target.module)
        with torch.no_grad():
            adapted = delta(module.parametrizations[target.parameter].original)
        parametrize.remove_parametrizations(module, target.parameter, leave_parametrized=False)
        getattr(module, target.parameter).data.copy_(adapted)
    vars(upstream).pop("lora_report", None)


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that `module` would have after merge_lora, without changing it."""
    found = module.state_dict().items()
    state = {name: value.detach() for name, value in found if isinstance(value, Tensor)}
    for path, target, delta in _adapters(module):
        original = state.pop(f"{path.removesuffix('.0')}.original")
        del state[f"{path}.lora_A"], state[f"{path}.lora_B"]
        with torch.no_grad():
            state[f"{target.module}.{target.parameter}".lstrip(".")] = delta(original)
    return state


def _adapters(upstream: nn.Module) -> Iterator[tuple[str, Target, LoraDelta]]:
    """Path, adapted matrix and adapter of every adapter."""
    for path, module in upstream.named_modules():
        if isinstance(module, LoraDelta):
            found = PARAMETRIZED.search(path)
            assert found is not None, path
            yield path, Target(path[: found.start()], found.group(1)), module


def _trained(upstream: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, under its name in an adapter file."""
    own = {}
    for _, target, delta in _adapters(upstream):
        own[f"{target.name}.lora_A"], own[f"{target.name}.lora_B"] = delta.lora_A, delta.lora_B
    return own | {name: upstream.get_parameter(name) for name in lora_report(upstream).extras}


def _extras(upstream: nn.Module, options: LoraOptions) -> list[str]:
    """Names of the norms and biases of the selected layers, where they are to train."""
    names = []
    wanted = options.train_norms or options.train_biases
    for layer in selected_layers(upstream, options) if wanted else []:
        for module_name, module in upstream.get_submodule(layer).named_modules(prefix=layer):
            norm = options.train_norms and type(module).__name__.endswith("Norm")
            for name, _ in module.named_parameters(recurse=False):
                if norm or (options.train_biases and name.endswith("bias")):
                    names.append(f"{module_name}.{name}")
    return names


def _refuse_idle_dropout(upstream: nn.Module, targets: list[Target], options: LoraOptions) -> None:
    """Run a second of noise and see which targets are called as a Linear.

    UserError if only the weight of any is read: dropout on its input would never act.
    """
    modules = dict(upstream.named_modules())
    called: set[str] = set()
    handles = []
    for target in targets:
        module = modules[target.module]
        if type(module).forward is nn.Linear.forward:
            note = lambda *_, name=target.module: called.add(name)  # noqa: E731
            handles.append(module.register_forward_hook(note))
    was_training = [module for module in modules.values() if module.training]
    noise = 0.01 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    try:
        upstream.eval()
        with torch.no_grad():
            upstream([noise.to(next(upstream.parameters()).device)])
    finally:
        for handle in handles:
            handle.remove()
        for module in was_training:
            module.training = True
    idle = name_patterns(
        target.name
        for target in targets
        if target.parameter != "weight" or target.module not in called
    )
    if idle:
        raise UserError(
            f"lora.dropout: {options.dropout} acts on a Linear module's input, but the upstream "
            f"reads only the weights of {', '.join(idle)}. Set lora.dropout: 0, or adapt only "
            "matrices that are called (targets: ffn)."
        )
