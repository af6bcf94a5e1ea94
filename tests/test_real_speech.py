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
    datarc = "config.downstream_expert.datarc"
    settings = {
        f"{datarc}.root": eight_actors,
        f"{datarc}.meta_data": eight_actors / "meta_data",
        f"{datarc}.train_batch_size": 32,
        "config.runner.gradient_accumulate_steps": 1,
        "config.runner.total_steps": 200,
        "config.runner.eval_step": 100,
        "config.optimizer.lr": 1e-3,
    }
    override = ",,".join(f"{key}={value}" for key, value in settings.items())
    for featurizer in ("varan", "last_layer"):
        folder = tmp_path / featurizer
        args = ["-u", "whisper", "-k", whisper_dir, "-d", "emotion", "-f", featurizer]
        args += ["-p", folder, "--device", "cpu", "--cache", tmp_path / "cache", "-o", override]
        assert main(list(map(str, args))) == 0
        result = json.loads((folder / "result.json").read_text())
        # Speakers never heard; the largest of the seven classes is 20 %.
        assert result["test"]["test"]["acc"] > 35
    capsys.readouterr()
    clip = next((eight_actors / "Actor_07").glob("03-01-05-02-01-01-07.*"))
    args = ["-m", "inference", "-t", clip, "-e", tmp_path / "varan", "--device", "cpu"]
    assert main(list(map(str, args))) == 0
    row = json.loads((tmp_path / "varan" / "inference.jsonl").read_text())
    assert f"{clip}\t{row['prediction']}" in capsys.readouterr().out
    assert len(row["probabilities"]) == 7
