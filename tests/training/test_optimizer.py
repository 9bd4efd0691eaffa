from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pretune.recipe.schema import TrainSection
from pretune.training.optimizer import Optimizer, parameter_groups


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def optimizer_of(model: nn.Module, clip: float | None) -> Optimizer:
    return Optimizer(model, TrainSection(weight_decay=0.1, beta2=0.99, clip=clip))


def test_only_matrices_decay() -> None:
    model = make_model()
    decays, rest = parameter_groups(model, 0.1)
    assert decays["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in decays["params"]] == [(7, 5), (3, 7)]  # type: ignore[attr-defined]
    assert len(rest["params"]) == 4  # type: ignore[arg-type]


def test_frozen_parameters_are_left_out() -> None:
    model = make_model()
    model[0].requires_grad_(False)  # type: ignore[operator]
    count = sum(len(group["params"]) for group in parameter_groups(model, 0.1))  # type: ignore[arg-type]
    assert count == 4


@pytest.mark.parametrize("clip", [None, 1e-3, 1.0, 1e3])
def test_steps_agree_with_adamw_written_out(clip: float | None) -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    model = make_model()
    optimizer = optimizer_of(model, clip)
    weights = [p.detach().double().clone() for p in model.parameters()]
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    for step, (rate, count) in enumerate([(0.01, 4), (0.02, 9), (0.005, 2)], start=1):
        x = torch.randn(count, 5)
        (model(x) ** 2).sum().backward()
        means = [p.grad.double() / count for p in model.parameters()]  # type: ignore[union-attr]
        norm = math.sqrt(sum(float((g**2).sum()) for g in means))
        scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        for i, gradient in enumerate(means):
            gradient = gradient * scale
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.99 * second[i] + 0.01 * gradient**2
            m, v = first[i] / (1 - 0.9**step), second[i] / (1 - 0.99**step)
            decay = 0.1 if weights[i].ndim >= 2 else 0.0
            weights[i] = weights[i] - rate * (m / (v.sqrt() + 1e-8) + decay * weights[i])
        assert float(optimizer.gradient_norm()) / count == pytest.approx(norm, rel=1e-5)
        optimizer.step(rate, count, optimizer.gradient_norm())
        for ours, expected in zip(model.parameters(), weights, strict=True):
            assert torch.allclose(ours.double(), expected, atol=2e-6)
        assert all(p.grad is None for p in model.parameters())


class Bag(nn.Module):
    """Looks words up and adds them."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.out = nn.Linear(4, 9, bias=False)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(words).sum(1))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_lookup_tables_get_the_dense_update(tied: bool, clip: float | None) -> None:
    """Against torch's own dense AdamW: rows not looked up decay and keep their momentum."""
    torch.manual_seed(0)
    ours, theirs = Bag(tied), Bag(tied)
    theirs.load_state_dict(ours.state_dict())
    optimizer = optimizer_of(ours, clip)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    for words in ([[1, 2, 2], [2, 0, 1]], [[5, 5, 5], [8, 5, 5]], [[1, 8, 3], [4, 4, 0]]):
        batch = torch.tensor(words)
        for part in batch.split(1):  # accumulated
            (ours(part) ** 2).sum().backward()
        norm = optimizer.gradient_norm()
        (theirs(batch) ** 2).sum().div(2).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip or 1e9)
        assert float(norm) / 2 == pytest.approx(float(expected), rel=1e-5)
        optimizer.step(0.1, 2, norm)
        adamw.step()
        adamw.zero_grad()
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one, two, atol=2e-6)


def test_without_gradients_the_norm_is_zero() -> None:
    assert float(optimizer_of(make_model(), 1.0).gradient_norm()) == 0
