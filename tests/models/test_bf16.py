"""Products of bf16 on a CPU: what is rounded, and that nothing else is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretune.data.batch import Layout
from pretune.models import ops
from pretune.models.attention import attention
from pretune.models.heads.vocabulary import score_tokens
from pretune.models.layers import FeedForward

few = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**32 - 1)
#: Half of the gap between 1 and the next number of bf16, which has 7 bits behind the point.
ROUNDING = 2**-8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@pytest.fixture(autouse=True)
def products_of_bf16(monkeypatch):
    """As on a processor that has them; oneDNN does them more slowly where there are none."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not multiply bf16 on this processor")
    monkeypatch.setattr(ops, "has_bf16", lambda: True)


def exact(x: Tensor) -> Tensor:
    """What is multiplied, in float64: rounded to bf16, and a leaf that gradients are taken of."""
    return x.detach().bfloat16().double().requires_grad_()


@few
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.booleans(), seeds)
def test_linear_rounds_what_goes_in_and_the_sum(rows, inner, outer, with_bias, seed):
    parts = [random(rows, inner, seed=seed), random(outer, inner, seed=seed + 1)]
    parts += [random(outer, seed=seed + 2)] if with_bias else []
    leaves = [t.requires_grad_() for t in parts]
    probe = random(rows, outer, seed=9).bfloat16().float()
    with autocast():
        ours = ops.linear(*leaves)
    got = torch.autograd.grad((ours * probe).sum(), leaves)
    known = [exact(t) for t in leaves]
    theirs = known[0] @ known[1].T + (known[2] if with_bias else 0)
    wanted = torch.autograd.grad((theirs * probe.double()).sum(), known)
    for mine, other in zip((ours, *got), (theirs, *wanted), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), other, rtol=1.01 * ROUNDING, atol=1e-5)
    with torch.no_grad(), autocast():
        assert torch.equal(ops.linear(*leaves), ours)


@pytest.mark.parametrize("trains", [True, False])
def test_linear_without_autocast_is_float32(trains):
    x, weight = random(64, 48).requires_grad_(trains), random(32, 48, seed=1)
    with autocast(enabled=False):
        ours = ops.linear(x, weight)
    torch.testing.assert_close(ours, x @ weight.T, rtol=1e-5, atol=1e-5)


def test_without_the_instructions_products_stay_float32(monkeypatch):
    monkeypatch.setattr(ops, "has_bf16", lambda: False)
    x, weight = random(64, 48), random(32, 48, seed=1)
    with autocast():
        # Torch's own autocast would be slower than float32 there: our products stay float32.
        assert ops.linear(x, weight).dtype == torch.float32
        assert ops.rounded(weight) is weight
    torch.testing.assert_close(ops.linear(x, weight), x @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_feed_forward_layer_is_as_near_as_torchs_autocast():
    torch.manual_seed(0)
    layer = FeedForward(48, 192, "gelu")
    x = random(200, 48).requires_grad_()
    probe = random(200, 48, seed=1)

    def run(forward):
        with autocast():
            out = forward(x)
        grads = torch.autograd.grad((out.float() * probe).sum(), [x, *layer.parameters()])
        return [out.float(), *grads]

    def torchs(x):
        up, down = layer.up, layer.down
        hidden = torch.nn.functional.gelu(torch.nn.functional.linear(x, up.weight, up.bias))
        return torch.nn.functional.linear(hidden, down.weight, down.bias)

    with autocast(enabled=False):
        plain = torchs(x)
        wanted = [plain, *torch.autograd.grad((plain * probe).sum(), [x, *layer.parameters()])]
    for ours, theirs, right in zip(run(layer), run(torchs), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - right).norm() <= 1.05 * (theirs - right).norm() + 1e-6
        assert (ours - right).norm() < 0.01 * right.norm()


def test_what_is_kept_for_the_activation_is_bf16():
    x, weight = random(64, 48), random(32, 48, seed=1)
    with autocast():
        assert ops.linear(x, weight, keep_bf16=True).dtype == torch.bfloat16
    assert ops.linear(x, weight, keep_bf16=True).dtype == torch.float32


def test_attention_stays_float32():
    layout = Layout.of([5, 17, 3])
    q, k, v = (random(25, 2, 8, seed=i).requires_grad_() for i in range(3))
    plain = attention(q, k, v, layout, layout, causal=True)
    with autocast():
        mixed = attention(q, k, v, layout, layout, causal=True)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(plain, mixed)
    grads = [torch.autograd.grad(out.sum(), (q, k, v)) for out in (plain, mixed)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_scores_over_a_vocabulary():
    hidden, table = random(40, 24).requires_grad_(), random(90, 24, seed=1).requires_grad_()
    labels = torch.randint(90, (40,), generator=torch.Generator().manual_seed(2))
    with autocast():
        ours = score_tokens(hidden, table, None, labels, chunk_bytes=4 * 90 * 7).sum
    logits = hidden @ table.T
    right = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(ours, right, rtol=5e-3, atol=0)
    got = torch.autograd.grad(ours, (hidden, table))
    for mine, other in zip(got, torch.autograd.grad(right, (hidden, table)), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.01 * other.norm()
