"""Copies of tensors in large pages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pretune.models import large_pages
from pretune.models.large_pages import in_large_pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4), (700, 1000)])
def test_a_copy_has_the_same_values_and_its_own_memory(shape, dtype, monkeypatch):
    monkeypatch.setattr(large_pages, "_BLOCK", 1 << 20)
    values = torch.arange(torch.Size(shape).numel()).view(shape).to(dtype).t()
    copies = [in_large_pages(values) for _ in range(3)]
    copies[1].zero_()
    for copied in (copies[0], copies[2]):
        assert torch.equal(copied, values)
        assert copied.dtype == dtype
        assert copied.is_contiguous()
        assert copied.data_ptr() % 64 == 0


def test_a_parameter_is_copied_without_its_gradient():
    copied = in_large_pages(torch.nn.Parameter(torch.ones(4, 3)).t())
    assert not copied.requires_grad
    assert copied.tolist() == [[1.0] * 4] * 3


def test_threads_share_no_memory():
    def fill(number: int) -> torch.Tensor:
        return in_large_pages(torch.full((50, 7), float(number)))

    with ThreadPoolExecutor(4) as pool:
        for number, copied in enumerate(pool.map(fill, range(200))):
            assert copied.eq(number).all()


def test_weights_settle_once_and_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(large_pages, "_has_large_pages", lambda: True)
    model = torch.nn.Sequential(torch.nn.Linear(256, 128), torch.nn.Linear(128, 2))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    first = model[0].weight.data_ptr()
    large_pages.settle(model)
    moved = model[0].weight.data_ptr()
    large_pages.settle(model)
    assert moved != first
    assert model[0].weight.data_ptr() == moved
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
