"""Typed sections of the config that are our own: the featurizers' options. Free of heavy imports, for the command line."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from s3prl_varan.tuning.options import LoraOptions

PRIORS = ("chi2", "chi2_reversed", "geometric", "geometric_reversed", "uniform")

# Flags that belong to this call, not to the experiment that -e names.
CALL_FLAGS = (
    *(
        "mode",
        "evaluate_split",
        "override",
        "past_exp",
        "auto_resume",
        "device",
        "verbose",
        "given",
        "overwrite",
        "cache",
    ),
    "folds",
)

NllReduction = Literal["per_example", "batch_mean"]
KlDirection = Literal["posterior_prior", "prior_posterior"]
PredictionRule = Literal["geometric", "mixture", "sequence"]

FEATURIZER_OPTIONS: dict[str, type["HeadOptions"]] = {}


@dataclass
class HeadOptions:
    """Head of any featurizer. A featurizer's section in the config carries its name: `weighted_sum: {head: linear}`."""

    head: str = (
        "expert"  # expert: the downstream's own; linear: Linear(D, head_dim), Linear(head_dim, C)
    )
    head_dim: int = 256  # width of a linear head
    head_dropout: float = 0.0  # before a linear head's last matrix
    ctc_normalize: str = "frames"  # each utterance's CTC loss is divided by its input frames (VARAN) or target (SUPERB)


@dataclass
class VaranOptions(HeadOptions):
    """Section `varan:`."""

    layers: str | list[int] = (
        "transformer"  # transformer: all but hidden state 0; all; or a list of hidden states
    )
    posterior_heads: int = 16
    share_heads: bool = False  # one head for all layers
    prior: str = "chi2_reversed"
    chi2_df: float = 6
    chi2_nc: float = 10
    geometric_p: float = 0.45
    kl_beta: float = 1.0  # the evidence lower bound's own; the paper takes 0.05
    recipe: str = (
        "elbo"  # elbo: per example, KL(q || p); released: as the authors' code computes it
    )
    nll: str | None = None  # per_example | batch_mean; null: as the recipe says
    kl: str | None = None  # posterior_prior | prior_posterior; null: as the recipe says
    prediction: str = "geometric"  # geometric | mixture; for CTC also sequence (see ctc.py)


CHOICES = {
    "head": ("expert", "linear"),
    "ctc_normalize": ("frames", "target"),
    "recipe": ("elbo", "released"),
    "nll": ("per_example", "batch_mean", None),
    "kl": ("posterior_prior", "prior_posterior", None),
    "prediction": ("geometric", "mixture", "sequence"),
    "prior": PRIORS,
    "precision": ("fp32", "bf16", "fp16"),
}


@dataclass(frozen=True)
class ObjectiveSettings:
    """What the layer-wise losses need to know."""

    beta: float = 0.0
    nll: NllReduction = "per_example"
    kl: KlDirection = "posterior_prior"
    prediction: PredictionRule = "geometric"
    ctc_normalize: str = "frames"


def objective_settings(options: HeadOptions, *, ctc: bool) -> ObjectiveSettings:
    """Resolve `recipe` into its two switches. The released CTC code weighs per example, its classification code does not."""
    if not isinstance(options, VaranOptions):
        return ObjectiveSettings(ctc_normalize=options.ctc_normalize)
    released = options.recipe == "released"
    nll = options.nll or ("batch_mean" if released and not ctc else "per_example")
    kl = options.kl or ("prior_posterior" if released else "posterior_prior")
    return ObjectiveSettings(  # the config was checked against CHOICES
        options.kl_beta,
        cast(NllReduction, nll),
        cast(KlDirection, kl),
        cast(PredictionRule, options.prediction),
        options.ctc_normalize,
    )


@dataclass
class RunnerOptions:
    """Section `runner:`, s3prl's keys first, then ours."""

    total_steps: int = 10000  # optimizer steps
    gradient_clipping: float = 1.0  # L2 norm; 0 = off
    gradient_accumulate_steps: int = 1
    log_step: int = 100
    eval_step: int = 500
    save_step: int = 500
    max_keep: int = 1
    eval_dataloaders: list[str] = field(default_factory=lambda: ["dev", "test"])
    train_dataloader: str = "train"
    fp16: bool = False  # s3prl's switch, the same as precision: fp16
    precision: str = (
        "fp32"  # fp32 | bf16 | fp16; losses, softmax over layers and KL stay in float32
    )
    compile: bool = (
        False  # torch.compile of upstream layers, posterior and linear heads; minutes at the start
    )
    early_stop: int = 0  # stop after so many evaluations without a new best on dev; 0 = off
    batch_by_length: bool = False  # batches of clips of similar length: less padding
    batch_seconds: float | None = (
        None  # with batch_by_length: batch size by padded seconds instead of the expert's number
    )


@dataclass
class UpstreamOptions:
    """Section `upstream:`, what the upstream does while it is trained (with LoRA or --upstream_trainable)."""

    dropout: bool = True  # its own dropouts
    masking: bool = False  # its own SpecAugment-like masking of frames
    train_cnn: bool = False  # --upstream_trainable: train the convolutional front end too
    gradient_checkpointing: bool = (
        False  # recompute layers in the backward pass: less memory, more time
    )


@dataclass
class OptimizerOptions:
    """Section `optimizer:`. Any further key is handed to the torch.optim class."""

    name: str = "TorchOptim"
    torch_optim_name: str = "AdamW"
    lr: float = 1e-3
    featurizer_lr: float | None = None  # posterior of VARAN, weights of the weighted sum; null: lr
    upstream_lr: float | None = None  # LoRA or fine-tuned upstream; null: lr


SECTION_OPTIONS: dict[
    str, type[Any]
] = {  # the typed sections that every featurizer has beside its own
    "runner": RunnerOptions,
    "optimizer": OptimizerOptions,
    "upstream": UpstreamOptions,
    "lora": LoraOptions,
}
