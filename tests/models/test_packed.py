"""Products of prepared weights: in a kernel's layout, and in 8 bits."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pretune.models import kernels, packed
from pretune.models.kernels import Choice, ShapeClass
from pretune.models.layers import Linear
from pretune.models.packed import int8_product, int8_rows, int8_weight, packing
from pretune.models.products import (
    BATCHED,
    INT8,
    MKL_PACKED,
    ONEDNN_PACKED,
    TRANSPOSED,
    multiplier,
    pack,
    saturates,
    scaled_int8_product,
)

IN, OUT = 40, 56
PACKED = [ONEDNN_PACKED, TRANSPOSED, *([MKL_PACKED] if torch.backends.mkl.is_available() else [])]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=INT8)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with torch.inference_mode():
        yield request.param


# 8 bits


@pytest.mark.parametrize("top", [63, 127])
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 1, 1), (3, 64, 48), (70, 384, 130)])
def test_sums_of_integers_are_exact(kernel, top, rows, inner, outer):
    if top == 127 and saturates(kernel):
        top = 63
    draw = torch.Generator().manual_seed(rows)
    x = torch.randint(-127, 128, (rows, inner), generator=draw, dtype=torch.int8)
    weight = torch.randint(-top, top + 1, (outer, inner), generator=draw, dtype=torch.int8)
    # The extreme sums: all products as large as they get.
    x[0], weight[0] = 127, top
    got = scaled_int8_product(kernel, x.float(), pack(kernel, weight), torch.ones(outer))
    exact = x.long() @ weight.long().T
    assert torch.equal(got.long(), exact)
    assert got[0, 0] == inner * 127 * top


def test_rows_are_rounded_to_the_nearest():
    x = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [3e-6, 1e-6, 0.0, -3e-6]])
    integers, scale = int8_rows(x)
    # 63.5 and 31.75 of 127: halves go to the even number.
    assert integers.tolist() == [[64, -127, 32, 0], [0, 0, 0, 0], [127, 42, 0, -127]]
    torch.testing.assert_close(
        scale[:, 0] * 127, torch.tensor([2.0, 0.0, 3e-6]), atol=1e-12, rtol=1e-6
    )


def test_rows_by_the_definition():
    x = random(40, 33) * torch.logspace(-12, 12, 40)[:, None]
    x[3] = x[3].abs()
    x[4] = -x[4].abs()
    integers, scale = int8_rows(x)
    for row, got, unit in zip(x.double(), integers, scale[:, 0].double(), strict=True):
        step = max(map(abs, row.tolist())) / 127
        assert unit.item() == pytest.approx(step, rel=1e-6)
        exact = row / step
        off = (got.double() - exact).abs()
        assert off.max() <= 0.5 + 1e-4
        assert got.abs().max() == 127


def test_errors_are_those_of_rounding(kernel):
    """|xy - x'y'| <= |x| sw / 2 + |y| sx / 2 + sx sw / 4 for each of the products summed up."""
    x, weight, bias = random(30, IN), random(OUT, IN, seed=1), random(OUT, seed=2)
    weight[3] = 0.0
    form = int8_weight(kernel, weight)
    got = int8_product(kernel, x, form, bias)
    sx, sw = x.abs().amax(1, keepdim=True) / 127, form.scale
    bound = x.abs().sum(1, keepdim=True) * sw / 2 + sx * weight.abs().sum(1) / 2 + IN * sx * sw / 4
    error = (got - (x @ weight.T + bias)).abs()
    assert (error <= bound + 1e-5).all()
    assert error[:, 3].max() < 1e-6
    assert error.max() > 0


def test_where_sums_overflow_weights_have_seven_bits(monkeypatch):
    weight = random(OUT, IN)
    for overflows, top in ((True, 63), (False, 127)):
        packed.weight_bits.cache_clear()
        monkeypatch.setattr(packed, "saturates", lambda _, overflows=overflows: overflows)
        form = int8_weight("int_mm", weight)  # whose layout is that of the weight
        assert form.integers.abs().amax(1).tolist() == [top] * OUT
        torch.testing.assert_close(form.scale, weight.abs().amax(1) / top)
    packed.weight_bits.cache_clear()


def test_a_row_is_multiplied_alike_by_all_kernels(monkeypatch):
    """Which of them it goes to depends on how many others there are; its answer must not."""
    x, weight, bias = random(5, 384), random(130, 384, seed=1), random(130, seed=2)
    # One of them may overflow, and the others not: the integers are the same all the same.
    monkeypatch.setattr(packed, "saturates", lambda kernel: kernel == INT8[0])
    packed.weight_bits.cache_clear()
    with torch.inference_mode():
        got = [int8_product(kernel, x, int8_weight(kernel, weight), bias) for kernel in INT8]
    packed.weight_bits.cache_clear()
    assert torch.equal(got[1], got[0])
    assert torch.equal(got[2], got[0])


def test_what_is_not_finite_stays_in_its_row(kernel):
    x = random(3, IN)
    weight = int8_weight(kernel, random(OUT, IN, seed=1))
    for value in (float("nan"), float("inf"), float("-inf")):
        x[1, 5] = value
        for bias in (None, random(OUT, seed=2)):
            got = int8_product(kernel, x, weight, bias)
            assert got[[0, 2]].isfinite().all()
            assert got[1].isnan().all()


# Layouts


@pytest.mark.parametrize("form", PACKED)
def test_a_layout_serves_any_number_of_rows(form):
    """It is made once, before the rows are known."""
    for inner, outer in ((384, 1152), (96, 33)):
        weight, bias = random(outer, inner, seed=1), random(outer, seed=2)
        with torch.inference_mode():
            laid_out = pack(form, weight)
            for rows in (1, 2, 3, 7, 16, 31, 64, 65, 200):
                x = random(rows, inner, seed=rows)
                for added in (bias, None):
                    got = multiplier(form, laid_out, weight, added)(x)
                    wanted = functional.linear(x, weight, added)
                    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


# Layers


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Linear]:
    """A layer whose products go to a packed kernel, and what it was asked to prepare."""
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    layer = Linear(IN, OUT)
    shapes = [
        ShapeClass("packed", rows, IN, outer) for rows in kernels.ROWS for outer in (OUT, 16, 40)
    ]
    with kernels.kept(Choice("measured", dict.fromkeys(shapes, ONEDNN_PACKED))):
        yield layer


def close(layer: Linear, x: Tensor, outputs: slice = slice(None)) -> bool:
    wanted = functional.linear(x, layer.weight, layer.bias)[:, outputs]
    return torch.allclose(layer.part(x, outputs), wanted, rtol=1e-5, atol=1e-5)


def test_prepared_once_and_again_when_the_weight_changes(layer, monkeypatch):
    made: list[int] = []
    original = packed.pack
    monkeypatch.setattr(packed, "pack", lambda *given: made.append(1) or original(*given))
    x = random(9, IN)
    with torch.inference_mode(), packing("float32"):
        assert close(layer, x)
        assert close(layer, random(200, IN))
        assert len(made) == 1
    # In place, as an optimizer does; and by other memory, as averaged weights are put in.
    with torch.no_grad():
        layer.weight.mul_(2.0)
    with torch.inference_mode(), packing("float32"):
        assert close(layer, x)
    layer.weight.data = random(OUT, IN, seed=5)
    with torch.inference_mode(), packing("float32"):
        assert close(layer, x)
    assert len(made) == 3


def test_parts_of_the_outputs(layer):
    with torch.inference_mode(), packing("float32"):
        for outputs in (slice(16), slice(16, None), slice(None)):
            assert close(layer, random(9, IN), outputs)


def test_only_in_the_context_and_without_gradients(layer, monkeypatch):
    monkeypatch.setattr(packed, "pack", lambda *given: pytest.fail("prepared"))
    x = random(9, IN)
    with torch.no_grad():
        assert close(layer, x)
    with packing("float32"):
        assert layer(x).requires_grad


def test_copies_prepare_their_own(layer):
    with torch.inference_mode(), packing("float32"):
        layer(random(9, IN))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        with torch.no_grad():
            other.weight.zero_()
        with torch.inference_mode(), packing("float32"):
            assert close(other, random(9, IN))


def test_a_layer_in_8_bits(layer):
    x = random(9, IN)
    with torch.inference_mode():
        exact = layer(x)
        with packing("int8"):
            rounded = layer(x)
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_small_matrices_stay_as_they_are(layer, monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", IN * OUT + 1)
    x = random(9, IN)
    with torch.inference_mode(), packing("int8"):
        assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("outer", [40, 64, 200])
def test_a_product_in_parts_is_the_product(outer):
    generator = torch.Generator().manual_seed(outer)
    x, weight = (torch.randn(n, 40, generator=generator) for n in (5, outer))
    for bias in (None, torch.randn(outer, generator=generator)):
        ours = multiplier(BATCHED, weight, weight, bias)(x)
        wanted = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
