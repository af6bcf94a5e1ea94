"""Which matrices of an upstream LoRA adapts: presets that know the families' names, and names or regexes of the user's."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from s3prl_varan.errors import UserError, did_you_mean, problems_error
from s3prl_varan.tuning.options import PRESETS, LoraOptions

# Ends of module names. fairseq: s3prl's wavlm, hubert, wav2vec2, data2vec, unispeech_sat, distilhubert...
FFN = (
    *("fc1", "fc2", "fc1.linear"),  # fairseq, Whisper, timm; fc1.linear: WavLM's gated unit
    *(
        "intermediate_dense",
        "output_dense",
    ),  # Hugging Face wav2vec2, hubert, wavlm, data2vec, conformers
    *(
        "intermediate.dense",
        "output.dense",
    ),  # s3prl's mockingjay, tera, audio_albert; Hugging Face AST
    *("linear1", "linear2"),  # torch.nn.TransformerEncoderLayer
    *("w_1", "w_2"),  # ESPnet, fairseq's conformer
)
ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "out_proj", "o_proj"),
    *("query", "key", "value", "attention.output.dense"),
    *(
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
    ),  # torch.nn.MultiheadAttention
    *("qkv", "attn.proj"),  # timm
    *("linear_q", "linear_k", "linear_v", "linear_out"),  # ESPnet
)
IN_LAYER = re.compile(r"(.*\.\d+)\.")  # `a.layers.3.` of `a.layers.3.self_attn.q_proj`
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
    """Every matrix that LoRA could adapt, in the module's order."""
    found = []
    for name, module in upstream.named_modules():
        if isinstance(module, nn.Linear):
            found.append(Target(name))
        elif isinstance(module, nn.MultiheadAttention):  # its out_proj is a Linear of its own
            parts = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            found += [Target(name, part) for part in parts if getattr(module, part) is not None]
    return found


def transformer_layers(upstream: nn.Module) -> list[str]:
    """Names of the transformer layers: the numbered modules that hold an attention, in the module's order."""
    layers = [
        _layer_of(target.name)
        for target in linear_targets(upstream)
        if _ends_with(target.name, ATTENTION)
    ]
    return list(dict.fromkeys(layer for layer in layers if layer is not None))


def selected_layers(upstream: nn.Module, options: LoraOptions) -> list[str]:
    """The layers that `options.layers` means; UserError where it names one that is not there."""
    layers = transformer_layers(upstream)
    if options.layers is None:
        return layers
    beyond = [index for index in options.layers if index >= len(layers)]
    if beyond:
        has = (
            f"has transformer layers 0 to {len(layers) - 1}"
            if layers
            else "has no transformer layers that are known"
        )
        raise UserError(
            f"lora.layers: {beyond} {'is' if len(beyond) == 1 else 'are'} not there, the upstream {has}."
        )
    return [layers[index] for index in sorted(set(options.layers))]


def find_targets(upstream: nn.Module, options: LoraOptions) -> list[Target]:
    """The matrices to adapt. Presets stay within transformer layers; UserError where an entry matches nothing."""
    candidates, every = linear_targets(upstream), transformer_layers(upstream)
    layers = selected_layers(upstream, options)
    entries = [options.targets] if isinstance(options.targets, str) else options.targets
    chosen: set[Target] = set()
    problems = []
    for entry in entries:
        matched = [target for target in candidates if _matches(entry, target.name, every)]
        inside = [
            target
            for target in matched
            if options.layers is None or _layer_of(target.name) in layers
        ]
        if not inside:
            leaves = {target.name.rsplit(".", 1)[-1] for target in candidates} | set(PRESETS)
            why = (
                f"nothing in layers {options.layers}"
                if matched
                else f"no module of that name.{did_you_mean(entry, leaves)}"
            )
            problems.append(f"'{entry}': {why}")
        chosen.update(inside)
    if problems:
        names = name_patterns(target.name for target in candidates)
        listed = ", ".join(names[:SHOWN]) + (
            f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
        )
        raise problems_error(
            "lora.targets matched no module of the upstream:",
            problems,
            f"It has these matrices: {listed or 'none, LoRA cannot adapt it'}.",
        )
    return [target for target in candidates if target in chosen]


def name_patterns(names: Iterable[str]) -> list[str]:
    """Names with their numbers replaced: encoder.layers.0.fc1, encoder.layers.1.fc1 -> encoder.layers.*.fc1."""
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))


def _matches(entry: str, name: str, layers: list[str]) -> bool:
    """Whether an entry of `targets` means this matrix: a preset, the end of its name, or a regex of the whole name."""
    if entry not in PRESETS:
        return _ends_with(name, [entry]) or re.fullmatch(entry, name) is not None
    attention = _ends_with(name, ATTENTION)
    kinds = {"attention": attention, "ffn": not attention and _ends_with(name, FFN)}
    return _layer_of(name) in layers and (any(kinds.values()) if entry == "all" else kinds[entry])


def _layer_of(name: str) -> str | None:
    found = IN_LAYER.match(name)
    return found.group(1) if found else None


def _ends_with(name: str, endings: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)
