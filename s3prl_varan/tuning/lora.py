"""LoRA on any upstream (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A in the place of a frozen W.

s3prl's attentions hand their raw `.weight` to F.multi_head_attention_forward, where a wrapper around the Linear module
is never called. So W itself is parametrized: whoever reads `.weight` gets the adapted matrix. Where a plain nn.Linear
is called as a module, the same product is computed as W x + (alpha / rank) B (A x), which needs no gradient of the size
of W and is the only place where dropout on the input of A has a meaning.

File layout of the adapters, in checkpoints too: {MODULE.lora_A: [rank, in], MODULE.lora_B: [out, rank]}, float32.
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

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.tuning.options import LoraOptions
from s3prl_varan.tuning.targets import (
    Target,
    find_targets,
    linear_targets,
    name_patterns,
    selected_layers,
)

__all__ = [
    "LoraOptions", "LoraReport", "apply_lora", "check_lora_gradients", "load_lora_state_dict", "lora_report",
    "lora_state_dict", "merge_lora", "merged_state_dict",
]  # fmt: skip

PARAMETRIZED = re.compile(r"\.?parametrizations\.(\w+)\.0$")
PROBE_SAMPLES = 16000


@dataclass
class LoraReport:
    """What apply_lora did. The upstream keeps it, see lora_report."""

    options: LoraOptions
    modules: list[str]  # names of the adapted matrices
    extras: list[str] = field(default_factory=list)  # names of norms and biases that train too
    adapter_parameters: int = 0
    extra_parameters: int = 0

    def __str__(self) -> str:
        extras = f" and {self.extra_parameters:,} of norms and biases" if self.extras else ""
        return (
            f"LoRA of rank {self.options.rank} on {len(self.modules)} matrices ({', '.join(name_patterns(self.modules))}): "
            f"{self.adapter_parameters:,} parameters{extras}."
        )


class LoraDelta(nn.Module):
    """Parametrization of a matrix [out, in]. lora_A: kaiming uniform [rank, in]; lora_B: zeros [out, rank]; float32."""

    def __init__(self, weight: Tensor, options: LoraOptions):
        super().__init__()
        rows, columns = weight.shape
        self.scale, self.dropout = options.scale, options.dropout
        self.lora_A = nn.Parameter(
            torch.empty(options.rank, columns, device=weight.device, dtype=torch.float32)
        )
        self.lora_B = nn.Parameter(
            torch.zeros(rows, options.rank, device=weight.device, dtype=torch.float32)
        )
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
    """Freeze the upstream and put adapters on the matrices that `options` names; only these train (and norms, biases if asked).

    The outputs stay those of the base model until the first step. upstream: takes a list of 16 kHz waveforms (needed
    only to see whether dropout can be honoured). UserError where nothing matches, or where dropout cannot be honoured.
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
            f"lora.targets: {', '.join(name_patterns(taken))} already have a parametrization of their own."
        )
    if options.dropout:
        _refuse_idle_dropout(upstream, targets, options)
    upstream.requires_grad_(False)
    for module in modules.values():
        if hasattr(
            module, "_requires_grad"
        ):  # Hugging Face's CNN encoder asks for gradients unless told that it is frozen
            module._requires_grad = False
    report = LoraReport(options, [target.name for target in targets], _extras(upstream, options))
    for target in targets:
        module = modules[target.module]
        called = type(module).forward is nn.Linear.forward
        delta = LoraDelta(getattr(module, target.parameter), options).train(module.training)
        parametrize.register_parametrization(module, target.parameter, delta)
        if called:
            type(
                module
            ).forward = _linear_forward  # a class made for this module alone, undone with the parametrization
        report.adapter_parameters += delta.lora_A.numel() + delta.lora_B.numel()
    for name in report.extras:
        report.extra_parameters += upstream.get_parameter(name).requires_grad_(True).numel()
    vars(upstream)["lora_report"] = report
    return report


def lora_report(upstream: nn.Module) -> LoraReport:
    """What apply_lora did to this upstream; a report of nothing where it was not called."""
    return vars(upstream).get("lora_report") or LoraReport(LoraOptions(), [])


def lora_state_dict(upstream: nn.Module) -> dict[str, Tensor]:
    """What LoRA trains, on the CPU and nothing else: adapters, and the norms and biases that train too."""
    state: dict[str, Tensor] = {}
    for name, delta in _adapters(upstream):
        state[f"{name}.lora_A"], state[f"{name}.lora_B"] = delta.lora_A, delta.lora_B
    state |= {name: upstream.get_parameter(name) for name in lora_report(upstream).extras}
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def load_lora_state_dict(upstream: nn.Module, state: dict[str, Tensor]) -> None:
    """Put what lora_state_dict gave into an upstream that apply_lora prepared alike; UserError where any tensor does not fit."""
    own = {
        f"{name}.{part}": getattr(delta, part)
        for name, delta in _adapters(upstream)
        for part in ("lora_A", "lora_B")
    }
    if not own:
        raise UserError(
            "These are LoRA adapters, but LoRA is not switched on for this upstream (--lora)."
        )
    own |= {name: upstream.get_parameter(name) for name in lora_report(upstream).extras}
    problems = [
        f"'{name}' is {list(state[name].shape)} there, {list(own[name].shape)} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems += [
        f"'{name}' is missing" for name in name_patterns(name for name in own if name not in state)
    ]
    problems += [
        f"'{name}' has no place in this upstream"
        for name in name_patterns(name for name in state if name not in own)
    ]
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
    """After the first backward: UserError if any tensor that LoRA trains is outside the graph (its gradient is None).

    Zero is another matter: A's gradient is zero while B is zero. Returns the matrices whose B has a gradient of zero,
    worth a line in the log (e.g. q and k of clips of one frame).
    """
    dead, zero = [], []
    for name, delta in _adapters(upstream):
        if delta.lora_A.grad is None or delta.lora_B.grad is None:
            dead.append(name)
        elif not delta.lora_B.grad.any():
            zero.append(name)
    dead += [
        name for name in lora_report(upstream).extras if upstream.get_parameter(name).grad is None
    ]
    if dead:
        names = name_patterns(target.name for target in linear_targets(upstream))
        raise problems_error(
            f"{len(dead)} LoRA tensors got no gradient, so they would never train:",
            [", ".join(dead[:12]) + (", ..." if len(dead) > 12 else "")],
            "Either the featurizer reads no layer above them (narrow lora.layers), or the upstream does not use them. "
            f"It has these matrices: {', '.join(names)}.",
        )
    return zero


def merge_lora(upstream: nn.Module) -> None:
    """Fold the adapters into plain weights and remove them; the outputs stay equal up to rounding. Does nothing without LoRA."""
    modules = dict(upstream.named_modules())
    for name, delta in list(_adapters(upstream)):
        target = _target(name, modules)
        module = modules[target.module]
        with torch.no_grad():
            merged = delta(getattr(module.parametrizations, target.parameter).original)
        parametrize.remove_parametrizations(module, target.parameter, leave_parametrized=False)
        getattr(module, target.parameter).data.copy_(merged)
    vars(upstream).pop("lora_report", None)


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that `module` would have after merge_lora, without changing it."""
    state = {
        name: value.detach()
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }
    for path, delta in _deltas(module):
        found = PARAMETRIZED.search(path)
        assert found is not None, path
        prefix, stem = path[: found.start()], path.rsplit(".", 1)[0]
        original = state.pop(f"{stem}.original")
        del state[f"{path}.lora_A"], state[f"{path}.lora_B"]
        with torch.no_grad():
            state[f"{prefix}.{found.group(1)}" if prefix else found.group(1)] = delta(original)
    return state


def _deltas(module: nn.Module) -> Iterator[tuple[str, LoraDelta]]:
    return ((path, each) for path, each in module.named_modules() if isinstance(each, LoraDelta))


def _adapters(upstream: nn.Module) -> Iterator[tuple[str, LoraDelta]]:
    """Target.name and adapter of every adapted matrix."""
    for path, delta in _deltas(upstream):
        found = PARAMETRIZED.search(path)
        assert found is not None, path
        yield Target(path[: found.start()], found.group(1)).name, delta


def _target(name: str, modules: dict[str, nn.Module]) -> Target:
    if name in modules:
        return Target(name)
    return Target(*name.rsplit(".", 1))


def _extras(upstream: nn.Module, options: LoraOptions) -> list[str]:
    """Names of the norms and biases of the selected layers, where they are to train."""
    names = []
    for layer in (
        selected_layers(upstream, options) if options.train_norms or options.train_biases else []
    ):
        for module_name, module in upstream.get_submodule(layer).named_modules(prefix=layer):
            norm = options.train_norms and type(module).__name__.endswith("Norm")
            for name, _ in module.named_parameters(recurse=False):
                if norm or (options.train_biases and name.endswith("bias")):
                    names.append(f"{module_name}.{name}")
    return names


def _refuse_idle_dropout(upstream: nn.Module, targets: list[Target], options: LoraOptions) -> None:
    """Run a second of noise and see which targets are called as a Linear; UserError if only the weight of any is read."""
    modules = dict(upstream.named_modules())
    called: set[str] = set()
    handles = []
    for target in targets:
        module = modules[target.module]
        if type(module).forward is nn.Linear.forward:
            handles.append(
                module.register_forward_hook(lambda *_, name=target.module: called.add(name))
            )
    was_training = [module for module in modules.values() if module.training]
    device = next(upstream.parameters()).device
    try:
        upstream.eval()
        with torch.no_grad():
            upstream(
                [
                    0.01
                    * torch.randn(PROBE_SAMPLES, generator=torch.Generator().manual_seed(0)).to(
                        device
                    )
                ]
            )
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
            f"lora.dropout: {options.dropout} acts on a Linear module's input, but the upstream reads only the weights of "
            f"{', '.join(idle)}. Set lora.dropout: 0, or adapt only matrices that are called (targets: ffn)."
        )
