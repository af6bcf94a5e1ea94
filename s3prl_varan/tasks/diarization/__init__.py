"""Speaker diarization (SD), `-d diarization`: who of a few speakers speaks in each frame.

SUPERB's Libri2Mix, or any corpus in Kaldi's layout (corpora/kaldi.py): a folder each for train, dev
and test. scoring.py has turns and error rate. Training cuts recordings into chunks; dev and test
have whole recordings (s3prl scores dev in chunks too).
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_varan.audio import MIN_SAMPLES, SAMPLE_RATE, header_samples
from s3prl_varan.corpora.kaldi import Recording, Turn, read_kaldi, rttm_text
from s3prl_varan.errors import UserError
from s3prl_varan.features.pooling import frames_inside
from s3prl_varan.files import atomic_path, write_atomic
from s3prl_varan.layerwise.heads import CopiedHeads, HeadOptions, LinearHeads, refuse_dropout
from s3prl_varan.layerwise.objective import aggregate_log_probs
from s3prl_varan.layerwise.outputs import LayerOutputs, Prediction
from s3prl_varan.names import file_name
from s3prl_varan.options import Count, Range, Width
from s3prl_varan.tasks.diarization.scoring import error_rates, turns_of
from s3prl_varan.tasks.shapes.base import Item, Record, Task

SECTION = "config.downstream_expert.datarc"
SLACK = 0.1  # seconds that a turn may end behind its recording
PREDICTIONS = Path("scoring", "predictions")  # s3prl's folder, a file for each recording


class RecurrentHead(nn.Module):
    """s3prl's head for one layer: LSTM from the past to the future, then a linear map."""

    def __init__(self, dim: int, num_speakers: int, options: "Diarization.Model"):
        super().__init__()
        from s3prl.downstream.diarization.model import Model

        self.model = Model(dim, num_speakers, options.rnn_layers, options.hidden_size)

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        return self.model(hidden), None


class Diarization(Task):
    """For each frame and speaker whether he speaks; in which order the speakers come is free.

    Targets are turns; of a batch [B, S, 3]: speaker, start and end in samples, 0 where padded.
    `outputs` are the speakers' names in predictions. Heads and predictions are logits [T, N].
    """

    name = "diarization"
    title = "speaker diarization (SD)"
    metric = "der"
    higher_is_better = False
    scores_training = False
    preparations = ("mixtures",)
    head_keys = ("rnn_layers", "hidden_size")
    remedy = (
        "Prepare Libri2Mix as s3prl does (it writes train, dev and test in Kaldi's layout), or "
        "mix speakers of another corpus with `python run/prepare_data.py mixtures ROOT --out DIR`, "
        f"then point to it with --data DIR, or set train_dir, dev_dir and test_dir in {SECTION}."
    )
    frame = 320  # samples of a frame of the heads; their upstream's once they are built

    @dataclass(frozen=True, kw_only=True)
    class Data(Task.Data):
        """Section `datarc`, with s3prl's `loaderrc` and `scorerc`."""

        train_dir: str
        dev_dir: str
        test_dir: str
        num_speakers: Annotated[int, Range(low=1, high=6)] = 2  # losses are of all their orders
        chunk_size: Count = 2000  # training cuts recordings into so many frames
        frame_shift: Count = 320  # samples of those; labels have the upstream's own frames
        eval_batch_size: Count = 1
        save_predictions: bool = False  # probabilities of test as HDF5, for SUPERB's leaderboard

    @dataclass(frozen=True)
    class Model:
        """Section `modelrc`, s3prl's keys."""

        rnn_layers: Annotated[int, Range(low=0, high=16)] = 1
        hidden_size: Width = 512

    # ---- the corpus

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        return {f"{split}_dir": str(root / split) for split in ("train", "dev", "test")}

    @property
    def corpus(self) -> str:
        return Path(self.data.train_dir).absolute().parent.name

    def splits(self) -> list[str]:
        return ["train", "dev", "test"]

    def read_outputs(self) -> list[str]:
        return [str(index) for index in range(self.data.num_speakers)]

    def items(self, split: str) -> list[Item]:
        """Chunks of train, whole recordings else. A target has the turns within it."""
        folder = Path(getattr(self.data, f"{split}_dir"))
        # Segments are what s3prl trains on, the rttm is what SUPERB scores with.
        recordings = read_kaldi(folder, "segments" if split == "train" else "rttm")
        problems: list[str] = []
        items: list[Item] = []
        for each in recordings:
            found, seconds = len({turn.speaker for turn in each.turns}), _seconds(each)
            if found > self.data.num_speakers:
                problems.append(
                    f"{folder}: {each.name} has {found} speakers, {SECTION}.num_speakers is "
                    f"{self.data.num_speakers}"
                )
            if _end(each) > seconds + SLACK:
                problems.append(f"{folder}: {each.name} has turns behind its end, {seconds:.2f} s")
            whole = [Item(each.name, each.path, each.turns)]
            items += self._chunks(each, seconds) if split == "train" else whole
        if problems:
            raise UserError("\n".join(problems))
        return items

    def _chunks(self, recording: Recording, seconds: float) -> Iterator[Item]:
        """The last is shorter; one too short for the upstreams is left out."""
        size = self.data.chunk_size * self.data.frame_shift / SAMPLE_RATE
        for number in range(math.ceil((seconds - MIN_SAMPLES / SAMPLE_RATE) / size)):
            start, end = number * size, min(number * size + size, seconds)
            turns = [
                Turn(turn.speaker, max(turn.start - start, 0.0), min(turn.end, end) - start)
                for turn in recording.turns
                if turn.start < end and turn.end > start
            ]
            yield Item(f"{recording.name}-{number}", recording.path, turns, start=start, end=end)

    def problems(self, splits: Sequence[str]) -> list[str]:
        problems = super().problems(splits)
        if self.data.save_predictions and importlib.util.find_spec("h5py") is None:
            problems.append(
                f"{SECTION}.save_predictions needs the package h5py: pip install h5py, or set it "
                "to False"
            )
        return problems

    def warnings(self, clips: Mapping[str, Sequence[Item]]) -> list[str]:
        # An item for each of its speakers.
        each = {
            split: [
                replace(item, speaker=name)
                for item in items
                for name in {turn.speaker for turn in item.target} or {None}
            ]
            for split, items in clips.items()
        }
        return super().warnings(each)

    def collate(self, targets: Sequence[Sequence[Turn]]) -> Tensor:
        rows = []
        for turns in targets:
            names = sorted({turn.speaker for turn in turns})
            places = [
                (names.index(turn.speaker), SAMPLE_RATE * turn.start, SAMPLE_RATE * turn.end)
                for turn in turns
            ]
            rows.append(torch.tensor(places, dtype=torch.double).round().float().view(-1, 3))
        return pad_sequence(rows, batch_first=True)

    def labels(self, targets: Tensor, frames: int) -> Tensor:
        """Who speaks in each frame of the heads: [B, T, N], ones and zeros.

        Start and end of a turn are rounded to the nearest edge of a frame, as s3prl does.
        """
        speakers, start, end = targets.unbind(dim=-1)  # [B, S] each
        frame = torch.arange(frames, device=targets.device)
        after = frame >= (start / self.frame).round()[..., None]  # [B, S, T]
        before = frame < (end / self.frame).round()[..., None]
        who = F.one_hot(speakers.long(), len(self.outputs)).float()
        return torch.einsum("bst,bsn->btn", (after & before).float(), who).clamp_max(1)

    # ---- heads, loss and prediction

    def build_heads(
        self, dim: int, num_layers: int, downsample_rate: int, options: HeadOptions
    ) -> nn.Module:
        self.frame = downsample_rate
        count = len(self.outputs)
        if options.kind == "linear":
            return LinearHeads(
                num_layers,
                dim,
                options.dim,
                count,
                per_frame=True,
                shared=options.shared,
                dropout=options.dropout,
            )
        refuse_dropout(options)
        return CopiedHeads(
            lambda: (nn.Identity(), RecurrentHead(dim, count, self.model)),
            num_layers,
            options.shared,
        )

    def layer_loss(self, out: LayerOutputs, targets: Tensor) -> Tensor:
        """[B, L, K]: binary cross entropy with each of the K orders of the true speakers.

        Summed over an example's frames, the mean over its speakers, by the batch's mean number of
        frames: the mean over the batch is s3prl's loss, in which every frame counts the same.
        `elbo` takes the best order of each example after weighing the layers. So all its layers
        have one order, and learn to agree on it: prediction averages them speaker by speaker.
        """
        logits = out.values.float()
        frames, count = logits.shape[2:]
        labels = self.labels(targets, frames)[:, None]
        valid = frames_inside(out.lengths, frames, logits.device)
        orders = torch.tensor(list(permutations(range(count))), device=logits.device)
        # [B, L, T, N, N]: output i beside true speaker j
        shape = (*logits.shape, count)
        losses = F.binary_cross_entropy_with_logits(
            logits[..., None].expand(shape),
            labels[..., None, :].expand(shape),
            reduction="none",
        )
        pairs = losses.masked_fill(~valid[:, None, :, None, None], 0.0).sum(dim=2)
        by_order = pairs[:, :, torch.arange(count, device=logits.device), orders]  # [B, L, K, N]
        return by_order.mean(dim=-1) / out.lengths.to(logits).mean()

    def combine(self, out: LayerOutputs, posterior_logits: Tensor, rule: str) -> Prediction:
        """geometric: the mean of the logits by q; mixture: the logits of the mean probability."""
        logits = out.values.float()
        if rule == "geometric":
            values = aggregate_log_probs(logits, posterior_logits)
        else:
            speaks, silent = (
                aggregate_log_probs(F.logsigmoid(each), posterior_logits, rule)
                for each in (logits, -logits)
            )
            values = speaks - silent
        return Prediction(values, out.lengths)

    # ---- results

    def turns(self, prediction: Prediction) -> list[list[Turn]]:
        """What is predicted for each recording."""
        rows = [(row > 0).numpy() for row in _unpadded(prediction)]
        return [turns_of(row, self.outputs, self.frame / SAMPLE_RATE) for row in rows]

    def records(self, prediction: Prediction, items: Sequence[Item]) -> list[Record]:
        records: list[Record] = [
            {"name": item.name, "truth": item.target, "predict": turns}
            for item, turns in zip(items, self.turns(prediction), strict=True)
        ]
        if self.data.save_predictions:
            for record, row in zip(records, _unpadded(prediction), strict=True):
                record["probabilities"] = row.sigmoid().numpy()
        return records

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """der, and of it missed, falarm and confused, in percent of the time spoken."""
        return error_rates([(record["truth"], record["predict"]) for record in records])

    def write(self, records: Sequence[Record], split: str, folder: Path) -> None:
        """SPLIT_predict.rttm and SPLIT_truth.rttm; with save_predictions those of test as HDF5.

        A file for each recording, its dataset T_hat [frames, speakers] has the probabilities.
        """
        texts = {"predict": "", "truth": ""}
        for record in records:
            name, turns = record["name"], record["predict"]
            named = [replace(turn, speaker=f"{name}_{turn.speaker}") for turn in turns]
            texts["predict"] += rttm_text(name, named)
            texts["truth"] += rttm_text(name, record["truth"])
        for kind, text in texts.items():
            write_atomic(folder / f"{split}_{kind}.rttm", text)
        if split != "test" or not self.data.save_predictions:
            return
        import h5py

        place = folder / PREDICTIONS
        place.mkdir(parents=True, exist_ok=True)
        for record in records:
            with atomic_path(place / f"{file_name(record['name'])}.h5") as path:
                with h5py.File(path, "w") as file:
                    file["T_hat"] = record["probabilities"]

    def submission(self) -> dict[str, str]:
        return {"sd_public": str(PREDICTIONS)} if self.data.save_predictions else {}

    def answers(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Turns: the speaker, start and end in seconds."""
        return [{"prediction": list(map(asdict, turns))} for turns in self.turns(prediction)]

    def text(self, answer: dict[str, Any]) -> str:
        turns = [Turn(**turn) for turn in answer["prediction"]]
        return ", ".join(f"speaker {turn}" for turn in turns) or "no speech"


def _end(recording: Recording) -> float:
    return max(turn.end for turn in recording.turns)


def _seconds(recording: Recording) -> float:
    """By its header; of one that cannot be read, which is said elsewhere, by its turns."""
    try:
        return header_samples(recording.path) / SAMPLE_RATE
    except UserError:
        return _end(recording)


def _unpadded(prediction: Prediction) -> list[Tensor]:
    """The logits of each recording, [its T, N]."""
    values, lengths = prediction.values.float().cpu(), prediction.lengths.tolist()
    return [row[:length] for row, length in zip(values, lengths, strict=True)]
