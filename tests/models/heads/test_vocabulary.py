"""Scores in chunks against the logits as a whole, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.batch import Layout
from pretune.models.heads.vocabulary import score_tokens, token_log_probs


@given(
    rows=st.integers(1, 40),
    vocabulary=st.integers(2, 60),
    chunk=st.integers(1, 50),
    with_bias=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 1000),
)
def test_are_those_of_the_logits_as_a_whole(
    rows: int,
    vocabulary: int,
    chunk: int,
    with_bias: bool,
    smoothing: float,
    z_loss: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=generator, requires_grad=True)
    table = torch.randn(vocabulary, 8, generator=generator, requires_grad=True)
    bias = torch.randn(vocabulary, generator=generator, requires_grad=True) if with_bias else None
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    inputs = [t for t in (hidden, table, bias) if t is not None]

    logits = F.linear(hidden, table, bias)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    smooth = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    penalty = z_loss * logits.logsumexp(-1).square().sum()
    expected = torch.autograd.grad(3.0 * (smooth + penalty), inputs)

    found = score_tokens(
        hidden,
        table,
        bias,
        labels,
        smoothing=smoothing,
        z_loss=z_loss,
        chunk_bytes=4 * vocabulary * chunk,
    )
    assert found.sum.item() == pytest.approx((smooth + penalty).item(), rel=1e-5, abs=1e-5)
    assert found.cross_entropy.item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-5)
    assert found.z_loss.item() == pytest.approx(penalty.item(), rel=1e-5, abs=1e-5)
    assert found.count == rows
    for gradient, right in zip(torch.autograd.grad(3.0 * found.sum, inputs), expected, strict=True):
        assert torch.allclose(gradient, right, atol=2e-4, rtol=1e-4)

    with torch.no_grad():
        found = score_tokens(hidden, table, bias, labels, chunk_bytes=4 * vocabulary * chunk)
    assert found.right == int((logits.argmax(-1) == labels).sum())
    each = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(found.nats, each, atol=1e-4)


def test_each_sequence_has_its_own_sum() -> None:
    torch.manual_seed(0)
    hidden, table, labels = torch.randn(5, 4), torch.randn(7, 4), torch.randint(7, (5,))
    found = score_tokens(hidden, table, None, labels)
    each = F.cross_entropy(hidden @ table.T, labels, reduction="none")
    expected = [float(each[:2].sum()), float(each[2:].sum())]
    assert found.each(Layout.of([2, 3])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["hidden", "table", "bias"])
def test_only_what_is_trained_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    tensors = {"hidden": torch.randn(5, 4), "table": torch.randn(7, 4), "bias": torch.randn(7)}
    tensors[name].requires_grad_(True)
    found = score_tokens(**tensors, labels=torch.randint(7, (5,)))
    found.sum.backward()
    assert [key for key, tensor in tensors.items() if tensor.grad is not None] == [name]


def test_the_logits_never_exist_whole() -> None:
    """The largest block of memory that is asked for is a chunk's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return out

    hidden = torch.randn(4096, 8, requires_grad=True)
    table = torch.randn(1000, 8, requires_grad=True)
    with Watch():
        score_tokens(hidden, table, None, torch.zeros(4096, dtype=torch.int64), chunk_bytes=10**6)
    assert 0 < largest <= 1.1e6 < 4096 * 1000 * 4


@given(
    rows=st.integers(1, 40),
    vocabulary=st.integers(2, 60),
    chunk=st.integers(1, 50),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_log_probs_and_their_gradients_are_those_of_the_logits_as_a_whole(
    rows: int, vocabulary: int, chunk: int, with_bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=generator, requires_grad=True)
    table = torch.randn(vocabulary, 8, generator=generator, requires_grad=True)
    bias = torch.randn(vocabulary, generator=generator, requires_grad=True) if with_bias else None
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    outer = torch.randn(rows, generator=generator)
    inputs = [t for t in (hidden, table, bias) if t is not None]

    whole = -F.cross_entropy(F.linear(hidden, table, bias), labels, reduction="none")
    ours = token_log_probs(hidden, table, bias, labels, chunk_bytes=4 * vocabulary * chunk)
    assert torch.allclose(ours, whole, atol=1e-5)
    expected = torch.autograd.grad(whole @ outer, inputs)
    for gradient, right in zip(torch.autograd.grad(ours @ outer, inputs), expected, strict=True):
        assert torch.allclose(gradient, right, atol=1e-4)


@pytest.mark.parametrize("trained", [True, False])
def test_draws_follow_the_probabilities(trained: bool) -> None:
    """The first token whose cumulative probability is above the number, chunk by chunk."""
    torch.manual_seed(0)
    hidden, table = torch.randn(9, 4, requires_grad=trained), torch.randn(5, 4)
    labels, draws = torch.randint(5, (9,)), torch.rand(9)
    scores = score_tokens(hidden, table, None, labels, draws=draws, chunk_bytes=4 * 5 * 2)
    plain = score_tokens(hidden, table, None, labels)
    cumulative = (hidden @ table.T).softmax(-1).double().cumsum(-1)
    assert torch.equal(scores.drawn, (cumulative > draws[:, None]).int().argmax(-1))
    assert torch.allclose(scores.nats, plain.nats)
    assert plain.drawn is None
    # A number that rounding made 1 draws the last token.
    last = score_tokens(hidden, table, None, labels, draws=torch.ones(9)).drawn
    assert last.tolist() == [4] * 9
