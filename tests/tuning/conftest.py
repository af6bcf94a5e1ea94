"""Fixtures of the tests of tuning."""

import copy

import numpy as np
import pytest
import torch
from tiny_families import tiny_upstream


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A fresh tiny upstream of a family; what is drawn at random is the same at every call."""
    folder, built = tmp_path_factory.mktemp("families"), {}

    def make(family):
        if family not in built:
            built[family] = tiny_upstream(family, folder)
        return (
            copy.deepcopy(built[family])
            if family in ("torch", "whisper")
            else tiny_upstream(family, folder)
        )

    return make


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)
