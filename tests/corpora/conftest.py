"""A small corpus in LibriSpeech's layout, and how s3prl's own dataset reads one."""

import pytest
from tones import tone

from s3prl_varan import audio
from s3prl_varan.corpora import dictionary


@pytest.fixture
def small_libri(tmp_path):
    root = tmp_path / "libri"
    for split, speaker in (("train-x", 1), ("test-x", 2)):
        folder = root / split / str(speaker) / "10"
        names = [f"{speaker}-10-{i:04d}" for i in range(3)]
        for i, name in enumerate(names):
            tone(folder / f"{name}.{('flac', 'wav', 'ogg')[i]}", 0.1 * (i + 1))
        (folder / f"{speaker}-10.trans.txt").write_text(
            "".join(f"{name} HELLO WORLD\n" for name in names)
        )
    return root


@pytest.fixture
def check_s3prls_dataset():
    """Call with the corpus, the folder of its tables, a split and the number of utterances."""
    return _check


def _check(root, tables, split, count):
    """Every utterance of the split arrives, with letters of the dictionary only."""
    pytest.importorskip("pandas")  # s3prl's dataset reads its tables with it
    from s3prl_varan.compat import import_downstream

    expert = import_downstream("asr")
    symbols = expert.Dictionary.load(str(dictionary.CHAR_DICT))
    dataset = expert.SequenceDataset("test", 1, symbols, str(root), str(tables), test=[split])
    batches = list(dataset)
    # s3prl drops a last batch of one; with batches of one, that is no whole utterance too few
    assert sum(len(names) for _, _, names in batches) == count
    assert len(symbols) == 32
    for waves, labels, _ in batches:
        assert waves[0].ndim == 1 and len(waves[0]) >= audio.MIN_SAMPLES
        assert labels[0][-1] == symbols.eos() and labels[0][:-1].min() > symbols.unk()
