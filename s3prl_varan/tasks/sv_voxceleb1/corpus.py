"""The clips of a corpus for speaker verification, by the names that trial lists call them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from s3prl_varan.audio import audio_files
from s3prl_varan.corpora.labels import read_prepared, stretch_of
from s3prl_varan.corpora.trials import TABLE, Trial
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.shapes.base import Item

UNSEEN = -100  # the place of a speaker whom training does not know: torch's index of no loss


@dataclass(frozen=True)
class Target:
    """Whose a clip is, and what it is asked of."""

    speaker: int = UNSEEN  # its place in the task's `outputs`
    clip: str = ""  # its name in the lists
    trials: tuple[tuple[int, Trial], ...] = ()  # those it is the first clip of; place in the list


class Corpus:
    """A folder as `prepare_data.py trials` leaves it, or VoxCeleb1 as it is unpacked.

    VoxCeleb1: ROOT/{dev,test}/wav/id10001/VIDEO/00001.wav; dev is trained on.
    """

    def __init__(self, root: Path):
        self.root = root
        self.prepared = (root / TABLE).is_file()

    @cached_property
    def _rows(self) -> dict[str, tuple[str, Item]]:
        """Of a prepared corpus: each clip's split, and the clip."""
        rows = read_prepared(self.root, TABLE, "trials")
        try:
            return {
                row["name"]: (
                    row.get("split", ""),
                    Item(
                        row["name"].replace("/", "-"),
                        self.root / row["path"],
                        Target(clip=row["name"]),
                        row["speaker"],
                        *stretch_of(row),
                    ),
                )
                for row in rows
            }
        except ValueError as error:
            place = self.root / TABLE
            raise UserError(f"{place}: start and end: expected seconds ({error})") from error

    @cached_property
    def speakers(self) -> dict[str, list[str]]:
        """Names of the clips of each speaker that may be trained on."""
        found: dict[str, list[str]] = defaultdict(list)
        if self.prepared:
            for name, (split, item) in self._rows.items():
                if split == "train":
                    found[str(item.speaker)].append(name)
            return dict(found)
        folder = self.root / "dev" / "wav"
        clips = audio_files(folder, below=True) if folder.is_dir() else []
        for path in clips:
            clip = path.relative_to(folder)
            found[clip.parts[0]].append(clip.as_posix())
        if not clips:
            raise UserError(
                f"{folder}: expected recordings, SPEAKER/VIDEO/NUMBER.wav, and found none"
            )
        return dict(found)

    @cached_property
    def _folders(self) -> list[Path]:
        return sorted(path for path in self.root.glob("*/wav") if path.is_dir())

    def find(self, names: Iterable[str], source: object) -> dict[str, Item]:
        """The clips of these names. UserError with a line for each that `source` has for nothing.

        source: the list that names them.
        """
        found, problems = {}, []
        for name in dict.fromkeys(names):
            if self.prepared and name in self._rows:
                found[name] = self._rows[name][1]
                continue
            path = next((each / name for each in self._folders if (each / name).is_file()), None)
            if path is None:
                place = self.root / TABLE if self.prepared else self.root / "*" / "wav" / name
                problems.append(f"{place}: no {name}, but {source} lists it")
                continue
            short = name.removesuffix(".wav").replace("/", "-")
            found[name] = Item(short, path, Target(clip=name), name.partition("/")[0])
        if problems:
            raise UserError("\n".join(problems))
        return found
