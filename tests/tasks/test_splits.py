"""What is odd about a corpus's splits is warned of with counts; what cannot be right is refused."""

import json
import shutil
from pathlib import Path

import pytest

from s3prl_varan.app.cli import main
from s3prl_varan.tasks.shapes.base import Item
from s3prl_varan.tasks.shapes.splits import overlaps, small_dev, unlearned
from tests.tasks.test_rooms_run import PLACES


def clips(*names: str, speaker: str | None = None, **options) -> list[Item]:
    return [Item(name, Path(f"/{name}.wav"), 0, speaker, **options) for name in names]


def room(name: str, request):
    """A room on its miniature corpus."""
    from s3prl_varan.tasks import find_task

    fixture, places, _ = PLACES[name]
    corpus, cls = request.getfixturevalue(fixture), find_task(name)
    data = {key: str(corpus / place) for key, place in places.items()}
    return cls(cls.Data(**data), cls.Model())


def warned(task) -> list[str]:
    return task.warnings({split: task.items(split) for split in task.splits()})


def test_speakers_shared_with_training_are_counted():
    splits = {
        "train-100": clips("a", speaker="F01") + clips("b", speaker="M02"),
        "dev": clips("c", speaker="F01") + clips("d", speaker="M02") + clips("e"),
        "test": clips("f", speaker="M02") + clips("g") + clips("h", speaker="X"),
    }
    assert list(overlaps(splits, speakers=True)) == [
        "speakers in train-100 and in dev: 2 (F01, M02)",
        "speakers in train-100 and in test: 1 (M02)",
    ]
    assert list(overlaps(splits, speakers=False)) == []


def test_recordings_shared_between_splits_are_counted(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "link.wav").symlink_to(tmp_path / "a.wav")
    linked = [Item(name, tmp_path / f"{name}.wav", 0) for name in ("a", "link")]
    splits = {
        "train": [*clips("b", "c"), linked[0]],
        "dev": clips("b", start=1.0, end=2.0),  # another stretch of it
        "test": [*clips("c"), linked[1]],
    }
    assert list(overlaps(splits, speakers=True)) == [
        "recordings in train and in test: 2 (a.wav, c.wav)"
    ]
    many = clips(*"abcdefg")
    (line,) = overlaps({"dev": many, "test": many}, speakers=True)
    assert line == "recordings in dev and in test: 7 (a.wav, b.wav, c.wav, d.wav, e.wav, ...)"


def test_a_dev_set_too_small_to_choose_on_says_how_far_off_it_is():
    sizes = {"dev": clips(*"abcd"), "dev-other": clips(*map(str, range(50))), "test": clips("a")}
    (line,) = small_dev(sizes)
    assert line.startswith("dev has 4 clips") and "standard error of 25 points" in line


def test_classes_without_a_training_clip():
    def of(*targets: int) -> list[Item]:
        return [Item(str(target), Path("x.wav"), target) for target in targets]

    splits = {"train": of(0, 1), "dev": of(0), "test": of(1, 2, 2, 3)}
    assert list(unlearned(splits, ["neu", "hap", "sad", "ang", "sur"])) == [
        "classes without a training clip: 3 (ang, sad, sur)",
        "clips of these classes in test: 3",
    ]
    assert list(unlearned({"test": of(2)}, ["neu", "hap", "sad"])) == []


def test_warnings_of_the_rooms(request):
    sid = warned(room("voxceleb1", request))
    assert not any("speakers" in line for line in sid)  # whom it was trained on it is to know
    assert any(
        line.startswith("classes without a training clip: 1246 (id10003, id10004") for line in sid
    )
    intents = warned(room("fluent_commands", request))
    assert [line.partition(":")[0] for line in intents] == [
        "dev has 7 clips, few to choose the best checkpoint on"
    ]
    words = warned(room("speech_commands", request))
    noises = "recordings in train and in dev: 2 (doing_the_dishes.wav, white_noise.wav)"
    assert noises in words


@pytest.mark.parametrize("split", ["dev", "test"])
def test_class_ids_that_differ_between_the_splits_are_refused(
    split, tone_corpus, emotion_args, tmp_path, capsys
):
    lists = tmp_path / "meta_data"
    shutil.copytree(tone_corpus / "meta_data", lists)
    path = lists / "Session1" / f"{split}_meta_data.json"
    content = json.loads(path.read_text())
    labels = content["labels"]
    labels["happy"], labels["sad"] = labels["sad"], labels["happy"]
    path.write_text(json.dumps(content))
    settings = {"config.downstream_expert.datarc.meta_data": lists}
    args = emotion_args("varan", "-p", tmp_path / "exp", **settings)
    assert main([str(arg) for arg in args]) == 2
    err = capsys.readouterr().err
    assert f"{path}: class ids" in err and "differ from those of training" in err
    assert not (tmp_path / "exp" / "metrics.jsonl").exists()
