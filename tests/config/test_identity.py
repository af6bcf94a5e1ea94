"""What two ways of writing one run have in common: its identity."""

from s3prl_varan.config.identity import cell_id, relevant_settings


def test_identity_ignores_what_a_run_never_reads() -> None:
    args = {"featurizer": "varan", "seed": 1, "expdir": "a", "lora": False}
    config = {
        "varan": {"prior": "uniform", "chi2_df": 6, "kl_beta": 1},
        "runner": {"log_step": 1},
        "lora": {"rank": 16},
    }
    same = {
        "varan": {"kl_beta": 1.0, "prior": "uniform", "chi2_df": 35},
        "runner": {"log_step": 9},
        "weighted_sum": {"head": "x"},
    }
    assert cell_id(args, config) == cell_id({**args, "expdir": "b", "lora": None}, same)
    assert cell_id(args, config) != cell_id({**args, "seed": 2}, config)
    assert cell_id(args, config) != cell_id({**args, "lora": True}, config)
    chi2 = {"varan": {"prior": "chi2", "chi2_df": 6}}
    assert relevant_settings(args, chi2)["config.varan.chi2_df"] == 6
