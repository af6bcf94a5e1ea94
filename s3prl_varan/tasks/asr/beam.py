"""Beam search with an optional n-gram model: torchaudio's ctc_decoder, which is Flashlight's.

Section `datarc.decoder_args`, s3prl's keys. It needs the package flashlight-text; greedy does not.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from s3prl_varan.corpora.dictionary import WORD_BOUNDARY
from s3prl_varan.errors import UserError
from s3prl_varan.options import Count, Positive
from s3prl_varan.tasks.asr.units import SPECIAL

IMPOSSIBLE = -1e4  # log-probability of a unit that must not come out
KEY = "config.downstream_expert.datarc.decoder_args"


@dataclass(frozen=True)
class DecoderOptions:
    """Section `decoder_args:`."""

    # greedy; beam: no language model; kenlm: with kenlm_model. null and s3prl's "None": greedy
    decoder_type: Literal["greedy", "beam", "kenlm", "None"] | None = "greedy"
    beam: Count = 50  # hypotheses kept
    beam_threshold: Positive = 25  # hypotheses this much worse than the best go, in nats
    kenlm_model: str | None = None  # n-gram model of words, .arpa or KenLM's binary
    lexicon: str | None = None  # lines WORD S P E L L I N G |; null: the words of an .arpa model
    lm_weight: float = 2.0
    word_score: float = -1.0  # added for each word
    sil_weight: float = 0.0  # added for each word boundary

    @property
    def greedy(self) -> bool:
        """No search?"""
        return self.decoder_type in ("greedy", "None", None)

    def problems(self) -> list[str]:
        """What keeps the search from working: files, packages."""
        if self.greedy:
            return []
        files = {"kenlm_model": self.kenlm_model, "lexicon": self.lexicon}
        missing = [
            f"{KEY}.{key}: no file {path}"
            for key, path in files.items()
            if path and not Path(path).is_file()
        ]
        problems = list(missing)
        if self.decoder_type == "kenlm" and not self.kenlm_model:
            problems.append(
                f"{KEY}.kenlm_model: decoder_type kenlm needs an n-gram model, .arpa or KenLM's "
                "binary (beam does not)"
            )
        elif self.decoder_type == "kenlm" and not self.lexicon and not missing:
            if not _is_arpa(str(self.kenlm_model)):
                problems.append(
                    f"{KEY}.lexicon: a binary language model needs one (lines WORD S P E L L I N G "
                    "|); an .arpa lists them"
                )
        try:
            import flashlight.lib.text.decoder  # noqa: F401
        except ImportError:
            problems.append(
                f"{KEY}: decoder_type {self.decoder_type} needs the package flashlight-text "
                "(Python 3.10 to 3.12): pip install flashlight-text. `decoder_type: greedy` "
                "needs nothing."
            )
        return problems

    def build(self, units: Sequence[str]) -> "BeamDecoder | None":
        """The decoder over these units, or None for greedy."""
        if self.greedy:
            return None
        problems = self.problems()
        if problems:
            raise UserError(" ".join(problems))
        return BeamDecoder(units, self)


class BeamDecoder:
    """Words of an utterance's log-probabilities. The end mark of s3prl's labels counts as blank."""

    def __init__(self, units: Sequence[str], options: DecoderOptions):
        from torchaudio.models.decoder import ctc_decoder

        self.units = list(units)
        self.blank, *self.silent = (self.units.index(name) for name in SPECIAL)
        lm = options.kenlm_model if options.decoder_type == "kenlm" else None
        lexicon = options.lexicon
        self.has_lexicon = bool(lexicon or lm)
        with tempfile.TemporaryDirectory() as folder:
            if lm and not lexicon:
                lexicon = str(Path(folder) / "lexicon.txt")
                lines = lexicon_of(arpa_words(Path(lm)), self.units)
                Path(lexicon).write_text(lines, encoding="utf-8")
            try:
                self.decoder = ctc_decoder(
                    lexicon=lexicon,
                    tokens=self.units,
                    lm=lm,
                    beam_size=options.beam,
                    beam_threshold=options.beam_threshold,
                    lm_weight=options.lm_weight if lm else 0.0,
                    word_score=options.word_score,
                    sil_score=options.sil_weight,
                    log_add=True,
                    blank_token=self.units[self.blank],
                    sil_token=WORD_BOUNDARY,
                    unk_word="<unk>",
                )
            except (RuntimeError, ValueError, KeyError, IndexError) as error:
                # Flashlight's and KenLM's own
                what = f"{lm} cannot be used as a language model" if lm else "no decoder was built"
                raise UserError(f"{KEY}: {what} (lexicon {lexicon}): {error}") from error

    def words(self, log_probs: Tensor) -> list[str]:
        """log_probs [T, V], up to a constant over V -> the best hypothesis's words."""
        silent = [self.blank, *self.silent]
        folded = log_probs.float().cpu().log_softmax(dim=-1).clone()
        folded[..., self.blank] = torch.logsumexp(folded[..., silent], dim=-1)
        folded[..., self.silent] = IMPOSSIBLE
        hypotheses: list[Any] = self.decoder(folded[None].contiguous())[0]
        if not hypotheses:
            return []
        best = hypotheses[0]
        if self.has_lexicon:
            return [word.upper() for word in best.words]
        spelt = [self.units[unit] for unit in best.tokens.tolist() if unit not in self.silent]
        return "".join(spelt).replace(WORD_BOUNDARY, " ").split()


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
    """Lines WORD S P E L L I N G |, for the words that the dictionary can spell.

    UserError when it can spell none.
    """
    known = set(symbols)
    lines = [
        f"{word} {' '.join(word.upper())} {WORD_BOUNDARY}\n"
        for word in words
        if set(word.upper()) <= known
    ]
    if not lines:
        raise UserError("The language model has no word that the dictionary (dict_path) can spell.")
    return "".join(lines)
