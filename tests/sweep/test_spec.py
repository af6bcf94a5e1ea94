"""What a sweep's YAML means, and what counts as one cell."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from s3prl_varan.errors import UserError
from s3prl_varan.files import parse_yaml
from s3prl_varan.sweep.spec import Spec, command_line, expand, plan_cells, plan_sweep, read_spec

SHIPPED = sorted(Path(__file__).parents[2].glob("downstream_configs/sweeps/*.yaml"))


def spec_of(folder: Path, text: str, changes: Sequence[str] = ()) -> Spec:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return read_spec(path, changes)


def test_grid_is_a_product_without_what_a_cell_does_not_read(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        """
base: {upstream: wavlm, downstream: emotion}
grid:
  seed: [1, 2]
  featurizer: [weighted_sum, varan]
  config.varan.kl_beta: [0.1, 0.2]
  config.lora.rank: [4, 8]
""",
    )
    cells = expand(spec)
    assert [cell["seed"] for cell in cells] == [1] * 8 + [2] * 8  # the first key varies slowest
    assert all(
        ("config.varan.kl_beta" in cell) == (cell["featurizer"] == "varan") for cell in cells
    )
    assert not any("config.lora.rank" in cell for cell in cells)
    assert len(plan_cells(cells, "x")) == 2 * (1 + 2)


def test_cells_that_only_differ_in_idle_keys_are_one(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        """
base: {upstream: wavlm, downstream: emotion, featurizer: varan}
grid:
  - {config.varan.prior: [uniform, geometric, chi2], config.varan.chi2_df: [6, 35]}
  - {config.varan.prior: chi2, config.varan.chi2_df: 6.0}
""",
    )
    cells = plan_cells(expand(spec), "x")
    priors = [
        (one["prior"], one["chi2_df"]) for one in (cell.stored["config"]["varan"] for cell in cells)
    ]
    assert priors == [("uniform", 6), ("geometric", 6), ("chi2", 6), ("chi2", 35)]


def test_mistakes_are_listed_together(tmp_path: Path) -> None:
    text = "base: {upstrem: wavlm, expdir: x}\ngrid: {seed: [], config.lr: [1]}\nwhat: 1\n"
    text += "search: {trials: many, space: {seed: {flot: [1, 2]}}}"
    with pytest.raises(UserError) as error:
        spec_of(tmp_path, text, ["seed"])
    for part in (
        "'upstrem'", "Did you mean 'upstream'", "expdir: a sweep sets this", "seed has no values",
        "sweep.search.trials: expected int >= 1, found 'many'", "search.space.seed: expected",
        "config.lr: expected config.SECTION", "sweep.what: unknown key", "--set: expected KEY=VAL",
    ):  # fmt: skip
        assert part in str(error.value), part


def test_bad_config_values_fail_before_anything_runs(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        "base: {upstream: wavlm, downstream: emotion, config.varan.kl_bta: 1}\n"
        "grid: {seed: [1, 2], config.varan.prior: [chi3, uniform]}",
    )
    with pytest.raises(
        UserError, match="(?s)kl_bta: unknown key. Did you mean 'kl_beta'.*in 2 cells.*in 2 cells"
    ):
        plan_sweep(spec, "x")


def test_set_replaces_a_key_everywhere(tmp_path: Path) -> None:
    text = "base: {upstream: wavlm, downstream: emotion}\ngrid: {seed: [1, 2]}"
    spec = spec_of(tmp_path, text, ["seed=[3]", "upstream=hubert", "config.runner.total_steps=5"])
    assert expand(spec) == [
        {"upstream": "hubert", "downstream": "emotion", "seed": 3, "config.runner.total_steps": 5}
    ]


def test_command_line_carries_values_exactly() -> None:
    from s3prl_varan.app.cli import parse_args

    settings = {
        "upstream": "a b",
        "lora": True,
        "upstream_trainable": False,
        "upstream_ckpt": None,
        "seed": 3,
    }
    config = {
        "config.optimizer.lr": 1e-5,
        "config.varan.layers": [1, 2],
        "config.varan.nll": None,
        "config.varan.prior": "chi2",
    }
    args = parse_args(command_line({**settings, **config}))
    assert (args.upstream, args.lora, args.upstream_trainable, args.upstream_ckpt, args.seed) == (
        "a b",
        True,
        False,
        None,
        3,
    )
    overrides = [text.partition("=") for text in args.override.split(",,")]
    assert {key: parse_yaml(value) for key, _, value in overrides} == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_resolve(path: Path) -> None:
    demos = {"demo": "demo.py", "planted": "demo.py --planted"}
    command = demos.get(path.stem, f"sweep.py downstream_configs/sweeps/{path.name}")
    assert path.read_text().startswith(f"# python run/{command}")
    spec = read_spec(path)
    cells = plan_sweep(spec, path.name)
    assert spec.name == path.stem and len(cells) > 1
    if spec.search is None:
        assert len(cells) == len({cell.id for cell in cells})


def test_a_search_draws_what_its_space_says(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text = """
base: {upstream: wavlm, downstream: emotion}
search:
  trials: 2
  space:
    config.optimizer.lr: {float: [1e-4, 1e-2], log: true}
    config.varan.layers: {choice: [all, [1, 2]]}
"""
    search = spec_of(tmp_path, text).search
    assert search is not None
    ends = [tuple(draw.values()) for draw in search.ends()]
    assert ends == [(1e-4, "all"), (1e-2, "all"), (1e-4, "all"), (1e-4, [1, 2])]
    for wrong in ("{float: [1, 0]}", "{float: [0, 1], log: true}", "{int: [1]}", "{choice: []}"):
        with pytest.raises(UserError, match="search.space.seed: expected"):
            spec_of(tmp_path, f"search: {{trials: 1, space: {{seed: {wrong}}}}}")
    with pytest.raises(UserError, match="sweep.search.space: expected keys"):
        spec_of(tmp_path, "search: {trials: 1}")
