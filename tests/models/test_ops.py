from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretune.models import ops
from pretune.models.layers import ACTIVATIONS, DERIVATIVES
from pretune.models.ops import ROW_TILE, dropout, keep_mask, linear, padded_rows

few = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**32 - 1)
cpu = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def agree(x, weight, bias):
    """Value and gradients of `linear` are those of the formula in float64."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    ours = linear(*leaves)
    theirs = exact[0] @ exact[1].T + (exact[2] if bias is not None else 0)
    probe = random(*ours.shape, seed=9)
    depth = x.shape[1] ** 0.5
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-6 * depth)
    assert ours.dtype == torch.float32
    got = torch.autograd.grad((ours * probe).sum(), leaves)
    wanted = torch.autograd.grad((theirs * probe).sum(), exact)
    for mine, other, leaf in zip(got, wanted, leaves, strict=True):
        assert mine.shape == leaf.shape
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=2e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear(*leaves), ours.detach(), rtol=1e-6, atol=1e-6)


# linear


@few
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.booleans(), seeds)
def test_linear_is_the_formula(matmul, rows, inner, outer, with_bias, seed):
    bias = random(outer, seed=seed + 2) if with_bias else None
    agree(random(rows, inner, seed=seed), random(outer, inner, seed=seed + 1), bias)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 257])
@pytest.mark.parametrize(("inner", "outer"), [(384, 1536), (1536, 384), (384, 2), (64, 64)])
def test_linear_at_the_sizes_of_models(matmul, all_threads, rows, inner, outer):
    agree(random(rows, inner), random(outer, inner, seed=1) / inner**0.5, random(outer, seed=2))


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "rows of a larger one": lambda x: torch.cat([x + 9, x, x - 9])[len(x) : 2 * len(x)],
    "columns of a larger one": lambda x: torch.cat([x + 9, x, x - 9], 1)[:, x.shape[1] :][
        :, : x.shape[1]
    ],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "one row expanded": lambda x: x[:1].expand(x.shape),
    "one column expanded": lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("side", ["x", "weight"])
def test_linear_with_strided_arguments(matmul, name, side):
    x, weight = random(21, 12), random(10, 12, seed=1)
    strided = LAYOUTS[name](x if side == "x" else weight)
    agree(*((strided, weight) if side == "x" else (x, strided)), random(10, seed=2))


def test_linear_with_a_strided_bias(matmul):
    agree(random(7, 12), random(10, 12, seed=1), random(20, seed=2)[::2])
    agree(random(7, 12), random(10, 12, seed=1), random(1, seed=2).expand(10))


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_gradients_through_slices_of_one_weight(matmul, rows):
    # What attention does for selected queries: query rows of the joint matrix, then the others.
    x, weight, bias = random(rows, 8), random(24, 8, seed=1), random(24, seed=2)
    whole = [t.clone().requires_grad_() for t in (x, weight, bias)]
    parts = [t.clone().requires_grad_() for t in (x, weight, bias)]
    probe = random(rows, 24, seed=3)
    (linear(*whole) * probe).sum().backward()
    first = linear(parts[0], parts[1][:8], parts[2][:8])
    rest = linear(parts[0], parts[1][8:], parts[2][8:])
    (torch.cat([first, rest], 1) * probe).sum().backward()
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_gradient_that_arrives_strided_or_expanded(matmul):
    x, weight = random(6, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    linear(x, weight).sum().backward()  # the gradient of a sum is one number, expanded
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(6, 4))
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(5, 4))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_what_is_trained_gets_a_gradient(matmul, wanted):
    tensors = [random(6, 4), random(5, 4, seed=1), random(5, seed=2)]
    exact = [t.double() for t in tensors]
    for i in wanted:
        tensors[i].requires_grad_()
        exact[i].requires_grad_()
    probe = random(6, 5, seed=3)
    (linear(*tensors) * probe).sum().backward()
    ((exact[0] @ exact[1].T + exact[2]) * probe).sum().backward()
    for i in range(3):
        assert (tensors[i].grad is not None) == (i in wanted)
        if i in wanted:
            torch.testing.assert_close(tensors[i].grad.double(), exact[i].grad, rtol=0, atol=1e-5)


def test_gradients_against_finite_differences(matmul):
    x, weight, bias = random(3, 4), random(2, 4, seed=1), random(2, seed=2)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    probe = random(3, 2, seed=3)
    grads = torch.autograd.grad((linear(*leaves) * probe).sum(), leaves)
    for leaf, grad in zip(leaves, grads, strict=True):
        for i in range(leaf.numel()):
            step = torch.zeros(leaf.numel())
            step[i] = 0.25  # the function is linear in each argument: a large step is exact
            step = step.view(leaf.shape)
            up, down = (
                [t.detach() + s * step if t is leaf else t.detach() for t in leaves]
                for s in (1, -1)
            )
            slope = ((linear(*up) - linear(*down)) * probe).sum() / 0.5
            assert slope.item() == pytest.approx(grad.flatten()[i].item(), abs=1e-4)


def test_second_derivatives_are_right_or_refused(matmul):
    x, weight = random(6, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    (grad,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    if matmul == "onednn":
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
    else:
        grad.sum().backward()
        expected = 2 * torch.ones(6, 4) @ weight.T @ weight
        torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-5)


def test_a_weight_changed_before_backward_is_refused(matmul):
    x, weight = random(6, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    y = linear(x, weight)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_rows_and_other_types_take_the_plain_path(matmul):
    weight = random(5, 4, seed=1)
    assert linear(torch.empty(0, 4), weight).shape == (0, 5)
    x = random(3, 4).double()
    torch.testing.assert_close(linear(x, weight.double()), x @ weight.double().T)
    batched = random(2, 3, 4)
    torch.testing.assert_close(linear(batched, weight), batched @ weight.T)
    half = linear(random(3, 4).bfloat16(), weight.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (random(5, 3), None),
        (random(5, 4), random(4)),
        (random(5, 4), random(3, 2)),
        (random(5, 4).double(), None),
        (random(5, 4), random(5).double()),
        (random(5, 4), random(5).bfloat16()),
    ],
)
def test_arguments_that_do_not_fit_are_refused(matmul, weight, bias):
    with pytest.raises(RuntimeError):
        linear(random(3, 4), weight, bias)


@pytest.mark.parametrize("bias", [random(1), random(1, 5), random(3, 5), torch.tensor(2.0)])
def test_a_bias_of_another_shape_is_broadcast_as_in_torch(matmul, bias):
    x, weight = random(3, 4), random(5, 4, seed=1)
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + bias)


def test_without_gradients_there_is_no_graph(matmul):
    weight = random(5, 4).requires_grad_()
    with torch.no_grad():
        assert not linear(random(3, 4), weight).requires_grad
    assert linear(random(3, 4), weight).requires_grad
    assert not linear(random(3, 4), weight.detach()).requires_grad


# padded_rows


@given(st.integers(0, 10**6))
@few
def test_padded_rows(matmul, rows):
    padded = padded_rows(rows, 384, cpu)
    if matmul == "mkl" or rows < 4 * ROW_TILE:
        assert padded == rows
    else:
        assert padded % ROW_TILE == 0
        assert rows <= padded < rows + ROW_TILE
    assert padded_rows(rows, 384, torch.device("cuda")) == rows


# dropout


@few
@given(st.floats(0.0, 0.99), seeds)
def test_the_fraction_kept_is_binomial(p, seed):
    count = 40_000
    torch.manual_seed(seed)
    keep, scale = keep_mask(count, p)
    chance = 1 - round(p * 65536) / 65536
    assert keep.shape == (count,)
    assert set(keep.unique().tolist()) <= {0, 1}
    deviation = math.sqrt(count * chance * (1 - chance))
    assert abs(int(keep.sum()) - count * chance) <= 6 * deviation
    assert scale * chance == pytest.approx(1, abs=1e-12)  # so the expectation is exact
    assert abs(chance - (1 - p)) <= 1 / 131072


def test_neighbours_are_independent():
    # Four decisions come from one 64-bit draw: each lane and each pair must behave alone.
    torch.manual_seed(0)
    p, words = 0.3, 50_000
    lanes = keep_mask(4 * words, p)[0].view(words, 4).double()
    chance = 1 - round(p * 65536) / 65536
    deviation = math.sqrt(chance * (1 - chance) / words)
    assert (lanes.mean(0) - chance).abs().max() < 5 * deviation
    correlation = torch.corrcoef(torch.cat([lanes, lanes.roll(1, 0)], 1).T)
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(words)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9])
def test_counts_that_do_not_fill_a_word(count):
    keep, _ = keep_mask(count, 0.5)
    assert keep.shape == (count,)
    assert dropout(torch.ones(count), 0.5, training=True).shape == (count,)


@pytest.mark.parametrize("p", [1e-9, 1 / 65536, 0.5, 65535 / 65536, 1 - 1e-9])
def test_extreme_probabilities(p):
    torch.manual_seed(0)
    x = torch.ones(200_000)
    dropped = dropout(x, p, training=True)
    assert dropped.isfinite().all()
    kept = int((dropped != 0).sum())
    chance = 1 - min(round(p * 65536), 65535) / 65536
    assert abs(kept - 200_000 * chance) <= 6 * math.sqrt(200_000 * chance * (1 - chance))
    assert set(dropped.unique().tolist()) <= {0.0, torch.tensor(1 / chance).item()}


@pytest.mark.parametrize("p", [1.0, 1.5, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_probabilities_that_make_no_sense(p, training):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        dropout(torch.ones(3), p, training=training)


def test_no_dropout_returns_its_argument():
    x = torch.ones(3)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_gradient_is_mask_times_scale(p):
    x = random(7, 5, 3).abs().add(1).requires_grad_()
    torch.manual_seed(0)
    y = dropout(x, p, training=True)
    torch.manual_seed(0)
    keep, scale = keep_mask(x.numel(), p)
    mask = keep.view(x.shape) * scale
    assert torch.equal(y, x * mask)
    (grad,) = torch.autograd.grad((y * 3).sum(), x)
    torch.testing.assert_close(grad, 3 * mask)
    assert torch.equal(grad == 0, y == 0)


def test_dropout_of_strided_values():
    x = random(6, 8)
    for strided in (x.T, x[:, ::2], x[::2], x[:1].expand(6, 8)):
        torch.manual_seed(0)
        a = dropout(strided, 0.5, training=True)
        torch.manual_seed(0)
        assert torch.equal(a, dropout(strided.contiguous(), 0.5, training=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dropout_keeps_the_type(dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(1000, dtype=dtype), 0.5, training=True)
    assert y.dtype == dtype
    assert set(y.unique().tolist()) == {0.0, 2.0}


def test_the_seed_decides_and_the_state_moves_on():
    x = torch.ones(1000)
    torch.manual_seed(0)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, dropout(x, 0.5, training=True))
    state = torch.get_rng_state()
    third = dropout(x, 0.5, training=True)
    torch.set_rng_state(state)
    assert torch.equal(third, dropout(x, 0.5, training=True))
    torch.manual_seed(1)
    assert not torch.equal(first, dropout(x, 0.5, training=True))


def test_dropout_whatever_the_default_device():
    with torch.device("meta"):
        dropped = dropout(torch.ones(100, device="cpu"), 0.5, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_second_derivatives_of_dropout_are_refused():
    x = random(50).requires_grad_()
    y = dropout(x, 0.5, training=True).square().sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("refusal", [None, RuntimeError, AttributeError])
def test_bf16_needs_a_onednn_that_multiplies_it(monkeypatch, refusal):
    """Its oneDNN may be limited to instructions without bf16, or be missing from the build."""

    def product(*operands: object) -> None:
        if refusal is not None:
            raise refusal("no primitive")

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(ops, "product", product)
    assert ops.has_bf16.__wrapped__() is (refusal is None)


# gated


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu", "relu"])
def test_a_gate_and_its_gradient_are_the_formula(name):
    activation = ACTIVATIONS[name]
    x = random(5, 12).double().requires_grad_()
    wanted = activation(x[:, :6]) * x[:, 6:]
    ours = ops.gated(x, activation, DERIVATIVES.get(activation))
    probe = random(5, 6, seed=1).double()
    torch.testing.assert_close(ours, wanted)
    got, right = (torch.autograd.grad((y * probe).sum(), x)[0] for y in (ours, wanted))
    torch.testing.assert_close(got, right)
    with torch.no_grad():
        torch.testing.assert_close(ops.gated(x, activation), wanted)
