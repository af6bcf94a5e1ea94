"""Labels of your own, `-d classification`: what run/prepare_data.py makes of a table of them.

ROOT/prepared_labels.tsv has a line for each clip, or stretch of one, and says its split: once
(column `split`), or for each fold (columns `fold1`, ...), which -v and --folds name.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from s3prl_varan.corpora.labels import TABLE, assignments, read_prepared, stretch_of
from s3prl_varan.errors import UserError
from s3prl_varan.tasks.shapes.base import Item, Record
from s3prl_varan.tasks.shapes.metrics import classification
from s3prl_varan.tasks.shapes.utterance import UtteranceTask


class Classification(UtteranceTask):
    """One label a clip, whatever the labels are."""

    name = "classification"
    title = "own labels"
    preparations = ("labels", "emodb")
    remedy = (
        "Prepare the corpus with `python run/prepare_data.py labels FILE.tsv --out DIR`, then "
        "point to it with --data DIR."
    )

    @dataclass(frozen=True, kw_only=True)
    class Data(UtteranceTask.Data):
        """Section `datarc`."""

        root: str  # folder with prepared_labels.tsv

    @classmethod
    def locate(cls, root: Path) -> dict[str, Any]:
        inner = root / "meta_data"
        there = not (root / TABLE).is_file() and (inner / TABLE).is_file()
        return {"root": str(inner if there else root)}

    def __init__(self, data: Any, model: Any, *, fold: str | None = None, outputs: Any = None):
        super().__init__(data, model, fold=fold, outputs=outputs)
        self.fold = fold or next(iter(self.folds()), None)

    # ---- the corpus

    @property
    def corpus(self) -> str:
        folder = Path(self.data.root)
        return folder.parent.name if folder.name == "meta_data" else folder.name

    def folds(self) -> list[str]:
        return [name for name in assignments(Path(self.data.root)) if name != "split"]

    def problems(self, splits: Sequence[str]) -> list[str]:
        names, column = assignments(Path(self.data.root)), self.fold or "split"
        if names and column not in names:
            there = ", ".join(self.folds())
            have = f"there are {there}" if there else "it has one split and no folds: leave out -v"
            return [f"{Path(self.data.root) / TABLE}: no {column}, {have}"]
        return super().problems(splits)

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, str]]]:
        """The table's rows by their split."""
        rows: dict[str, list[dict[str, str]]] = {split: [] for split in self.splits()}
        for row in read_prepared(Path(self.data.root)):
            rows.setdefault(row.get(self.fold or "split", ""), []).append(row)
        return rows

    def read_outputs(self) -> list[str]:
        return sorted({row["label"] for row in self._rows["train"]})

    def items(self, split: str) -> list[Item]:
        rows, root, table = self._rows[split], Path(self.data.root), Path(self.data.root) / TABLE
        if not rows:
            raise UserError(f"{table}: no {split} clips; give some in the table's column split")
        ids = {label: index for index, label in enumerate(self.outputs)}
        unknown = Counter(row["label"] for row in rows if row["label"] not in ids)
        if unknown:
            counts = ", ".join(f"{label!r} ({count})" for label, count in unknown.items())
            raise UserError(f"{table}: labels in {split} that training lacks (clips): {counts}")
        try:
            return [
                Item(
                    row["name"],
                    root / row["path"],
                    ids[row["label"]],
                    row["speaker"] or None,
                    *stretch_of(row),
                )
                for row in rows
            ]
        except ValueError as error:
            raise UserError(f"{table}: start and end: expected seconds ({error})") from error

    # ---- results

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """acc, uar and f1, however many labels there are."""
        return classification([r["truth"] for r in records], [r["predict"] for r in records])

    def file_stem(self, split: str) -> str:
        return f"{split}_{self.fold}" if self.fold else split
