"""Every task against the unmodified s3prl expert: the same weights and batches give the same.

Loss, figure, prediction files; clips and labels of every split. A task is a row of ROWS.
"""

import random

import numpy as np
import pytest
import torch

from s3prl_varan.corpora.dictionary import CHAR_DICT
from tests.tasks.parity import UTTERANCE, Row, heads_of_expert, make_expert, make_task, run_both

LOADERS = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}


def emotion(folder_of) -> dict:
    tones, metadata = folder_of("tone_corpus"), folder_of("tones_without_dev")
    places = {"root": str(tones), "meta_data": str(metadata)}
    return {**LOADERS, **places, "pre_load": False, "valid_ratio": 0.2}


def speech_commands(folder_of) -> dict:
    root = folder_of("commands_corpus")
    places = {
        "speech_commands_root": str(root / "train"),
        "speech_commands_test_root": str(root / "test"),
    }
    return {**places, "batch_size": 4, "num_workers": 0}


def fluent_commands(folder_of) -> dict:
    return {**LOADERS, "file_path": str(folder_of("intents_corpus"))}


def voxceleb1(folder_of) -> dict:
    root = folder_of("speakers_corpus")
    places = {"file_path": str(root), "meta_data": str(root / "iden_split.txt")}
    return {**LOADERS, **places, "max_timestep": 3200}


def asr(folder_of) -> dict:
    root = folder_of("letters_corpus")
    places = {"libri_root": str(root), "bucket_file": str(root / "meta_data")}
    splits = {split: [split] for split in ("train", "dev", "test")}
    loaders = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return {**places, **splits, **loaders, "zero_infinity": True}


DEEP = {
    "projector_dim": 8,
    "select": "DeepModel",
    "DeepModel": {
        "model_type": "CNNSelfAttention",
        "hidden_dim": 6,
        "kernel_size": 5,
        "padding": 2,
        "pooling": 5,
        "dropout": 0.4,
    },
}
ATTENTIVE = {**UTTERANCE, "UtteranceLevel": {"pooling": "AttentivePooling"}}
RNNS = {
    "project_dim": 32,
    "select": "RNNs",
    "RNNs": {
        "total_rate": 320,
        "module": "LSTM",
        "bidirection": True,
        "dim": [32, 32],
        "dropout": [0.2, 0.2],
        "layer_norm": [True, False],
        "proj": [False, True],
        "sample_rate": [1, 2],
        "sample_style": "concat",
    },
}
RNNS["ctc_normalize"] = "target"  # an utterance's loss is divided by its target, as theirs is
WAV2LETTER = {
    "ctc_normalize": "target",
    "project_dim": 8,
    "select": "Wav2Letter",
    "Wav2Letter": {"total_rate": 320},
}
ASR = {
    "figure": "wer",
    "unit": 1.0,
    "lessons": 40,
    "ours": {"decoder_args": {"decoder_type": "greedy"}},
    "loses_one": True,  # theirs drops a last batch of one clip
    "theirs": {"dict_path": str(CHAR_DICT), "decoder_args": {"decoder_type": None}},
}

ROWS = {
    "emotion": Row("emotion", emotion, UTTERANCE, fold="fold2"),
    "emotion-AttentivePooling": Row("emotion", emotion, ATTENTIVE, fold="fold2"),
    "emotion-DeepModel": Row("emotion", emotion, DEEP, fold="fold2"),
    "speech_commands": Row(
        "speech_commands",
        speech_commands,
        UTTERANCE,
        submission={"ks_public/predict.txt": "test_predict.txt"},
    ),
    "fluent_commands": Row(
        "fluent_commands",
        fluent_commands,
        UTTERANCE,
        submission={"ic_public/predict.csv": "test_predict.csv"},
    ),
    "voxceleb1": Row(
        "voxceleb1", voxceleb1, UTTERANCE, submission={"sid_public/predict.txt": "test_predict.txt"}
    ),
    "asr-RNNs": Row("asr", asr, RNNS, **ASR),
    "asr-Wav2Letter": Row("asr", asr, WAV2LETTER, **{**ASR, "lessons": 0}),
}
TASKS = {row.task: row for row in ROWS.values()}


@pytest.fixture
def folder_of(request, tmp_path, monkeypatch):
    """Fixture name -> the folder it gives; s3prl's lists of VoxCeleb1 go into a fresh one."""
    from s3prl_varan.compat import import_downstream

    import_downstream("voxceleb1")
    monkeypatch.setattr(
        "s3prl.downstream.voxceleb1.dataset.CACHE_PATH", str(tmp_path / "voxceleb1_lists")
    )
    return request.getfixturevalue


@pytest.mark.parametrize("name", ROWS)
def test_loss_figure_and_files_are_the_experts(name, folder_of, tmp_path):
    row = ROWS[name]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    expert, task = make_expert(row, folder_of, theirs), make_task(row, folder_of)
    heads = heads_of_expert(task, expert)
    for split in row.splits:
        our_loss, their_loss, score, logged = run_both(task, heads, expert, split, ours)
        assert len(our_loss) > 1 or split == "test"
        assert our_loss == pytest.approx(their_loss, abs=1e-5, rel=1e-5)
        assert row.figure in logged
        for figure in score.keys() & logged.keys():
            assert score[figure] == pytest.approx(row.unit * logged[figure], rel=1e-5)
        if row.lessons:  # right about some, wrong about others
            assert score[row.figure] not in (0, 100)
    written = {path.name: path.read_bytes() for path in theirs.iterdir()}
    written.pop("log.log", None)
    assert len(written) == row.files * len(row.splits) and all(written.values())
    mine = {path.name: path.read_bytes() for path in ours.iterdir()}
    assert {name: text for name, text in mine.items() if not name.startswith("worst_")} == written
    assert row.submission.items() <= task.submission().items()
    assert set(row.submission.values()) <= written.keys()


@pytest.mark.parametrize("name", TASKS)
def test_clips_and_labels_are_the_experts(name, folder_of, tmp_path):
    row = TASKS[name]
    expert, task = make_expert(row, folder_of, tmp_path), make_task(row, folder_of)
    assert task.splits() == ["train", "dev", "test"]
    assert task.problems(task.splits()) == []
    for split in task.splits():
        theirs = dict(expert_clips(expert, split))
        items = task.items(split)
        ours = {item.name: np.asarray(item.target).tolist() for item in items}
        assert len(ours) == len(items)  # no name twice
        for clip, (label, wave) in theirs.items():
            assert ours[clip] == label
            if split == "test":  # nothing random in it
                item = next(item for item in items if item.name == clip)
                found = task.load(item, random.Random(0), training=False)
                torch.testing.assert_close(found, torch.as_tensor(wave), atol=1e-5, rtol=0)
        if row.loses_one:
            assert len(ours) == len(theirs) + 1
        else:
            assert ours.keys() == theirs.keys()


def expert_clips(expert, split):
    """(name, (label as plain values, waveform)) of a split, from the expert's dataset."""
    dataset = expert.get_dataloader(split).dataset
    for index in range(len(dataset)):
        waves, labels, names = dataset[index]
        if isinstance(names, str):
            waves, labels, names = [waves], [labels], [names]
        for wave, label, clip in zip(waves, labels, names, strict=True):
            yield clip, (np.asarray(label).tolist(), wave)
