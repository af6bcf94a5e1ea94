"""One tiny upstream per s3prl family, with random weights.

They are written as the family's checkpoint and loaded by s3prl's own code.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from s3prl_varan.upstream.wrapper import Upstream, build_upstream

DIM, FFN, LAYERS, HEADS = 32, 64, 3, 4
CONV = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
FAIRSEQ = {
    "encoder_layers": LAYERS,
    "encoder_embed_dim": DIM,
    "encoder_ffn_embed_dim": FFN,
    "encoder_attention_heads": HEADS,
    "conv_feature_layers": CONV,
    "conv_pos": 16,
    "conv_pos_groups": 2,
    "encoder_layerdrop": 0.5,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
HUGGING = {
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.5,
    "mask_time_prob": 0.5,
}

SMALL = {  # WavLMConfig's fields
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
    "conv_pos": 16,
    "extractor_mode": "layer_norm",
    "normalize": True,
}


def _plain(config):
    """A config dataclass as plain values (its choices are enums)."""
    return {
        key: value.value if hasattr(value, "value") else value
        for key, value in asdict(config).items()
    }


def _wavlm(path: Path, **extra) -> None:
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    config = WavLMConfig({**FAIRSEQ, **extra})
    torch.save({"cfg": vars(config), "model": WavLM(config).state_dict()}, path)


def _hubert(path: Path) -> None:
    from s3prl.upstream.hubert.hubert_model import (
        HubertConfig,
        HubertModel,
        HubertPretrainingConfig,
    )

    config, task = (
        HubertConfig(label_rate=50, **FAIRSEQ),
        HubertPretrainingConfig(label_rate=50, sample_rate=16000),
    )
    symbols = [["a", "b", "c"]]
    state = HubertModel(config, task, symbols).state_dict()
    torch.save(
        {
            "task_cfg": _plain(task),
            "model_cfg": _plain(config),
            "model_weight": state,
            "dictionaries_symbols": symbols,
        },
        path,
    )


def _wav2vec2(path: Path, **extra) -> None:
    from s3prl.upstream.wav2vec2.wav2vec2_model import (
        AudioPretrainingConfig,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    config = Wav2Vec2Config(**{**FAIRSEQ, **extra})
    state = Wav2Vec2Model(config).state_dict()
    torch.save(
        {
            "task_cfg": _plain(AudioPretrainingConfig()),
            "model_cfg": _plain(config),
            "model_weight": state,
        },
        path,
    )


def _data2vec(path: Path) -> None:
    from s3prl.upstream.data2vec.data2vec_model import Data2VecAudioConfig, Data2VecAudioModel
    from s3prl.upstream.wav2vec2.wav2vec2_model import AudioPretrainingConfig

    config = Data2VecAudioConfig(**FAIRSEQ)
    model = Data2VecAudioModel(config)
    model.remove_pretraining_modules()
    state = {**model.state_dict(), "_ema": {"teacher": torch.ones(3)}}
    torch.save(
        {
            "task_cfg": _plain(AudioPretrainingConfig()),
            "model_cfg": _plain(config),
            "model_weight": state,
        },
        path,
    )


def _distilhubert(path: Path) -> None:
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    config = {
        **FAIRSEQ,
        "extractor_conv_feature_layers": CONV,
        "final_dim": DIM,
        "n_tasks": 2,
        "pred_layer_id": [1, 2],
    }
    torch.save(
        {
            "Config": {"distiller": config},
            "Distiller": DistillerModel(DistillerConfig(config)).state_dict(),
        },
        path,
    )


def _mockingjay(path: Path) -> None:
    from s3prl.upstream.mockingjay.model import TransformerConfig, TransformerModel

    transformer = {
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "share_layer": False,
        "pre_layer_norm": False,
    }
    fbank = {"num_mel_bins": 24, "frame_length": 25.0, "frame_shift": 10.0, "use_log_fbank": True}
    audio = {
        "kaldi": {"feat_type": "fbank", "fbank": fbank},
        "delta": {"order": 0},
        "cmvn": {"use_cmvn": True},
    }
    config = {"transformer": transformer, "task": {"sequence_length": 0}, "audio": audio}
    state = TransformerModel(TransformerConfig(transformer), 24).state_dict()
    torch.save({"Config": config, "Transformer": state}, path)


def _hugging_face(path: Path, family: str) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(**HUGGING)
    getattr(transformers, f"{family}Model")(config).save_pretrained(path)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(path)


def _whisper(path: Path) -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=DIM,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        encoder_layerdrop=0.5,
        dropout=0.1,
        max_source_positions=100,
    )
    WhisperEncoder(config).save_pretrained(path)


class TorchExpert(nn.Module):
    """torch's own TransformerEncoder, whose attention fuses q, k and v into in_proj_weight."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(320, DIM)
        layer = nn.TransformerEncoderLayer(DIM, HEADS, FFN, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def get_downsample_rates(self, key: str) -> int:
        return 320

    def forward(self, wavs):
        frames = [wav[: len(wav) // 320 * 320].view(-1, 320) for wav in wavs]
        hidden = self.project(nn.utils.rnn.pad_sequence(frames, batch_first=True))
        states = [hidden]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return {"hidden_states": states}


MAKERS = {
    "wavlm_local": lambda path: _wavlm(path, relative_position_embedding=True, gru_rel_pos=True),
    "unispeech_sat_local": _wavlm,
    "hubert_local": _hubert,
    "wav2vec2_local": _wav2vec2,
    "wav2vec2_local conformer": lambda path: _wav2vec2(
        path, layer_type="conformer", depthwise_conv_kernel_size=3
    ),
    "data2vec_local": _data2vec,
    "distiller_local": _distilhubert,
    "mockingjay_local": _mockingjay,
    "hf_hubert_custom": lambda path: _hugging_face(path, "Hubert"),
    "hf_wav2vec2_custom": lambda path: _hugging_face(path, "Wav2Vec2"),
    "whisper": _whisper,
    "torch": None,
}
FAMILIES = list(MAKERS)


def make_checkpoint(family: str, folder: Path) -> Path | None:
    """The family's checkpoint (file or folder), drawn from a fixed seed; None if none is needed."""
    make = MAKERS[family]
    path = folder / f"{family}.pt".replace(" ", "-")
    if make is None:
        return None
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make(path)
    return path


def tiny_upstream(family: str, folder: Path) -> Upstream:
    """The family's upstream, built as `-u family -k checkpoint` builds it."""
    if family == "torch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Upstream(TorchExpert(), name="torch")
    return build_upstream(family.split()[0], str(make_checkpoint(family, folder)))


def noise(*num_samples: int) -> list[torch.Tensor]:
    """Clips of noise, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(samples, generator=generator) * 0.1 for samples in num_samples]
