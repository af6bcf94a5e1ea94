"""From settings to a model: upstream (with LoRA), featurizer and heads as one module."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from s3prl_varan.config.settings import RunSettings
from s3prl_varan.features.cache import cached_encoder
from s3prl_varan.features.specaug import SpecAugment
from s3prl_varan.model import ExpertDownstream, LayerwiseDownstream, SpeechModel
from s3prl_varan.tasks.shapes.expert import ExpertTask
from s3prl_varan.training.checkpoint import seed_everything
from s3prl_varan.training.data import Loaders
from s3prl_varan.tuning.lora import apply_lora
from s3prl_varan.tuning.modes import (
    disable_layerdrop,
    enable_gradient_checkpointing,
    set_cnn_training,
    set_train_modes,
)  # fmt: skip
from s3prl_varan.upstream.wrapper import MixedShapesError, Upstream, build_upstream


def build_model(settings: RunSettings) -> SpeechModel:
    """The model, drawn from the run's seed. Only the task's `outputs` are asked of the corpus."""
    flags, config, task = settings.flags, settings.config, settings.task
    upstream, layer = load_upstream(settings)
    upstream.fingerprint()  # of the weights as they came, before anything trains them
    if settings.trains_upstream:
        make_trainable(upstream, settings)
    # The featurizer's draws do not depend on the upstream's, nor the heads' on the featurizer's.
    seed_everything(flags.seed)
    featurizer = settings.featurizer.build(
        upstream.num_hidden, upstream.dim, config.featurizer, layer
    )
    seed_everything(flags.seed)
    heads = task.build_heads(
        upstream.dim, featurizer.num_outputs, upstream.downsample_rate, config.heads
    )
    objective = config.featurizer.objective(task.released_nll)
    downstream = ExpertDownstream if isinstance(task, ExpertTask) else LayerwiseDownstream
    return SpeechModel(
        upstream,
        featurizer,
        downstream(task, heads, objective),
        trains_upstream=settings.trains_upstream,
        normalize=flags.upstream_feature_normalize,
        specaug=None if config.specaug is None else SpecAugment(**asdict(config.specaug)),
    )


def load_upstream(settings: RunSettings) -> tuple[Upstream, int | None]:
    """The upstream of -u, and the hidden state -l names in it.

    Where sizes differ from layer to layer, a featurizer that reads one layer gets an upstream that
    gives only that one.
    """
    flags = settings.flags
    source = (
        flags.upstream,
        flags.upstream_ckpt,
        flags.upstream_model_config,
        flags.upstream_feature_selection,
        flags.upstream_refresh,
    )
    layer = flags.upstream_layer_selection
    try:
        return build_upstream(*source), layer
    except MixedShapesError:
        only = settings.featurizer.only_layer(layer)
        if only is None:
            raise
        return build_upstream(*source, layer=only), None if layer is None else 0


def make_trainable(upstream: Upstream, settings: RunSettings) -> None:
    """LoRA adapters, or all of the upstream but its CNN; and what it does while it trains."""
    options = settings.config.upstream
    changed = disable_layerdrop(upstream)
    notes = [f"layer drop off, all hidden states are read: {each}" for each in changed]
    notes += set_train_modes(upstream, dropout=options.dropout, masking=options.masking)
    if settings.flags.lora:
        notes.append(str(apply_lora(upstream, settings.config.lora)))
    else:
        upstream.requires_grad_(True)
        set_cnn_training(upstream, options.train_cnn)
    if options.gradient_checkpointing:
        layers = enable_gradient_checkpointing(upstream)
        notes.append(f"gradient checkpointing of {layers} layers")
    for note in notes:
        print(f"upstream: {note}")


def build_cache(
    model: SpeechModel, root: Path, loaders: Loaders, splits: Sequence[str], *, budget_gb: float
) -> str:
    """Let `model` take its frozen upstream's features from a cache; a line on what will fit."""
    model.cached_encoder, message = cached_encoder(
        model.upstream,
        lambda: model.featurizer.layers,
        root,
        [count for split in splits for count in loaders.clips(split).num_samples()] or None,
        pooled=model.pool,
        normalize=model.normalize,
        trains_upstream=model.trains_upstream,
        budget_gb=budget_gb,
    )
    return message
