"""Phones of read English by forced alignment with pocketsphinx: the labels of the frame probe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from s3prl_varan.audio import read_audio
from s3prl_varan.corpora.librispeech import read_split
from s3prl_varan.errors import UserError

from .config import HOP, WINDOW

SILENCE = "SIL"
STEP = 160  # samples, 10 ms: the aligner's frames


@dataclass(frozen=True)
class AlignedClip:
    """A clip and what is said when."""

    wav: Tensor  # [num_samples], 16 kHz
    # [num_samples // STEP + 1] str: ARPAbet without stress, SILENCE between words
    phones: np.ndarray

    def frame_phones(self, frames: int) -> np.ndarray:
        """[frames] str: the phone at the centre of each of the model's frames."""
        centres = (HOP * np.arange(frames) + WINDOW // 2) // STEP
        return self.phones[np.minimum(centres, len(self.phones) - 1)]


def build_aligner() -> Any:
    """pocketsphinx with its US English model."""
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        wanted = 'the phone probe aligns with pocketsphinx: pip install -e ".[probe]"'
        raise UserError(wanted) from error
    return Decoder(lm=None, loglevel="FATAL", bestpath=False)


def align(aligner: Any, wav: Tensor, text: str) -> np.ndarray | None:
    """Phones of wav every 10 ms, [num_samples // STEP + 1] str.

    None: a word is not in CMUdict, or there is no path through the clip.
    """
    words = text.lower()
    if any(aligner.lookup_word(word) is None for word in words.split()):
        return None
    pcm = (wav.clamp(-1, 1) * 32767).short().numpy().tobytes()
    try:
        # First the words' place, then the phones'.
        for prepare in (lambda: aligner.set_align_text(words), aligner.set_alignment):
            prepare()
            aligner.start_utt()
            aligner.process_raw(pcm, full_utt=True)
            aligner.end_utt()
        found = aligner.get_alignment()
    except RuntimeError:
        return None
    if found is None:
        return None
    phones = np.full(len(wav) // STEP + 1, SILENCE, dtype="<U3")
    for phone in (phone for word in found for phone in word):
        if not phone.name.startswith("+"):  # breath and other noises count as silence
            phones[phone.start : phone.start + phone.duration] = phone.name
    return phones


def aligned_clips(split: Path) -> list[AlignedClip]:
    """The clips of a folder in LibriSpeech's layout that can be aligned; prints how many."""
    utterances, problems = read_split(split)
    if not utterances:
        raise UserError(
            f"{split}: expected speaker/chapter folders with audio and .trans.txt, as in "
            f"LibriSpeech ({next(iter(problems), 'nothing in it')})"
        )
    aligner, clips = build_aligner(), []
    for utterance in tqdm(utterances, desc=f"aligning {split.name}", unit="clip"):
        wav = read_audio(utterance.path)
        phones = align(aligner, wav, utterance.text)
        if phones is not None:
            clips.append(AlignedClip(wav, phones))
    rest = len(utterances) - len(clips)
    if not clips:
        raise UserError(
            f"{split}: not one of {rest} clips could be aligned; are the texts English words?"
        )
    print(f"{split}: {len(clips)} clips aligned, {rest} left out (words that CMUdict lacks)")
    return clips
