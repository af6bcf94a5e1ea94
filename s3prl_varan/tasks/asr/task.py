"""Speech recognition, `-d asr`: s3prl's CTC expert with every utterance scored, our decoding and our reports.

What is left to the expert: dictionary, its own head, greedy decoding, hyp/ref files, TensorBoard names. See asr_data.py for
the corpus, asr_metrics.py for WER and CER, asr_decode.py for beam search, asr_transcribe.py for -m inference.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_varan.errors import problems_error
from s3prl_varan.tasks.asr.data import Splits, check_corpus, dictionary_path, split_names
from s3prl_varan.tasks.asr.decode import build_decoder, decoder_problems
from s3prl_varan.tasks.asr.metrics import error_rates, worst_utterances
from s3prl_varan.tasks.registry import Task, register_task
from s3prl_varan.training.checkpoint import write_atomic

logger = logging.getLogger(__name__)


class Reports:
    """Takes the place of the expert's log_records: also writes worst_SPLIT.txt and names what CTC cannot align."""

    def __init__(self, log_records: Callable[..., Any], expdir: str):
        self.log_records, self.expdir = log_records, Path(expdir)
        self.named: set[str] = set()

    def __call__(self, split: str, records: dict[str, list], **kwargs: Any) -> Any:
        self._name_unaligned(split, records)
        if (
            "dev" in split or "test" in split
        ):  # the splits whose hyp and ref files the expert writes
            write_atomic(self.expdir / f"worst_{split}.txt", worst_utterances(records))
        return self.log_records(split, records=records, **kwargs)

    def _name_unaligned(self, split: str, records: dict[str, list]) -> None:
        flags = records.get("unaligned", [])
        new = {
            name for name, flag in zip(records["filenames"], flags, strict=True) if flag
        } - self.named
        if new:
            self.named |= new
            shown = ", ".join(sorted(new)[:5]) + (" ..." if len(new) > 5 else "")
            logger.warning(
                "%s: %d utterances have more characters than frames, so CTC cannot align them; their loss counts as 0, they "
                "are scored all the same (%s)",
                split,
                len(new),
                shown,
            )


def check_data(section: dict[str, Any], variant: str | None, splits: list[str]) -> None:
    """The corpus holds what `splits` need, and the decoder's settings make sense."""
    problems = decoder_problems(section["datarc"].get("decoder_args"))
    if problems:
        raise problems_error("config.downstream_expert.datarc.decoder_args:", problems)
    check_corpus(section, splits)


def expert_section(section: dict[str, Any]) -> dict[str, Any]:
    """`downstream_expert:` as s3prl's expert can take it: a dictionary file, and no decoder of s3prl's own."""
    datarc = {
        **section["datarc"],
        "dict_path": str(dictionary_path(section["datarc"])),
        "decoder_args": {
            "decoder_type": None
        },  # theirs needs Flashlight bindings that are no longer published
    }
    return {**section, "datarc": datarc}


def adjust(expert: Any, section: dict[str, Any], variant: str | None) -> None:
    """Give the expert our datasets, decoder and reports."""
    expert.get_dataloader = Splits(section["datarc"], expert.dictionary)
    expert.decoder = build_decoder(section["datarc"].get("decoder_args"), expert.dictionary)
    expert.log_records = Reports(expert.log_records, expert.expdir)


def transcribe(*args: Any) -> None:
    """-m inference."""
    from s3prl_varan.tasks.asr.transcribe import transcribe_files

    transcribe_files(*args)


register_task(
    Task(
        "asr",
        metric="wer",
        higher_is_better=False,
        measure=error_rates,
        check_data=check_data,
        adjust=adjust,
        expert_section=expert_section,
        infer=transcribe,
        truth="target_words",
        predict="pred_words",
        filename="filenames",
        splits=split_names,
    )
)
