"""Real speech, a real encoder, end to end. Skipped with a reason where they are not at hand."""

import json

import pytest

from s3prl_varan.app.cli import main
from s3prl_varan.corpora.ravdess import prepare_ravdess


@pytest.fixture(scope="module")
def eight_actors(shared_dir, tmp_path_factory):
    """A third of RAVDESS (480 clips) with metadata of its own."""
    corpus = shared_dir / "data" / "ravdess"
    if not corpus.is_dir():
        pytest.skip("no RAVDESS beside the checkout")
    root = tmp_path_factory.mktemp("ravdess")
    for actor in range(1, 9):
        (root / f"Actor_{actor:02d}").symlink_to(corpus / f"Actor_{actor:02d}")
    prepare_ravdess(root)
    return root


@pytest.mark.slow
def test_emotions_of_real_speakers_are_learned_and_the_cache_serves_both_featurizers(
    eight_actors, whisper_dir, tmp_path, capsys
):
    data = f"config.downstream_expert.datarc.root={eight_actors},,config.downstream_expert.datarc.meta_data={eight_actors}/meta_data"
    settings = "config.runner.gradient_accumulate_steps=1,,config.downstream_expert.datarc.train_batch_size=32"
    steps = "config.runner.total_steps=200,,config.runner.eval_step=100,,config.optimizer.lr=1e-3"
    for featurizer in ("varan", "last_layer"):
        folder = tmp_path / featurizer
        args = [
            "-u",
            "whisper",
            "-k",
            str(whisper_dir),
            "-d",
            "emotion",
            "-f",
            featurizer,
            "-p",
            str(folder),
            "--device",
            "cpu",
        ]
        assert (
            main(
                [
                    *args,
                    "--cache",
                    str(tmp_path / "cache"),
                    "-o",
                    ",,".join((data, settings, steps)),
                ]
            )
            == 0
        )
        result = json.loads((folder / "result.json").read_text())
        assert (
            result["test"]["test"]["acc"] > 35
        )  # speakers never heard; the largest of the seven classes is 20 %
    capsys.readouterr()
    clip = eight_actors / "Actor_07" / "03-01-05-02-01-01-07.flac"
    clip = (
        clip if clip.exists() else next((eight_actors / "Actor_07").glob("03-01-05-02-01-01-07.*"))
    )
    assert (
        main(["-m", "inference", "-t", str(clip), "-e", str(tmp_path / "varan"), "--device", "cpu"])
        == 0
    )
    assert "probabilities:" in capsys.readouterr().out
