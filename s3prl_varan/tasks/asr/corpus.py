"""A corpus in LibriSpeech's layout: tables of recordings and .trans.txt files beside them.

The same files and labels as s3prl's dataset, but nothing is dropped: s3prl leaves out a last batch
of one, any utterance without a transcript and any split without a table.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_varan.audio import examine_audio_files
from s3prl_varan.corpora.dictionary import describe_unknown, unknown_symbols
from s3prl_varan.corpora.librispeech import read_prepared
from s3prl_varan.corpora.tables import Utterance
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.asr.units import SPECIAL

SPELLING = (
    "spell digits and symbols as spoken; other letters need their own dictionary "
    "(prepare_data.py --build_dict, then dict_path)"
)


class Corpus:
    """Recordings below `root`; `splits` names the tables (NAME.csv in `tables`) of each split."""

    def __init__(self, root: Path, tables: Path, splits: Mapping[str, Sequence[str]]):
        self.root, self.tables, self.splits = root, tables, splits

    def utterances(self, split: str) -> list[Utterance]:
        """The split's utterances, longest first. UserError with a problem in each line."""
        problems: list[str] = []
        found = self._read(split, problems)
        if problems:
            raise UserError("\n".join(problems))
        return found

    def problems(self, splits: Sequence[str], units: Sequence[str]) -> list[str]:
        """Everything that keeps `splits` from being used, recordings by their headers."""
        problems: list[str] = []
        alphabet = set(units) - set(SPECIAL)
        unknown: dict[str, dict[str, int]] = defaultdict(dict)
        paths: dict[Path, None] = {}
        for split in dict.fromkeys(splits):
            for utterance in self._read(split, problems):
                paths[utterance.path] = None
                for symbol, count in unknown_symbols(utterance.text.upper(), alphabet).items():
                    unknown[symbol][utterance.name] = count
        for line in describe_unknown(unknown, shown=3):
            problems.append(f"outside the dictionary: {line} ({SPELLING})")
        checked = examine_audio_files(paths, decode=False)
        return problems + [file.problem for file in checked if file.problem]

    def _read(self, split: str, problems: list[str]) -> list[Utterance]:
        found = []
        for name in self.splits[split]:
            mine: list[str] = []
            found += read_prepared(self.root, self.tables / f"{name}.csv", mine)
            where = f"config.downstream_expert.datarc.{split}"
            problems += [f"{where}: {problem}" for problem in mine]
        return sorted(found, key=lambda utterance: (-utterance.length, utterance.name))
