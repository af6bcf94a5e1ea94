"""Speaker identification (SID), `-d voxceleb1`: which of VoxCeleb1's 1,251 speakers talks.

VoxCeleb1 as it is unpacked (FILE_PATH/dev/wav/id10001/VIDEO/00001.wav, and test/wav), with its own
list of the splits of identification (iden_split.txt, or s3prl's copy veri_test_class.txt).
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_varan.errors import UserError
from s3prl_varan.options import Count
from s3prl_varan.tasks.shapes.base import Item, Task, first_there
from s3prl_varan.tasks.shapes.clips import random_stretch
from s3prl_varan.tasks.shapes.utterance import UtteranceTask

FIRST, SPEAKERS = 10001, 1251  # id10001 to id11251
SPLITS = {"1": "train", "2": "dev", "3": "test"}
LINE = re.compile(r"([123])\s+(id(\d+)/[^/\s]+/[^/\s]+)")
SECTION = "config.downstream_expert.datarc"


class VoxCeleb1(UtteranceTask):
    """Who of the speakers seen in training is speaking."""

    name = "voxceleb1"
    title = "speaker identification (SID)"
    draws_anew = True
    knows_speakers = True
    submission_folder = "sid_public"
    remedy = (
        "Unpack VoxCeleb1 so that FILE_PATH/dev/wav and FILE_PATH/test/wav hold the speakers' "
        "folders and FILE_PATH/iden_split.txt the splits, and point to it with --data FILE_PATH, "
        f"or set file_path and meta_data in {SECTION}."
    )

    @dataclass(frozen=True, kw_only=True)
    class Data(Task.Data):
        """Section `downstream_expert.datarc`."""

        file_path: str
        meta_data: str  # lines `1 id10003/na8-QEFmj44/00003.wav`; 1 train, 2 dev, 3 test
        max_timestep: Count | None = None  # samples; longer training clips are cut at random

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        lists = first_there(root, "iden_split.txt", "veri_test_class.txt")
        return {"file_path": str(root), "meta_data": lists}

    def read_outputs(self) -> list[str]:
        return [f"id{FIRST + number}" for number in range(SPEAKERS)]

    def items(self, split: str) -> list[Item]:
        root, table = Path(self.data.file_path), Path(self.data.meta_data)
        problems: list[str] = []
        folders = sorted(path for path in root.glob("*/wav") if path.is_dir())
        if not root.is_dir():
            problems.append(f"{SECTION}.file_path: no folder {root}")
        elif not folders:
            problems.append(f"{root}: no folder dev/wav or test/wav in it")
        listed = _listed(table, problems)
        items = []
        for clip, number in listed[split]:
            path = next((each / clip for each in folders if (each / clip).is_file()), None)
            if path is not None:
                name = Path(clip.replace("/", "-")).stem
                items.append(Item(name, path, number, clip.partition("/")[0]))
            elif folders:
                problems.append(f"{root}/*/wav/{clip}: no such file, but {table} lists it")
        if not listed[split] and not problems:
            problems.append(f"{table}: lists no clip of {split}")
        if problems:
            raise UserError("\n".join(problems))
        return items

    def load(self, item: Item, rng: random.Random, training: bool) -> Tensor:
        if training and self.data.max_timestep is not None:
            return random_stretch(item.path, self.data.max_timestep, rng)
        return super().load(item, rng, training)

    def num_samples(self, item: Item, training: bool) -> int:
        whole = super().num_samples(item, training)
        return min(whole, self.data.max_timestep or whole) if training else whole


def _listed(table: Path, problems: list[str]) -> dict[str, list[tuple[str, int]]]:
    """Clips of each split (id10003/VIDEO/00003.wav) with their classes, in the list's order."""
    listed: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS.values()}
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{SECTION}.meta_data: {table} cannot be read ({error})")
        return listed
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line.strip())
        if match and 0 <= int(match[3]) - FIRST < SPEAKERS:
            listed[SPLITS[match[1]]].append((match[2], int(match[3]) - FIRST))
        elif line.strip():
            wanted = f"1, 2 or 3 and a clip of id{FIRST} to id{FIRST + SPEAKERS - 1}"
            problems.append(f"{table}, line {number}: expected {wanted}, found {line.strip()!r}")
    return listed
