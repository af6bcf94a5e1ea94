"""Speaker verification (ASV), `-d sv_voxceleb1`: are two recordings of one speaker?

VoxCeleb1 as it is unpacked, with a list of trials (a line `1 CLIP CLIP` or `0 CLIP CLIP` each), or
any corpus with speakers that `prepare_data.py trials` has prepared. Trained as a classifier of the
training speakers, by the softmax with an additive margin (AM-softmax, Wang et al. 2018), which is
a likelihood of the speakers; tested by the cosine of two embeddings.

Where s3prl trims silence with sox and scores dev on the test pairs, this does neither.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_varan.corpora.trials import (
    LISTS,
    TABLE,
    Trial,
    draw_trials,
    hold_out,
    read_trials,
)  # fmt: skip
from s3prl_varan.errors import UserError
from s3prl_varan.files import write_atomic
from s3prl_varan.layerwise.heads import HeadOptions, copied_heads
from s3prl_varan.layerwise.objective import layer_log_posterior
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.options import Count, NonNegative, Positive, Share, Width
from s3prl_varan.tasks.shapes.base import Item, Record, Task, first_there
from s3prl_varan.tasks.shapes.clips import random_stretch
from s3prl_varan.tasks.shapes.utterance import layer_cross_entropy
from s3prl_varan.tasks.sv_voxceleb1.corpus import Corpus, Target
from s3prl_varan.tasks.sv_voxceleb1.heads import LinearEmbedding, SpeakerHeads, XVectorModel

DRAW_SEED = 0  # of a dev list that is made
DEV_SHARE = 5  # at most one training speaker in so many is held out for it
P_TARGET = 0.01  # how likely two clips are of one speaker, in the detection cost
SHOWN = 4  # numbers of an embedding, for people


class SpeakerVerification(Task):
    """Embeddings of speakers; `outputs` are the names of those trained on, in order."""

    name = "sv_voxceleb1"
    title = "speaker verification (ASV)"
    metric = "eer"
    higher_is_better = False
    rules = ("geometric",)  # nothing to choose from, but this is what the featurizers say
    draws_anew = True
    scores_training = False
    outputs_everywhere = False
    head_keys = ("input_dim", "agg_dim", "dropout_p")
    preparations = ("trials",)
    remedy = (
        "Unpack VoxCeleb1 so that FILE_PATH/dev/wav and FILE_PATH/test/wav hold the speakers' "
        "folders, with the list of trials (voxceleb1_test_v2.txt) in FILE_PATH; or prepare another "
        "corpus with `python run/prepare_data.py trials SOURCE`. Then point to it with --data."
    )

    @dataclass(frozen=True, kw_only=True)
    class Data(Task.Data):
        """Section `downstream_expert.datarc`."""

        file_path: str
        test_meta_data: str  # trials, lines `1 id10270/5r0dWxy17C8/00001.wav id10270/...`
        dev_meta_data: str | None = None  # null: trials of training speakers, then not trained on
        dev_speakers: Count = 40  # where dev_meta_data is null; at most a fifth of all
        dev_trials: Count = 20000  # as many as in s3prl's list
        max_timestep: Count | None = 128000  # samples; longer training clips are cut at random

    @dataclass(frozen=True)
    class Model:
        """Section `modelrc`: s3prl's keys, in one level."""

        input_dim: Width = 512  # of the first linear map, and of the embedding
        agg_dim: Width = 1500  # of what is pooled over time
        dropout_p: Share = 0.0
        s: Positive = 30.0  # scale of the cosines
        m: NonNegative = 0.4  # margin, off the right speaker's

    # ---- the corpus

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        folder = next(
            (each for each in (root, root / "meta_data") if (each / TABLE).is_file()), None
        )
        if folder is not None:
            lists = {f"{split}_meta_data": str(folder / name) for split, name in LISTS.items()}
            return {"file_path": str(folder), **lists}
        trials = first_there(root, "voxceleb1_test_v2.txt", "veri_test2.txt", "veri_test.txt")
        return {"file_path": str(root), "test_meta_data": trials, "dev_meta_data": None}

    @property
    def corpus(self) -> str:
        folder = Path(self.data.file_path)
        return folder.parent.name if folder.name == "meta_data" else folder.name

    def splits(self) -> list[str]:
        return ["train", *LISTS]

    @cached_property
    def _clips(self) -> Corpus:
        return Corpus(Path(self.data.file_path))

    def _trials(self, split: str) -> list[Trial]:
        given = getattr(self.data, f"{split}_meta_data")
        return self._made_dev if given is None else read_trials(Path(given))

    def _asked(self, split: str) -> dict[str, Item]:
        """The clips of a split's trials, by the names that the list has for them."""
        names = (name for trial in self._trials(split) for name in (trial.first, trial.second))
        return self._clips.find(names, getattr(self.data, f"{split}_meta_data"))

    def _without(self, *splits: str) -> dict[str, list[str]]:
        """The clips' names of each speaker that may be trained on and is in none of the splits."""
        asked = {item.speaker for split in splits for item in self._asked(split).values()}
        return {name: clips for name, clips in self._clips.speakers.items() if name not in asked}

    @cached_property
    def _made_dev(self) -> list[Trial]:
        generator, names = random.Random(DRAW_SEED), self._without("test")
        count = min(self.data.dev_speakers, max(2, len(names) // DEV_SHARE))
        held = hold_out(names, count, generator)
        if len(held) < 2:
            raise UserError(
                f"{self.data.file_path}: no two speakers with two clips each can be held out of "
                "training for dev. Give a list of trials as dev_meta_data."
            )
        mine = {speaker: names[speaker] for speaker in held}
        return draw_trials(mine, self.data.dev_trials, generator)

    @cached_property
    def _trained(self) -> dict[str, list[str]]:
        names = self._without(*LISTS)
        if len(names) < 2:
            raise UserError(
                f"{self.data.file_path}: expected two speakers or more to train on who are in no "
                f"trial of dev or test, found {len(names)}"
            )
        return names

    def read_outputs(self) -> list[str]:
        return sorted(self._trained)

    def items(self, split: str) -> list[Item]:
        if split in LISTS:
            asked: dict[str, list[tuple[int, Trial]]] = defaultdict(list)
            for place, trial in enumerate(self._trials(split)):
                asked[trial.first].append((place, trial))
            return [
                replace(item, target=Target(clip=name, trials=tuple(asked[name])))
                for name, item in self._asked(split).items()
            ]
        if sorted(self._trained) != self.outputs:
            raise UserError(
                f"{self.data.file_path}: {len(self._trained)} training speakers, not the "
                f"{len(self.outputs)} of the checkpoint. Set the paths of the corpus that it was "
                "trained on."
            )
        ids = {speaker: number for number, speaker in enumerate(self.outputs)}
        names = [clip for speaker in self.outputs for clip in self._trained[speaker]]
        found = self._clips.find(names, self.data.file_path)
        return [
            replace(item, target=Target(ids[str(item.speaker)], name))
            for name, item in found.items()
        ]

    def load(self, item: Item, rng: random.Random, training: bool) -> Tensor:
        most = self.data.max_timestep
        if not training or most is None:
            return super().load(item, rng, training)
        return random_stretch(item.path, most, rng, start=item.start, end=item.end)

    def num_samples(self, item: Item, training: bool) -> int:
        whole = super().num_samples(item, training)
        return min(whole, self.data.max_timestep or whole) if training else whole

    def collate(self, targets: Sequence[Target]) -> Tensor:
        """Places of the speakers in `outputs` -> [B] int64."""
        return torch.tensor([target.speaker for target in targets])

    # ---- heads, loss and prediction

    def build_heads(
        self, dim: int, num_layers: int, downsample_rate: int, options: HeadOptions
    ) -> nn.Module:
        model = self.model
        encoder: nn.Module
        if options.kind == "linear":
            width = options.dim
            encoder = LinearEmbedding(num_layers, dim, width, options.shared)
        else:
            width = model.input_dim
            encoder = copied_heads(
                options,
                num_layers,
                dim,
                width,
                lambda: XVectorModel(width, model.agg_dim, model.dropout_p),
            )
        copies = 1 if options.shared else num_layers
        return SpeakerHeads(encoder, copies, width, len(self.outputs), options.dropout)

    def layer_loss(self, out: LayerOutputs, targets: Tensor) -> Tensor:
        """Cross entropy of s (cos - m for the right speaker): [B, L] nats; 0 for one unseen."""
        cosines = out.values[..., -len(self.outputs) :].float()
        speakers = torch.arange(len(self.outputs), device=cosines.device)
        right = targets[:, None, None] == speakers  # [B, 1, S]
        return layer_cross_entropy(self.model.s * (cosines - self.model.m * right), targets)

    def combine(self, out: LayerOutputs, posterior_logits: Tensor, rule: str) -> Prediction:
        """One embedding: sqrt(q_l) e_l / |e_l| of all layers side by side, [B, L E].

        The dot product of two is sum_l sqrt(q_l q'_l) cos_l; of one layer it is the cosine.
        """
        embeddings = F.normalize(out.values[..., : -len(self.outputs)].float(), dim=-1)
        roots = (0.5 * layer_log_posterior(posterior_logits)).exp()
        return Prediction((roots[..., None] * embeddings).flatten(1), out.lengths)

    # ---- results

    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        rows = prediction.values.float().cpu().numpy()
        return [
            {
                "name": item.name,
                "truth": str(item.speaker),
                "clip": item.target.clip,
                "trials": item.target.trials,
                "embedding": row,
            }
            for item, row in zip(items, rows, strict=True)
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """eer in percent, mindcf as it is."""
        scored = list(_scored(records))
        if not scored:  # of the training clips
            return {"eer": math.nan, "mindcf": math.nan}
        labels, scores = [trial.same for trial, _ in scored], [value for _, value in scored]
        return {"eer": 100 * equal_error_rate(labels, scores), "mindcf": min_dcf(labels, scores)}

    def write(self, records: Sequence[Record], split: str, folder: Path) -> None:
        """SPLIT_predict.txt and SPLIT_truth.txt: lines `CLIP_CLIP score` and `CLIP_CLIP 0|1`."""
        names = {record["clip"]: record["name"] for record in records}
        lines: dict[str, list[str]] = {"predict": [], "truth": []}
        for trial, score in _scored(records):
            pair = f"{names[trial.first]}_{names[trial.second]}"
            lines["predict"].append(f"{pair} {score:.8f}\n")
            lines["truth"].append(f"{pair} {int(trial.same)}\n")
        for kind, written in lines.items():
            write_atomic(folder / f"{split}_{kind}.txt", "".join(written))

    def submission(self) -> dict[str, str]:
        return {"sv_public/predict.txt": "test_predict.txt"}

    def answers(self, prediction: Prediction) -> list[dict[str, Any]]:
        """The embedding: the dot product of two recordings' is their score."""
        return [{"prediction": row} for row in prediction.values.float().tolist()]

    def text(self, answer: dict[str, Any]) -> str:
        numbers = answer["prediction"]
        shown = "  ".join(f"{number:.3f}" for number in numbers[:SHOWN])
        return f"embedding of {len(numbers)} numbers  {shown}  ..."


def _scored(records: Sequence[Record]) -> Iterator[tuple[Trial, float]]:
    """The trials in the order of their list, with their scores."""
    embeddings = {record["clip"]: record["embedding"] for record in records}
    asked = [each for record in records for each in record["trials"]]
    for _, trial in sorted(asked, key=lambda each: each[0]):
        yield trial, float(embeddings[trial.first] @ embeddings[trial.second])


def equal_error_rate(same: Sequence[bool], scores: Sequence[float]) -> float:
    """Where as many trials of two speakers are accepted as of one are refused, a share.

    Between two thresholds both go on a straight line, as in s3prl.
    """
    accepted, missed = _errors(same, scores)
    return float(np.interp(0.0, accepted - missed, accepted))


def min_dcf(same: Sequence[bool], scores: Sequence[float]) -> float:
    """Least detection cost of NIST SRE 2016, section 3, at P_TARGET and equal costs.

    As a share of what is lost without looking at the scores.
    """
    accepted, missed = _errors(same, scores)
    costs = P_TARGET * missed + (1 - P_TARGET) * accepted
    return float(costs.min() / min(P_TARGET, 1 - P_TARGET))


def _errors(same: Sequence[bool], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the wrongly accepted and of the missed, from the highest threshold down."""
    from sklearn.metrics import roc_curve

    accepted, found, _ = roc_curve(same, scores)
    return accepted, 1.0 - found
