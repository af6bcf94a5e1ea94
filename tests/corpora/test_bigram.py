"""The bigram model: probabilities that add up, and a decoder that can read it."""

from collections import defaultdict
from pathlib import Path

import pytest

from s3prl_varan.corpora.bigram import bigram_arpa, main
from s3prl_varan.tasks.asr.beam import arpa_words

TEXTS = ["THE CAT SAT", "THE CAT", "THE DOG SAT", "A DOG"]


def parsed(text: str) -> tuple[dict[str, float], dict[str, float], dict[tuple[str, str], float]]:
    """Probabilities of words, back-off weights, probabilities of pairs."""
    words, backoff, pairs = {}, {}, {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 2 or not fields[0].startswith("-"):
            continue
        try:
            weight = float(fields[-1])
        except ValueError:
            weight = None
        if weight is None and len(fields) == 3:
            pairs[fields[1], fields[2]] = 10 ** float(fields[0])
            continue
        words[fields[1]] = 10 ** float(fields[0])
        if weight is not None:
            backoff[fields[1]] = 10**weight
    return words, backoff, pairs


def test_every_context_is_a_distribution() -> None:
    words, backoff, pairs = parsed(bigram_arpa(TEXTS))
    assert sum(words.values()) == pytest.approx(1, abs=1e-3)
    after = defaultdict(dict)
    for (first, second), probability in pairs.items():
        after[first][second] = probability
    assert set(after) == set(backoff)
    for first, seen in after.items():
        rest = backoff[first] * sum(
            probability for word, probability in words.items() if word not in seen and word != "<s>"
        )
        assert sum(seen.values()) + rest == pytest.approx(1, abs=1e-3), first
    assert pairs["<s>", "THE"] > pairs["<s>", "A"]


def test_from_a_prepared_corpus(tmp_path: Path, capsys) -> None:
    chapter = tmp_path / "train" / "asr" / "0"
    chapter.mkdir(parents=True)
    lines = [f"u{index} {text}" for index, text in enumerate(TEXTS)]
    (chapter / "asr-0.trans.txt").write_text("\n".join(lines))
    rows = ["file_path,length", *(f"train/asr/0/u{index}.flac,100" for index in range(len(TEXTS)))]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "lm.arpa"
    assert main([str(tmp_path), "--out", str(out)]) == 0
    assert "4 transcripts" in capsys.readouterr().out
    assert set(arpa_words(out)) == {"THE", "CAT", "SAT", "DOG", "A"}
    assert main([str(tmp_path), "--split", "trian", "--out", str(out)]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err
