"""Every shipped config is read, checked and built; the config reader's own rules; identity."""

from pathlib import Path

import pytest
import torch
from torch import nn

from s3prl_varan.app.cli import parse_args
from s3prl_varan.config import reading
from s3prl_varan.config.optimizer import build_optimizer, build_scheduler
from s3prl_varan.config.reading import config_root
from s3prl_varan.config.resolve import resolve
from s3prl_varan.config.settings import RunSettings, Stored
from s3prl_varan.errors import UserError
from s3prl_varan.featurizers import featurizer_names
from s3prl_varan.options import coerce
from s3prl_varan.tasks import task_names

SHIPPED = [path for name in task_names() for path in sorted((config_root() / name).glob("*.yaml"))]


def settings_of(*args: object) -> RunSettings:
    return resolve(parse_args([str(arg) for arg in args]))


def changed(*overrides: str, featurizer: str = "varan", flags: tuple[str, ...] = ()) -> RunSettings:
    args = ["-u", "wavlm", "-d", "emotion", "-f", featurizer, *flags]
    return settings_of(*args, *(["-o", ",,".join(overrides)] if overrides else []))


@pytest.mark.parametrize("featurizer", featurizer_names())
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_configs_are_valid_for_every_featurizer(path, featurizer):
    layer = ["-l", 2] if featurizer == "layer" else []
    run = ["-u", "wavlm", "-d", path.parent.name, "-f", featurizer, *layer]
    settings = settings_of(*run, "-c", path)
    parts = {
        "featurizer": settings.featurizer.build(
            13, 48, settings.config.featurizer, settings.flags.upstream_layer_selection
        ),
        "downstream": nn.Linear(4, 4),
    }
    optimizer = build_optimizer(parts, settings.config.optimizer)
    steps = settings.config.runner.total_steps
    build_scheduler(optimizer, steps, settings.config.scheduler)
    assert parts["featurizer"].num_outputs == (12 if featurizer in ("varan", "ensemble") else 1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_configs_name_their_command(path):
    first = path.read_text().splitlines()[0]
    start = "# python run_downstream.py "
    assert first.startswith(start)
    args = parse_args(first.removeprefix(start).split())
    assert args.downstream == path.parent.name
    named = path.parent / "config.yaml"
    if args.config:
        # The command is run in run/.
        named = (config_root().parent / "run" / args.config).resolve()
    assert named.resolve() == path.resolve()


def test_every_task_ships_the_papers_settings_and_superbs():
    for name in task_names():
        there = {path.stem for path in (config_root() / name).glob("*.yaml")}
        # -d ctc is several tasks of SUPERB, whose configs have s3prl's names.
        assert {"config", "libriphone" if name == "ctc" else "superb"} <= there, name


def test_a_file_is_the_same_when_its_own_values_are_written_out():
    """What a checkpoint keeps of a config resolves to the same run."""
    for path in SHIPPED:
        args = parse_args(["-u", "wavlm", "-d", path.parent.name, "-c", str(path)])
        settings = resolve(args)
        stored = settings.stored()
        kept = Stored(stored["args"], stored["config"], None, path)
        again = resolve(parse_args(["-m", "evaluate", "-e", "x"]), kept)
        assert again.id == settings.id and again.stored() == stored


def test_numbers_without_a_dot_are_numbers():
    assert reading.parse_yaml("[1e-4, 1E5, -2e3, 1.0e-4]") == [1e-4, 1e5, -2e3, 1e-4]
    assert reading.parse_yaml("[e4, 1e, fold1]") == ["e4", "1e", "fold1"]


def test_overrides_are_split_and_parsed_as_yaml():
    pairs = reading.split_override("config.a.b=[1, 2],, args.seed=3 ,,config.c.d=null")
    assert pairs == [
        (["config", "a", "b"], [1, 2]),
        (["args", "seed"], 3),
        (["config", "c", "d"], None),
    ]


def test_yaml_never_runs_code(tmp_path: Path):
    path = tmp_path / "evil.yaml"
    run = tmp_path / "run"
    path.write_text(f"runner: !!python/object/apply:os.system ['touch {run}']")
    with pytest.raises(UserError, match="not a YAML file"):
        reading.read_config(path)
    assert not run.exists()


def test_coercion():
    assert coerce(3, float) == 3 and coerce(None, float | None) is None
    assert coerce([1, 2], list[int]) == [1, 2]
    for value, hint in (
        (True, int),
        ("3", int),
        (1.5, int),
        ("x", float),
        ("all", list[int]),
        (True, float),
        (float("nan"), float),
        (float("inf"), float | None),
        ([True], list[int]),
        (1, bool),
    ):
        with pytest.raises(ValueError):
            coerce(value, hint)


# ---- what decides a run's outcome


def test_what_does_not_change_the_outcome_does_not_change_the_identity():
    base = changed()
    assert len(base.id) == 12 and base.id == changed().id
    for same in (
        "config.runner.log_step=7",
        "config.runner.save_step=7",
        "config.runner.compile=true",
        "config.runner.eval_dataloaders=[dev]",
        "config.downstream_expert.datarc.num_workers=3",
        "config.downstream_expert.datarc.eval_batch_size=3",
        "config.upstream.dropout=false",  # the upstream is frozen
        "config.optimizer.upstream_lr=0.1",
        "config.lora.rank=3",  # no LoRA
        "config.varan.geometric_p=0.2",  # the prior is another
        "config.heads.dim=3",  # of linear heads only
        "config.downstream_expert.modelrc.DeepModel.hidden_dim=3",  # not selected
        "config.varan.kl_beta=1",  # 1.0 is 1
        "config.downstream_expert.datarc.test_fold=fold1",  # as the default
    ):
        assert changed(same).id == base.id, same
    assert changed(flags=("-v", "fold1")).id == base.id


def test_what_changes_the_outcome_changes_the_identity():
    found = {changed().id}
    others = [
        changed("config.optimizer.lr=0.5"),
        changed("config.runner.total_steps=7"),
        changed("config.runner.precision=bf16"),
        changed("config.varan.chi2_df=7"),
        changed("config.varan.prior=uniform"),
        changed("config.heads.kind=linear"),
        changed("config.heads.kind=linear", "config.heads.dim=3"),
        changed("config.downstream_expert.datarc.train_batch_size=3"),
        changed("config.downstream_expert.datarc.test_fold=fold2"),
        changed("config.downstream_expert.modelrc.select=DeepModel"),
        changed("config.specaug={num_time_mask: 1}"),
        changed(featurizer="last_layer"),
        changed(flags=("--seed", "3")),
        changed(flags=("--lora",)),
        changed("config.lora.rank=3", flags=("--lora",)),
        changed("config.upstream.dropout=false", flags=("--lora",)),
    ]
    found |= {each.id for each in others}
    assert len(found) == 1 + len(others)
    assert changed(flags=("-v", "fold2")).id == others[8].id  # said in two ways


def test_an_empty_section_says_nothing():
    """A featurizer's section that another one owns is checked too, and read by nobody."""
    base = changed(featurizer="last_layer")
    assert changed("config.varan.kl_beta=3", featurizer="last_layer").id == base.id
    with pytest.raises(UserError, match=r"varan.kl_beta: expected float >= 0, found -3"):
        changed("config.varan.kl_beta=-3", featurizer="last_layer")


def test_optimizer_and_schedule_take_what_torch_and_s3prl_take():
    for settings in (
        "config.optimizer={name: SGD, lr: 0.1, momentum: 0.9, nesterov: true}",
        "config.optimizer={torch_optim_name: Adagrad, lr_decay: 0.1}",
        "config.scheduler={name: linear_schedule_with_warmup, num_warmup_steps: 3}",
        "config.scheduler=null",
    ):
        built = changed(settings)
        optimizer = build_optimizer({"downstream": nn.Linear(2, 2)}, built.config.optimizer)
        assert isinstance(optimizer, torch.optim.Optimizer)
        build_scheduler(optimizer, 10, built.config.scheduler)
    for settings, expected in (
        ("config.optimizer={name: SGD, momentun: 1}", "Did you mean 'momentum'?"),
        (
            "config.optimizer={name: SGD, momentum: -1}",
            "refuses lr 0.001, momentum -1: Invalid momentum",
        ),
        ("config.optimizer={name: SDG}", "Did you mean 'SGD'?"),
        ("config.scheduler={name: cosine}", "scheduler.name: expected one of"),
        ("config.scheduler.warmup_ratio=2", "expected a number from 0 to 1, found 2"),
        ("config.scheduler.warm=2", "scheduler.warm: unknown to cosine_schedule_with_warmup"),
    ):
        with pytest.raises(UserError) as error:
            changed(settings)
        assert expected in str(error.value)
