"""A bigram model of a prepared corpus's transcripts, for beam search on small corpora.

The command is run/bigram.py. For a model of much text use KenLM's lmplz. Writes ARPA, which
datarc.decoder_args.kenlm_model takes.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from s3prl_varan.corpora.librispeech import read_prepared
from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.files import write_atomic

# Taken off each count; what it frees goes to single words, and of those to <unk>.
BIGRAM_DISCOUNT, WORD_DISCOUNT = 0.7, 0.5


def bigram_arpa(texts: Sequence[str]) -> str:
    """ARPA text of a bigram model that backs off to single words.

    With absolute discounting (Ney, Essen, Kneser 1994).
    """
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        sentence = ["<s>", *text.split(), "</s>"]
        words.update(sentence[1:])
        pairs.update(zip(sentence, sentence[1:], strict=False))
    total = sum(words.values())
    single = {word: (count - WORD_DISCOUNT) / total for word, count in words.items()}
    single["<unk>"] = 1.0 - sum(single.values())
    followed: Counter[str] = Counter()  # occurrences before another word
    followers: Counter[str] = Counter()  # how many different words come after it
    for (first, _), count in pairs.items():
        followed[first] += count
        followers[first] += 1
    backoff = {word: BIGRAM_DISCOUNT * followers[word] / followed[word] for word in followed}
    lines = ["\\data\\", f"ngram 1={len(single) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    lines.append(f"-99\t<s>\t{math.log10(backoff['<s>']):.4f}")
    for word, probability in single.items():
        tail = f"\t{math.log10(backoff[word]):.4f}" if word in backoff else ""
        lines.append(f"{math.log10(probability):.4f}\t{word}{tail}")
    lines += ["", "\\2-grams:"]
    for (first, second), count in pairs.items():
        probability = (count - BIGRAM_DISCOUNT) / followed[first] + backoff[first] * single[second]
        lines.append(f"{math.log10(probability):.4f}\t{first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(
        prog="bigram.py", description="A bigram model (ARPA) of a prepared corpus's transcripts."
    )
    parser.add_argument(
        "bucket_file", help="folder of the length tables that prepare_data.py wrote"
    )
    parser.add_argument(
        "--libri_root", help="what their paths are relative to (default: the same folder)"
    )
    parser.add_argument("--split", default="train", help="table to read (default: train)")
    parser.add_argument("--out", default="bigram.arpa")
    args = parser.parse_args(argv)
    folder, problems = Path(args.bucket_file), list[str]()
    try:
        table = folder / f"{args.split}.csv"
        utterances = read_prepared(Path(args.libri_root or folder), table, problems)
        if problems or not utterances:
            raise problems_error("No transcripts to count:", problems[:20])
        write_atomic(Path(args.out), bigram_arpa([utterance.text for utterance in utterances]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: bigram model of {len(utterances)} transcripts")
    return 0
