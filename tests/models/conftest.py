from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretune.checkpoints.source import find_source
from pretune.models import kernels

DEFAULT_THREADS = torch.get_num_threads()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These tensors are tiny: on a busy machine more threads would only wait for each other."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(DEFAULT_THREADS)


@pytest.fixture
def all_threads():
    """For the few tests with tensors as large as a real model's."""
    torch.set_num_threads(DEFAULT_THREADS)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=["onednn", "mkl"])
def matmul(request, monkeypatch):
    """Both ways in which a matrix product is done on a CPU."""
    monkeypatch.setenv("PRETUNE_MATMUL", request.param)
    kernels.forget()
    if kernels.mode() != request.param:
        kernels.forget()
        pytest.skip("this build of PyTorch has no oneDNN")
    yield request.param
    monkeypatch.undo()
    kernels.forget()


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The embedded checkpoint, in the Hugging Face layout."""
    return find_source("minilm")
