"""The formulas of on-policy learning against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretune.tasks.alignment.policy_losses import (
    clipped_loss,
    clipped_value_loss,
    generalized_advantages,
    group_advantages,
    k3,
    kl_estimates,
    leave_one_out,
    next_beta,
    whitened,
)

RANDOM = np.random.default_rng(0)


def test_the_estimates_of_kl_have_its_mean() -> None:
    """Enumerated over five tokens: k1 and k3 are unbiased, k3 never below 0, k2 nearly right."""
    p, q = RANDOM.dirichlet(np.ones(5)), RANDOM.dirichlet(np.ones(5))
    exact = float((p * np.log(p / q)).sum())
    first, second, third = kl_estimates(np.log(p / q))
    assert float((p * first).sum()) == pytest.approx(exact, rel=1e-12)
    assert float((p * third).sum()) == pytest.approx(exact, rel=1e-12)
    assert third.min() >= 0
    assert second.tolist() == pytest.approx((np.log(p / q) ** 2 / 2).tolist())


def test_the_graph_of_the_third_estimate() -> None:
    ratio = torch.tensor(RANDOM.normal(size=5), requires_grad=True)
    k3(ratio).sum().backward()
    assert ratio.grad is not None
    assert k3(ratio).tolist() == pytest.approx(kl_estimates(ratio.detach().numpy())[2].tolist())
    assert ratio.grad.tolist() == pytest.approx((1 - np.exp(-ratio.detach().numpy())).tolist())


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0)])
def test_generalized_advantages(length: int, gamma: float, decay: float) -> None:
    rewards, values = RANDOM.normal(size=(2, length))
    later = np.append(values[1:], 0.0)
    errors = rewards + gamma * later - values
    expected = [
        sum((gamma * decay) ** (u - t) * errors[u] for u in range(t, length)) for t in range(length)
    ]
    ours = generalized_advantages(rewards, values, gamma, decay)
    assert ours.tolist() == pytest.approx(expected)
    if decay == 1:
        returns = [sum(rewards[t:]) for t in range(length)]
        assert (ours + values).tolist() == pytest.approx(returns)
    if decay == 0:
        assert ours.tolist() == pytest.approx(errors.tolist())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # better and within: the plain surrogate
        (1.5, 2.0, -2.4, 0.0),  # better and likelier already: no more of it
        (0.5, 2.0, -1.0, -2.0),  # better and less likely: all of it
        (1.5, -2.0, 3.0, 2.0),  # worse and likelier: all of it
        (0.5, -2.0, 1.6, 0.0),  # worse and less likely already: no more of it
        (0.9, -2.0, 1.8, 2.0),
    ],
)
def test_the_quadrants_of_the_clip(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    r = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    ours = clipped_loss(r, torch.tensor(advantage, dtype=torch.float64), 0.2)
    ours.backward()
    assert r.grad is not None
    assert (ours.item(), r.grad.item()) == pytest.approx((loss, slope))


@pytest.mark.parametrize(
    ("value", "loss"),
    [(1.1, 0.5 * 0.9**2), (1.9, 0.5 * 0.8**2), (0.1, 0.5 * 1.9**2), (2.5, 0.5 * 0.8**2)],
)
def test_the_loss_of_values_is_the_worse_one(value: float, loss: float) -> None:
    """Old value 1, return 2: a move by more than 0.2 does not count as better."""
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert float(clipped_value_loss(torch.tensor(value), one, two, 0.2)) == pytest.approx(loss)


def test_whitening() -> None:
    values = RANDOM.normal(3, 5, size=50)
    assert (whitened(values).mean(), whitened(values).std()) == pytest.approx((0, 1))
    kept = whitened(values, shift=False)
    assert (kept.mean(), kept.std()) == pytest.approx((values.mean(), 1))
    assert whitened(np.full(4, 0.1)).tolist() == [0] * 4


def test_advantages_in_groups() -> None:
    rewards = RANDOM.normal(size=(3, 4))
    centred = rewards - rewards.mean(1, keepdims=True)
    assert np.allclose(group_advantages(rewards, scale=False), centred)
    deviations = torch.tensor(rewards).std(1, keepdim=True).numpy()
    assert np.allclose(group_advantages(rewards, scale=True), centred / (deviations + 1e-4))
    others = [[np.delete(row, i).mean() for i in range(4)] for row in rewards]
    assert np.allclose(leave_one_out(rewards), rewards - others)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3.3])
def test_equal_rewards_say_nothing(value: float) -> None:
    rewards = np.full((2, 7), value)
    assert not group_advantages(rewards, scale=True).any()
    assert not leave_one_out(rewards).any()


def test_beta_follows_its_target() -> None:
    assert next_beta(0.1, 6.0, 6.0, 64, 1000) == 0.1
    assert next_beta(0.1, 60.0, 6.0, 100, 1000) == pytest.approx(0.1 * 1.02)  # at most 20 %
    assert next_beta(0.1, 0.0, 6.0, 100, 1000) == pytest.approx(0.1 * 0.98)
    assert next_beta(0.1, 6.6, 6.0, 100, 1000) == pytest.approx(0.1 * 1.01)
