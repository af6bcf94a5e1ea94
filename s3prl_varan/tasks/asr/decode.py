"""Beam search with an optional n-gram language model: torchaudio's ctc_decoder, which is Flashlight's (package flashlight-text).

Section `datarc.decoder_args`, s3prl's keys: decoder_type greedy | beam | kenlm. Greedy needs none of this.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_varan.corpora.dictionary import WORD_BOUNDARY
from s3prl_varan.errors import UserError, did_you_mean

DEFAULTS: dict[str, Any] = {
    "decoder_type": "greedy",  # greedy; beam: no language model; kenlm: with kenlm_model
    "beam": 50,  # hypotheses kept
    "beam_threshold": 25,  # hypotheses this much worse than the best are dropped, in nats
    "kenlm_model": None,  # n-gram model of words, .arpa or KenLM's binary
    "lexicon": None,  # lines WORD S P E L L I N G |; null: the words of an .arpa model
    "lm_weight": 2.0,
    "word_score": -1.0,  # added for each word
    "sil_weight": 0.0,  # added for each word boundary
}
TYPES = ("greedy", "beam", "kenlm")
IMPOSSIBLE = -1e4  # log-probability of a unit that must not come out


def decoder_problems(section: dict[str, Any] | None) -> list[str]:
    """What is wrong with datarc.decoder_args, as lines for one message."""
    values = section or {}
    unknown = [key for key in values if key not in DEFAULTS]
    problems = [
        f"{key}: unknown key.{did_you_mean(key, DEFAULTS)} Known: {', '.join(DEFAULTS)}."
        for key in unknown
    ]
    kind = decoder_type(section)
    if kind not in TYPES:
        return [
            *problems,
            f"decoder_type: expected one of {', '.join(TYPES)}, found {kind!r}.{did_you_mean(kind, TYPES)}",
        ]
    for key in ("beam", "beam_threshold", "lm_weight", "word_score", "sil_weight"):
        value = values.get(key, DEFAULTS[key])
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            problems.append(f"{key}: expected a number, found {value!r}")
        elif key == "beam" and value < 1:
            problems.append(f"beam: expected 1 or more, found {value}")
    if kind == "greedy":
        return problems
    model, lexicon = values.get("kenlm_model"), values.get("lexicon")
    files = {"kenlm_model": model, "lexicon": lexicon}
    missing = [
        f"{key}: no file {path}" for key, path in files.items() if path and not Path(path).is_file()
    ]
    problems += missing
    if kind == "kenlm" and not model:
        problems.append(
            "kenlm_model: decoder_type kenlm needs an n-gram model, .arpa or KenLM's binary (beam does not)"
        )
    elif kind == "kenlm" and not lexicon and not missing and not _is_arpa(str(model)):
        problems.append(
            "lexicon: a binary language model needs one (lines WORD S P E L L I N G |); an .arpa lists them"
        )
    try:
        import flashlight.lib.text.decoder  # noqa: F401
    except ImportError:
        problems.append(
            f"decoder_type {kind} needs the package flashlight-text (Python 3.10 to 3.12): pip install flashlight-text. "
            "`decoder_type: greedy` needs nothing."
        )
    return problems


def decoder_type(section: dict[str, Any] | None) -> Any:
    """greedy, beam or kenlm; null, and the 'None' of s3prl's config, mean greedy."""
    kind = (section or {}).get("decoder_type") or "greedy"
    return "greedy" if kind == "None" else kind


def build_decoder(section: dict[str, Any] | None, dictionary: Any) -> "BeamDecoder | None":
    """The decoder of datarc.decoder_args, or None for greedy, which the expert does itself."""
    kind = decoder_type(section)
    if kind == "greedy":
        return None
    problems = decoder_problems(section)
    if problems:
        raise UserError("config.downstream_expert.datarc.decoder_args: " + " ".join(problems))
    values = {**DEFAULTS, **(section or {})}
    return BeamDecoder(
        dictionary,
        lm=values["kenlm_model"] if kind == "kenlm" else None,
        lexicon=values["lexicon"],
        beam=values["beam"],
        beam_threshold=values["beam_threshold"],
        lm_weight=values["lm_weight"],
        word_score=values["word_score"],
        sil_weight=values["sil_weight"],
    )


class BeamDecoder:
    """In the expert's `decoder` slot: decode(log_probs [1, T, V]) -> [[{"words": [...], "score": float}]]."""

    def __init__(
        self,
        dictionary: Any,
        *,
        lm: str | None = None,
        lexicon: str | None = None,
        beam: int = 50,
        beam_threshold: float = 25,
        lm_weight: float = 2.0,
        word_score: float = -1.0,
        sil_weight: float = 0.0,
    ):
        from torchaudio.models.decoder import ctc_decoder

        self.blank = dictionary.bos()
        self.silent = [dictionary.pad(), dictionary.eos(), dictionary.unk()]
        self.symbols = list(dictionary.symbols)
        self.has_lexicon = bool(lexicon or lm)
        with tempfile.TemporaryDirectory() as folder:
            if lm and not lexicon:
                lexicon = str(Path(folder) / "lexicon.txt")
                Path(lexicon).write_text(
                    lexicon_of(arpa_words(Path(lm)), self.symbols), encoding="utf-8"
                )
            options = {
                "beam_size": int(beam),
                "beam_threshold": beam_threshold,
                "lm_weight": lm_weight if lm else 0.0,
                "word_score": word_score,
                "sil_score": sil_weight,
            }
            try:
                self.decoder = ctc_decoder(
                    lexicon=lexicon,
                    tokens=self.symbols,
                    lm=str(lm) if lm else None,
                    log_add=True,
                    blank_token=self.symbols[self.blank],
                    sil_token=WORD_BOUNDARY,
                    unk_word="<unk>",
                    **options,
                )
            except (
                RuntimeError,
                ValueError,
                KeyError,
                IndexError,
            ) as error:  # Flashlight's and KenLM's
                what = (
                    f"{lm} cannot be used as a language model"
                    if lm
                    else "the decoder cannot be built"
                )
                raise UserError(
                    f"config.downstream_expert.datarc.decoder_args: {what} (lexicon {lexicon}): {error}"
                ) from error

    def decode(self, log_probs: Tensor) -> list[list[dict[str, Any]]]:
        """log_probs [1, T, V], up to a constant over V. The end mark s3prl's labels have counts as blank."""
        silent = [self.blank, *self.silent]
        folded = log_probs.float().cpu().log_softmax(dim=-1).clone()
        folded[..., self.blank] = torch.logsumexp(folded[..., silent], dim=-1)
        folded[..., self.silent] = IMPOSSIBLE
        hypotheses = self.decoder(folded.contiguous())[0]
        if not hypotheses:
            return [[]]
        best = hypotheses[0]
        words = (
            [word.upper() for word in best.words]
            if self.has_lexicon
            else self._words(best.tokens.tolist())
        )
        return [[{"words": words, "score": float(best.score)}]]

    def _words(self, units: list[int]) -> list[str]:
        units = [unit for unit in units if unit not in self.silent]
        return "".join(self.symbols[unit] for unit in units).replace(WORD_BOUNDARY, " ").split()


def _is_arpa(path: str | Path) -> bool:
    """Does the file start as a text model does?"""
    try:
        with open(path, "rb") as file:
            return b"\\data\\" in file.read(4096)
    except OSError:
        return False


def arpa_words(path: Path) -> list[str]:
    """The words of an ARPA model: its 1-grams but for <s>, </s> and <unk>."""
    words, inside = [], False
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.strip()
            if line.startswith("\\"):
                if inside:
                    break
                inside = line == "\\1-grams:"
            elif inside and line:
                words.append(line.split()[1])
    return [word for word in words if not (word.startswith("<") and word.endswith(">"))]


def lexicon_of(words: list[str], symbols: list[str]) -> str:
    """Lines WORD S P E L L I N G |, for the words that the dictionary can spell. UserError when it can spell none."""
    known = set(symbols)
    lines = [
        f"{word} {' '.join(word.upper())} {WORD_BOUNDARY}\n"
        for word in words
        if set(word.upper()) <= known
    ]
    if not lines:
        raise UserError("The language model has no word that the dictionary (dict_path) can spell.")
    return "".join(lines)
