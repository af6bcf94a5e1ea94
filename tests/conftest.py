"""Fixtures that tests share: real speech and a real encoder where they are at hand, a tiny run."""

import logging
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real speech and a real encoder, beside the checkout; a fresh machine has none."""
    if not SHARED.is_dir():
        pytest.skip(f"no real speech beside the checkout (looked for {SHARED.name}/)")
    return SHARED


@pytest.fixture(scope="session")
def whisper_dir(shared_dir: Path) -> Path:
    """A Hugging Face Whisper encoder checkpoint (tiny.en: 4 layers, 384 wide)."""
    path = shared_dir / "models" / "whisper-tiny.en-encoder"
    if not path.is_dir():
        pytest.skip("no Whisper encoder beside the checkout")
    return path


TINY = f"{Path(__file__).parent / 'tiny_expert.py'}:tiny"


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory) -> Path:
    """A corpus in RAVDESS's layout that is learned in seconds: a pitch for each emotion.

    8 actors, 128 clips.
    """
    import numpy as np
    import soundfile

    from s3prl_varan.corpora.ravdess import prepare_ravdess

    root = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    for actor in range(1, 9):
        (root / f"Actor_{actor:02d}").mkdir()
        for emotion in range(1, 9):
            for statement in (1, 2):
                time = np.arange(int(16000 * generator.uniform(0.3, 0.6))) / 16000
                pitch = (200 + 150 * max(emotion, 2)) * generator.uniform(0.97, 1.03)
                wave = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.05 * generator.standard_normal(
                    len(time)
                )
                name = f"03-01-{emotion:02d}-01-{statement:02d}-01-{actor:02d}.wav"
                soundfile.write(root / f"Actor_{actor:02d}" / name, wave.astype("float32"), 16000)
    prepare_ravdess(root)
    return root


@pytest.fixture
def emotion_args(tone_corpus: Path):
    """Command line of a short emotion run on the tones: -f's name, further flags, further -o."""

    def build(featurizer: str, *flags: str, upstream: str = TINY, **overrides: object) -> list[str]:
        settings = {
            "config.downstream_expert.datarc.root": tone_corpus,
            "config.downstream_expert.datarc.meta_data": tone_corpus / "meta_data",
            "config.downstream_expert.datarc.train_batch_size": 16,
            "config.runner.gradient_accumulate_steps": 1,
            "config.runner.total_steps": 40,
            "config.runner.eval_step": 20,
            "config.runner.save_step": 20,
            "config.runner.log_step": 10,
            "config.optimizer.lr": 0.02,
            **overrides,
        }
        override = ",,".join(f"{key}={value}" for key, value in settings.items())
        run = ["-u", upstream, "-d", "emotion", "-f", featurizer, "--device", "cpu"]
        return [*run, "-o", override, *flags]

    return build


@pytest.fixture(autouse=True)
def log_level_as_it_was():
    """Commands set the level of our logger for their process; no test hears of another's."""
    logger = logging.getLogger("s3prl_varan")
    level = logger.level
    yield
    logger.setLevel(level)
