"""Upstreams of a known size with random weights; also usable as `-u s3prl_varan.benchmark.upstreams:wavlm_base`."""

from typing import Any

from s3prl_varan.upstream.micro_wavlm import UpstreamExpert, build_wavlm

# WavLM Base (arXiv 2110.13900): 12 layers of 768, 94 million parameters.
WAVLM_BASE = {
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "extractor_mode": "default",
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "num_buckets": 320,
    "max_distance": 800,
}
TINY = {
    **WAVLM_BASE,
    "encoder_layers": 4,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
    "extractor_mode": "layer_norm",
    "conv_pos": 16,
    "conv_pos_groups": 4,
}


def wavlm_base(**_: Any) -> UpstreamExpert:
    """WavLM Base's geometry."""
    return build_wavlm(WAVLM_BASE)


def wavlm_tiny(**_: Any) -> UpstreamExpert:
    """Four layers of 64."""
    return build_wavlm(TINY)


GEOMETRIES = {
    "base": "s3prl_varan.benchmark.upstreams:wavlm_base",
    "tiny": "s3prl_varan.benchmark.upstreams:wavlm_tiny",
}
