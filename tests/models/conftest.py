from __future__ import annotations

from pathlib import Path

import pytest

from pretune.hub import find_source
from pretune.models import ops


@pytest.fixture(params=["onednn", "mkl"])
def matmul(request, monkeypatch):
    """Both ways in which a matrix product is done on a CPU."""
    monkeypatch.setenv("PRETUNE_MATMUL", request.param)
    ops.uses_onednn.cache_clear()
    if ops.uses_onednn() != (request.param == "onednn"):
        ops.uses_onednn.cache_clear()
        pytest.skip("this build of PyTorch has no oneDNN")
    yield request.param
    ops.uses_onednn.cache_clear()


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The embedded checkpoint, in the Hugging Face layout."""
    return find_source("minilm")
