"""Every shipped config is loaded, checked and built; the config reader's own rules."""

from pathlib import Path

import pytest
from s3prl_varan.app.experiment import shipped_reference
from s3prl_varan.featurizers.registry import FEATURIZERS
from s3prl_varan.tasks.registry import TASKS

from s3prl_varan import build_featurizer
from s3prl_varan.config import reading as config
from s3prl_varan.errors import UserError

SHIPPED = [path for name in TASKS for path in sorted((config.config_root() / name).glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_configs_are_valid_and_name_their_command(path):
    import torch
    from s3prl_varan.training.optim import build_scheduler

    from s3prl_varan.config.reading import optimizer_class

    names = (
        [path.stem]
        if path.stem in FEATURIZERS
        else [name for name in FEATURIZERS if path.stem.startswith(name)] or list(FEATURIZERS)
    )
    assert path.read_text().startswith("# python run_downstream.py ")
    for name in names:
        checked = config.check_config(
            config.read_config(path), name, shipped_reference(path.parent.name), str(path)
        )
        layer = 2 if name == "layer" else None
        featurizer = build_featurizer(name, 13, 48, checked.featurizer, layer)
        optimizer = optimizer_class(checked.optimizer)(
            featurizer.parameters()
            if list(featurizer.parameters())
            else [torch.nn.Parameter(torch.zeros(1))],
            lr=checked.optimizer.lr,
            **checked.optimizer_extra,
        )
        build_scheduler(optimizer, checked.runner.total_steps, checked.raw.get("scheduler"))


def test_every_task_ships_a_config_for_the_main_featurizers():
    for name in TASKS:
        there = {path.stem for path in (config.config_root() / name).glob("*.yaml")}
        assert {"varan", "weighted_sum", "last_layer"} <= there, name


def test_numbers_without_a_dot_are_numbers():
    assert config.parse_yaml("[1e-4, 1E5, -2e3, 1.0e-4]") == [1e-4, 1e5, -2e3, 1e-4]
    assert config.parse_yaml("[e4, 1e, fold1]") == ["e4", "1e", "fold1"]


def test_overrides_are_split_and_parsed_as_yaml():
    pairs = config.split_override("config.a.b=[1, 2],, args.seed=3 ,,config.c.d=null")
    assert pairs == [
        (["config", "a", "b"], [1, 2]),
        (["args", "seed"], 3),
        (["config", "c", "d"], None),
    ]


def test_yaml_never_runs_code(tmp_path: Path):
    path = tmp_path / "evil.yaml"
    path.write_text(
        "runner: !!python/object/apply:os.system ['touch " + str(tmp_path / "run") + "']"
    )
    with pytest.raises(UserError, match="not a YAML file"):
        config.read_config(path)
    assert not (tmp_path / "run").exists()


def test_coercion():
    assert config.coerce(3, float) == 3 and config.coerce(None, float | None) is None
    for value, hint in (
        (True, int),
        ("3", int),
        (1.5, int),
        ("x", float),
        ("all", list[int]),
        (True, float),
    ):
        with pytest.raises(ValueError):
            config.coerce(value, hint)
