"""What an upstream does while it trains, set explicitly.

Layer drop, dropout, masking, its CNN, gradient checkpointing.
"""

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from s3prl_varan.errors import UserError
from s3prl_varan.tuning.lora import LoraDelta
from s3prl_varan.tuning.targets import transformer_layers

LAYERDROP = ("layerdrop", "layer_drop")  # as s3prl and Hugging Face, and torchaudio call it
CNN = ("feature_extractor", "conv1", "conv2")  # s3prl's and Hugging Face's wav2vec2 kin; Whisper


def disable_layerdrop(upstream: nn.Module) -> list[str]:
    """Set every layer drop to 0, else the number of hidden states would change between batches.

    Returns what changed.
    """
    changed = []
    for name, module in upstream.named_modules():
        for owner, label in ((module, name), (vars(module).get("config"), f"{name}.config")):
            for attribute in LAYERDROP:
                value = getattr(owner, "__dict__", {}).get(attribute)
                if isinstance(value, int | float) and value > 0:
                    setattr(owner, attribute, 0.0)
                    changed.append(f"{label}.{attribute} {value:g} -> 0")
    return changed


def set_train_modes(upstream: nn.Module, *, dropout: bool, masking: bool) -> list[str]:
    """Choose what `train()` switches on in the upstream, for good. Returns lines for the log.

    dropout: False sets every dropout probability (of modules, and those handed to F.dropout) to 0,
    but for LoRA's own. masking: True masks spans of frames as in pre-training, with the
    probabilities in the upstream's own config; False not. Batch norms (conformers) always keep
    their running statistics. UserError if masking is asked of an upstream without.
    """
    notes = [] if dropout else _no_dropout(upstream)
    notes += _set_masking(upstream, masking)
    for module in upstream.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(_stay_in_eval)
    return notes


def set_cnn_training(upstream: nn.Module, train: bool) -> list[str]:
    """Full fine-tuning: train the convolutional front end too, or keep it frozen.

    Returns the names of its parts.
    """
    names = []
    for name, module in upstream.named_modules():
        holds_conv = any(isinstance(each, nn.Conv1d | nn.Conv2d) for each in module.modules())
        if name.rsplit(".", 1)[-1] in CNN and holds_conv:
            names.append(name)
            module.requires_grad_(train)
            if hasattr(module, "_requires_grad"):  # Hugging Face's way to freeze it
                module._requires_grad = train
        if "feature_grad_mult" in vars(module):  # s3prl's: 0 runs the CNN without a graph
            module.feature_grad_mult = (module.feature_grad_mult or 1.0) if train else 0.0
    return names


def enable_gradient_checkpointing(upstream: nn.Module) -> int:
    """Recompute every transformer layer in the backward pass instead of keeping its activations.

    Only the layer's forward is run again: the hooks by which s3prl collects hidden states sit
    around it and fire once. Returns how many layers. UserError where the upstream has none.
    """
    layers = [upstream.get_submodule(name) for name in transformer_layers(upstream)]
    if not layers:
        raise UserError(
            "upstream.gradient_checkpointing: this upstream has no transformer layers that are "
            "known; switch it off."
        )
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = MethodType(_checkpointed_forward, layer)
    return len(layers)


def _checkpointed_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = MethodType(type(self).forward, self)
    if self.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


def _stay_in_eval(module: nn.Module, args: Any) -> None:
    module.training = False


def _no_dropout(upstream: nn.Module) -> list[str]:
    changed = 0
    for module in upstream.modules():
        if isinstance(module, LoraDelta):
            continue  # its dropout is LoRA's own
        is_dropout = "Drop" in type(module).__name__
        for attribute, value in list(vars(module).items()):
            named = "dropout" in attribute or (is_dropout and attribute in ("p", "drop_prob"))
            if named and isinstance(value, float) and 0 < value <= 1:
                setattr(module, attribute, 0.0)
                changed += 1
    return [f"{changed} dropout probabilities of the upstream set to 0"] if changed else []


def _set_masking(upstream: nn.Module, masking: bool) -> list[str]:
    notes = []
    for name, module in upstream.named_modules():
        if hasattr(module, "_mask_hidden_states"):
            # Hugging Face masks in training if its config says so.
            config: Any = module.config
            if masking:
                notes.append(f"{name} masks frames with probability {config.mask_time_prob:g}")
            elif config.apply_spec_augment:
                notes.append(f"{name}.config.apply_spec_augment True -> False")
            config.apply_spec_augment = masking
        elif masking and hasattr(module, "apply_mask") and hasattr(module, "extract_features"):
            module.extract_features = MethodType(_masked_extract_features, module)
            notes.append(f"{name} masks frames with probability {module.mask_prob:g}")
    if masking and not notes:
        raise UserError(
            "upstream.masking: this upstream has no masking of its own; set it to false."
        )
    return notes


def _masked_extract_features(self: Any, *args: Any, **kwargs: Any) -> Any:
    """s3prl's experts call extract_features with masking off; here it follows the mode."""
    return type(self).extract_features(self, *args, **{**kwargs, "mask": self.training})
