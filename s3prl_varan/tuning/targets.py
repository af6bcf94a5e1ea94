"""Which matrices of an upstream LoRA adapts.

Presets know the families' names; a list takes names and regexes of the user's.
"""

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.tuning.options import PRESETS, LoraOptions

# Ends of module names.
FFN = (
    # fairseq (s3prl's wavlm, hubert, wav2vec2, data2vec, unispeech_sat, distilhubert...), Whisper,
    # timm; fc1.linear is WavLM's gated unit
    *("fc1", "fc2", "fc1.linear"),
    # Hugging Face wav2vec2, hubert, wavlm, data2vec, conformers
    *("intermediate_dense", "output_dense"),
    # s3prl's mockingjay, tera, audio_albert; Hugging Face AST
    *("intermediate.dense", "output.dense"),
    *("linear1", "linear2"),  # torch.nn.TransformerEncoderLayer
    *("w_1", "w_2"),  # ESPnet, fairseq's conformer
)
# Parameters of torch.nn.MultiheadAttention, which fuses or holds its matrices itself.
IN_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "out_proj", "o_proj"),
    *("query", "key", "value", "attention.output.dense"),
    *("query_proj", "key_proj", "value_proj"),  # Hugging Face SEW-D
    *IN_ATTENTION,
    *("qkv", "attn.proj"),  # timm
    *("linear_q", "linear_k", "linear_v", "linear_out"),  # ESPnet
)
IN_LAYER = re.compile(r"(.*\.\d+)\.")  # `a.layers.3.` of `a.layers.3.self_attn.q_proj`
NO_MATRICES = (nn.RNNBase, nn.modules.conv._ConvNd)
SHOWN = 30  # names listed in a message


@dataclass(frozen=True)
class Target:
    """One matrix [out, in]: parameter `parameter` of the module named `module`."""

    module: str
    parameter: str = "weight"

    @property
    def name(self) -> str:
        """The module's name, or the parameter's where a module holds several matrices."""
        return self.module if self.parameter == "weight" else f"{self.module}.{self.parameter}"


def linear_targets(upstream: nn.Module) -> list[Target]:
    """Every matrix that LoRA could adapt, in the module's order; none of layers that never run."""
    found, idle = [], getattr(upstream, "idle", ())
    for name, module in upstream.named_modules():
        if isinstance(module, nn.Linear):
            found.append(Target(name))
        elif isinstance(module, nn.MultiheadAttention):  # its out_proj is a Linear of its own
            parts = [part for part in IN_ATTENTION if getattr(module, part) is not None]
            found += [Target(name, part) for part in parts]
    return [target for target in found if _layer_of(target.name) not in idle]


def transformer_layers(upstream: nn.Module) -> list[str]:
    """Names of the transformer layers: the numbered modules that hold an attention, in order."""
    names = [target.name for target in linear_targets(upstream)]
    layers = [_layer_of(name) for name in names if _ends_with(name, ATTENTION)]
    return list(dict.fromkeys(layer for layer in layers if layer is not None))


def selected_layers(upstream: nn.Module, options: LoraOptions) -> list[str]:
    """The layers that `options.layers` means; UserError where it names one that is not there."""
    layers = transformer_layers(upstream)
    if options.layers is None:
        return layers
    beyond = [index for index in options.layers if index >= len(layers)]
    if beyond:
        has = f"transformer layers 0 to {len(layers) - 1}" if layers else "none that are known"
        verb = "is" if len(beyond) == 1 else "are"
        raise UserError(f"lora.layers: {beyond} {verb} not there, the upstream has {has}.")
    return [layers[index] for index in sorted(set(options.layers))]


def find_targets(upstream: nn.Module, options: LoraOptions) -> list[Target]:
    """The matrices to adapt, in the module's order. Presets stay within transformer layers.

    UserError where an entry matches nothing, with the names that there are.
    """
    candidates, every_layer = linear_targets(upstream), transformer_layers(upstream)
    if not candidates:
        raise UserError(
            f"--lora: this upstream has no matrices that LoRA can adapt (it {_made_of(upstream)}). "
            "Keep it frozen, or train all of it with --upstream_trainable."
        )
    layers = selected_layers(upstream, options)
    chosen: set[Target] = set()
    problems = []
    for entry in [options.targets] if isinstance(options.targets, str) else options.targets:
        matched = [each for each in candidates if _matches(entry, each.name, every_layer)]
        anywhere = options.layers is None
        inside = [each for each in matched if anywhere or _layer_of(each.name) in layers]
        if not inside:
            why = f"nothing in layers {options.layers}" if matched else _why_none(entry, upstream)
            problems.append(f"'{entry}': {why}")
        chosen.update(inside)
    if problems:
        names = name_patterns(target.name for target in candidates)
        more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
        raise problems_error(
            "lora.targets matched no module of the upstream:",
            problems,
            f"It has these matrices: {', '.join(names[:SHOWN])}{more}.",
        )
    return [target for target in candidates if target in chosen]


def unknown_to_presets(upstream: nn.Module, options: LoraOptions) -> list[str]:
    """Matrices of the selected layers that no preset means; none where targets are a list."""
    layers = selected_layers(upstream, options) if isinstance(options.targets, str) else []
    names = [target.name for target in linear_targets(upstream)]
    inside = [name for name in names if _layer_of(name) in layers]
    return [name for name in inside if not _matches("all", name, layers)]


def describe_targets(upstream: nn.Module, names: Collection[str]) -> LoraOptions:
    """Options whose `targets` and `layers` mean just these matrices, said as briefly as can be."""
    every_layer = transformer_layers(upstream)
    used = {every_layer.index(layer) for layer in map(_layer_of, names) if layer in every_layer}
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    for targets in (*PRESETS, ends):
        for layers in (None, sorted(used)):
            if layers != []:
                options = LoraOptions(targets=targets, layers=layers)  # type: ignore[arg-type]
                with suppress(UserError):  # where they match nothing at all
                    if {each.name for each in find_targets(upstream, options)} == set(names):
                        return options
    return LoraOptions(targets=sorted(names))


def name_patterns(names: Iterable[str]) -> list[str]:
    """Names with their numbers replaced: layers.0.fc1, layers.1.fc1 -> layers.*.fc1."""
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))


def _matches(entry: str, name: str, layers: list[str]) -> bool:
    """Whether an entry of `targets` means this matrix.

    An entry is a preset, the end of the matrix's name, or a regex of its whole name.
    """
    if entry not in PRESETS:
        return _ends_with(name, [entry]) or re.fullmatch(entry, name) is not None
    attention = _ends_with(name, ATTENTION)
    kinds = {"attention": attention, "ffn": not attention and _ends_with(name, FFN)}
    return _layer_of(name) in layers and (any(kinds.values()) if entry == "all" else kinds[entry])


def _why_none(entry: str, upstream: nn.Module) -> str:
    if entry in PRESETS:
        none = "finds none that it knows here"
        if not transformer_layers(upstream):
            none = f"this upstream has none that are known (it {_made_of(upstream)})"
        return (
            f"this preset means matrices of transformer layers, and {none}; "
            "name the modules to adapt in a list"
        )
    ends = {target.name.rsplit(".", 1)[-1] for target in linear_targets(upstream)}
    return f"no module of that name.{did_you_mean(entry, ends | set(PRESETS))}"


def _made_of(upstream: nn.Module) -> str:
    kinds = {type(each).__name__ for each in upstream.modules() if isinstance(each, NO_MATRICES)}
    return f"is made of {', '.join(sorted(kinds)) or 'other modules'}"


def _layer_of(name: str) -> str | None:
    found = IN_LAYER.match(name)
    return found.group(1) if found else None


def _ends_with(name: str, endings: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)
