"""The losses of preferences against their closed forms: values, starting points, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pretune.tasks.alignment.preference_losses import (
    PAIR_LOSSES,
    WITHOUT_REFERENCE,
    LossSettings,
    PairScores,
    kto,
    sigmoid,
)


def pairs(seed: int = 0, *, start: bool = False) -> PairScores:
    """Random log-probabilities of five pairs; at the start those of the reference are the same."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, first, second = -20 * torch.rand(4, 5, generator=generator).double() - 0.1
    lengths = torch.randint(1, 9, (2, 5), generator=generator).double()
    reference = (chosen, rejected) if start else (first, second)
    own = (chosen.clone().requires_grad_(), rejected.clone().requires_grad_())
    return PairScores(*own, *lengths, *reference)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, math.log(2)) for name in ("sigmoid", "sigmoid_norm", "robust")],
        ("hinge", 1.0),
        ("apo_zero", 1.0),
        ("ipo", (1 / 0.2) ** 2),
        ("ipo_sum", (1 / 0.2) ** 2),
    ],
)
def test_starts_where_the_model_is_the_reference(name: str, expected: float) -> None:
    losses = PAIR_LOSSES[name](pairs(start=True), LossSettings(beta=0.1, label_smoothing=0.1))
    assert losses.tolist() == pytest.approx([expected] * 5)


def test_the_gradient_of_dpo_is_that_of_its_paper() -> None:
    # Section 4: -beta sigmoid(r_rejected - r_chosen) (grad log pi(chosen) - grad log pi(rejected)).
    own, beta = pairs(), 0.3
    sigmoid(own, LossSettings(beta=beta)).sum().backward()
    reward = beta * own.chosen_ratio.detach(), beta * own.rejected_ratio.detach()
    expected = -beta * torch.sigmoid(reward[1] - reward[0])
    assert own.chosen.grad is not None
    assert own.rejected.grad is not None
    assert torch.allclose(own.chosen.grad, expected)
    assert torch.allclose(own.rejected.grad, -expected)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_is_its_formula(name: str) -> None:
    own = pairs(3)
    beta, share, gamma = 0.4, 0.2, 0.7

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    def odds(x: float) -> float:
        return x - math.log(1 - math.exp(x))

    columns = [own.chosen, own.rejected, own.chosen_tokens, own.rejected_tokens]
    columns += [own.reference_chosen, own.reference_rejected]
    expected = []
    for c, r, n, m, p, q in zip(*(column.tolist() for column in columns), strict=True):
        x, per_token, logs = (c - p) - (r - q), (c - p) / n - (r - q) / m, c / n - r / m
        cdpo = -(1 - share) * log_sigmoid(beta * x) - share * log_sigmoid(-beta * x)
        noisy = (1 - share) * -log_sigmoid(beta * x) - share * -log_sigmoid(-beta * x)
        normed, aimed, plain = beta * per_token, beta * logs - gamma, beta * (c - r)
        expected.append(
            {
                "sigmoid": cdpo,
                "sigmoid_norm": -0.8 * log_sigmoid(normed) - 0.2 * log_sigmoid(-normed),
                "ipo": (per_token - 1 / (2 * beta)) ** 2,
                "ipo_sum": (x - 1 / (2 * beta)) ** 2,
                "hinge": max(0.0, 1 - beta * x),
                "robust": noisy / (1 - 2 * share),
                "apo_zero": 1
                - 1 / (1 + math.exp(-beta * (c - p)))
                + 1 / (1 + math.exp(-beta * (r - q))),
                "sft": -c / n,
                "orpo": -c / n - beta * log_sigmoid(odds(c / n) - odds(r / m)),
                "simpo": -0.8 * log_sigmoid(aimed) - 0.2 * log_sigmoid(-aimed),
                "cpo": -0.8 * log_sigmoid(plain) - 0.2 * log_sigmoid(-plain) - c / n,
            }[name]
        )
    how = LossSettings(beta=beta, label_smoothing=share, gamma=gamma)
    assert PAIR_LOSSES[name](own, how).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_without_a_reference_its_scores_change_nothing(name: str) -> None:
    own = pairs(1)
    other = PairScores(
        *(own.chosen, own.rejected, own.chosen_tokens, own.rejected_tokens),
        *(own.reference_chosen + 1, own.reference_rejected - 2),
    )
    how = LossSettings()
    assert torch.equal(PAIR_LOSSES[name](own, how), PAIR_LOSSES[name](other, how))


@pytest.mark.parametrize("log_prob", [-1e-12, 0.0, -1e-3, -0.7, -80.0])
def test_orpo_is_finite_with_its_gradient_at_every_probability(log_prob: float) -> None:
    chosen = torch.tensor([log_prob], requires_grad=True)
    one = torch.ones(1)
    own = PairScores(chosen, torch.tensor([-2.0]), one, one, 0 * one, 0 * one)
    PAIR_LOSSES["orpo"](own, LossSettings()).sum().backward()
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


class TestKto:
    def value(self, ratio: float, wanted: bool, baseline: float = 0.0) -> float:
        how = LossSettings(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
        arguments = torch.tensor([ratio]), torch.tensor([wanted]), torch.tensor(baseline)
        result: Tensor = kto(*arguments, how)
        return float(result)

    def test_starts_at_half_of_the_weights(self) -> None:
        assert self.value(0.0, True) == pytest.approx(1.0)
        assert self.value(0.0, False) == pytest.approx(1.5)

    def test_is_its_formula(self) -> None:
        up = 1 / (1 + math.exp(-0.5 * (3.0 - 0.4)))
        assert self.value(3.0, True, 0.4) == pytest.approx(2 * (1 - up))
        assert self.value(3.0, False, 0.4) == pytest.approx(3 * up)
