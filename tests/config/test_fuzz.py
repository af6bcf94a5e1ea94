"""Mutated configs: each runs as it says, or is refused by one message that names the key."""

import json

import pytest
import yaml
from stress.configs import build, try_base
from stress.mutations import BASES, CASES, cases, put, read_base

from s3prl_varan.errors import UserError


@pytest.mark.parametrize("name", BASES)
def test_a_mutated_config_works_or_is_refused_by_name(name, tmp_path):
    ends, problems = try_base(name, tmp_path, "")
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
    assert ends.total() == CASES
    assert ends["works"] > CASES / 20 and ends["refused"] > CASES / 3, ends


@pytest.mark.parametrize("name", BASES)
def test_the_bases_work(name, tmp_path):
    """Otherwise the cases above are refused for what is wrong with their base."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(read_base(name)))
    build(BASES[name][0], path)


def test_there_are_enough_cases_and_all_differ():
    seen = [json.dumps(raw, default=str) for name in BASES for _, raw, _ in cases(name, "bait")]
    assert len(seen) >= 500 and len(set(seen)) > 0.9 * len(seen)


@pytest.mark.parametrize("select", ["RNNs", "Wav2Letter"])
def test_a_head_cannot_have_more_frames_than_the_upstream(select, tmp_path):
    for rate, works in ((320, True), (640, True), (-1, True), (100, False), (0, False)):
        raw = read_base("asr-rnns")
        put(raw, "downstream_expert.modelrc.select", select)
        put(raw, f"downstream_expert.modelrc.{select}.total_rate", rate)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(raw))
        if works:
            build("asr", path)
            continue
        with pytest.raises(UserError, match=rf"modelrc.{select}.total_rate: .*found {rate}"):
            build("asr", path)
