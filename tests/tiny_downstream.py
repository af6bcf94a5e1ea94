"""A small downstream in s3prl's manner for tests: pitches to tell apart, with crops and dropout."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIZES = {"train": 20, "dev": 8, "test": 8}


class Tones(Dataset):
    """A tone of one of two pitches each, cropped at random."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        label = index % 2
        time = torch.arange(4800) / 16000
        wave = torch.sin(2 * torch.pi * (300 + 400 * label) * time) + 0.1 * torch.randn(4800)
        start = random.randrange(1600)
        return wave[start : start + 3200].numpy(), label

    def collate_fn(self, clips):
        wavs, labels = zip(*clips, strict=True)
        return wavs, labels, [f"tone{label}" for label in labels]


class DownstreamExpert(nn.Module):
    """Mean over time, dropout, a linear layer."""

    def __init__(self, upstream_dim, upstream_rate, downstream_expert, expdir, **kwargs):
        super().__init__()
        self.datarc, self.expdir = downstream_expert["datarc"], expdir
        self.model = nn.Sequential(nn.Dropout(0.3), nn.Linear(upstream_dim, 2))
        self.register_buffer("best_score", torch.zeros(1))

    def get_dataloader(self, split, epoch: int = 0):
        if split not in SIZES:
            return None
        data = Tones(SIZES[split])
        size, shuffle = self.datarc["batch_size"], split == "train"
        return DataLoader(data, size, shuffle=shuffle, collate_fn=data.collate_fn)

    def forward(self, split, features, labels, names, records, batch_id, **kwargs):
        logits = self.model(torch.stack([each.mean(dim=0) for each in features]))
        target = torch.tensor(labels, device=logits.device)
        loss = nn.functional.cross_entropy(logits, target)
        records["acc"] += (logits.argmax(dim=-1) == target).float().tolist()
        records["loss"].append(loss.item())
        records["batch"].append(batch_id)
        return loss

    def log_records(self, split, records, logger, global_step, batch_ids, total_batch_num, **kw):
        if split != "train":
            assert records["batch"] == batch_ids and len(batch_ids) == total_batch_num
        for key in ("acc", "loss"):
            mean = torch.tensor(records[key]).mean().item()
            logger.add_scalar(f"tones/{split}-{key}", mean, global_step=global_step)
        logger.add_text("tones", "passed over")
        with open(f"{self.expdir}/{split}.log", "a") as file:
            file.write(f"{global_step}\n")
