"""The kernels that multiply matrices on a CPU, each by its name; `kernels` chooses among them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.models.large_pages import in_large_pages

#: PyTorch's own product: MKL, where PyTorch was built with it. What is never measured goes here.
PLAIN = "mkl"
#: oneDNN, through the operator that PyTorch's compiler uses.
ONEDNN = "onednn"
#: The same with a weight in the layout of the kernel, see `pack`.
MKL_PACKED, ONEDNN_PACKED = "mkl-packed", "onednn-packed"
#: PyTorch's own, with the weight as `[in, out]`, which it need not copy to multiply few rows.
TRANSPOSED = "mkl-transposed"
#: PyTorch's own as a batch of products, each of some outputs, which copies nothing either.
BATCHED = "mkl-batched"
#: The outputs of each.
_OUTPUTS = 64
#: Products of 8-bit integers: oneDNN's, with a packed weight, and PyTorch's `_int_mm`.
QLINEAR, INT_MM = "qlinear", "int_mm"
#: The same integers as floats, laid out as for `TRANSPOSED`: for few rows, where a processor has no
#: instructions for products of 8 bits and the others copy the whole weight at each call.
INT_FLOAT = "int_float"
INT8 = (QLINEAR, INT_MM, INT_FLOAT)
#: Those of oneDNN, which compiles a kernel for every number of rows.
COMPILED = (ONEDNN, ONEDNN_PACKED, QLINEAR, INT_MM)


def has_onednn() -> bool:
    """Whether this build of PyTorch has the kernels of oneDNN."""
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built_in and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(kernel: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` by a kernel, `[rows, out]`, in the type of the operands.

    Args:
        kernel: `PLAIN` or `ONEDNN`.
        x: `[rows, in]`, on the CPU, of at least one row.
        weight: `[out, in]`.
        bias: `[out]`.
    """
    if kernel != ONEDNN:
        return F.linear(x, weight, bias)
    if bias is not None:
        bias = bias.to(x.dtype).contiguous()  # the kernel ignores strides
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


# Weights that stay as they are


def pack(kernel: str, weight: Tensor) -> Tensor:
    """A weight `[out, in]`, float32 or int8, in the layout of a kernel."""
    packed = weight
    if kernel == MKL_PACKED:
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, 64)
    elif kernel == ONEDNN_PACKED:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    elif kernel == TRANSPOSED:
        packed = in_large_pages(weight.t())
    elif kernel == QLINEAR:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
    elif kernel == INT_FLOAT:
        packed = in_large_pages(weight.float().t())
    return packed


def multiplier(
    kernel: str, packed: Tensor, weight: Tensor, bias: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """The function that maps `[rows, in]` to `x @ weight.T + bias`.

    Args:
        kernel: of float32.
        packed: what `pack` gave for it.
        weight: `[out, in]`.
        bias: `[out]`.
    """
    if kernel == TRANSPOSED:
        if bias is None:
            return lambda x: torch.mm(x, packed)
        return lambda x: torch.addmm(bias, x, packed)
    if kernel == BATCHED:
        return _batched(weight, bias)
    if kernel == MKL_PACKED:
        # The layout does not depend on the rows; the operator wants to hear their number.
        multiply = torch.ops.mkl._mkl_linear.default
        return lambda x: multiply(x, packed, weight, bias, x.shape[0])
    return partial(product, PLAIN if kernel == PLAIN else ONEDNN, weight=packed, bias=bias)


def _batched(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """`multiplier` of `BATCHED`: for some 4 to 12 rows twice as fast as a single product."""
    (outer, inner), count = weight.shape, len(weight) // _OUTPUTS
    whole = count * _OUTPUTS
    parts = weight[:whole].view(count, _OUTPUTS, inner).transpose(1, 2)
    rest = weight[whole:].t() if whole < outer else None

    def multiply(x: Tensor) -> Tensor:
        rows = x.shape[0]
        y = torch.bmm(x.expand(count, rows, inner), parts).transpose(0, 1).reshape(rows, whole)
        if rest is not None:
            y = torch.cat([y, torch.mm(x, rest)], 1)
        return y if bias is None else y.add_(bias)

    return multiply


def scaled_int8_product(kernel: str, x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """`(x @ weight.T) * scale` of integers, `[rows, out]` float32.

    Exact up to the last product; by `INT_FLOAT` sums beyond 2^24 are rounded as floats.

    Args:
        kernel: of `INT8`.
        x: `[rows, in]` integers as float32.
        packed: the weight, from `pack`.
        scale: `[out]`.
    """
    if kernel == INT_FLOAT:
        return torch.mm(x, packed).mul_(scale)
    x = x.to(torch.int8)
    if kernel == INT_MM:
        return torch._int_mm(x, packed.t()).float().mul_(scale)
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(x, 1.0, 0, packed, scale, _zeros(len(scale)), None),
        *(1.0, 0, torch.float32, "none", [], ""),
    )
    return result


@lru_cache(maxsize=64)
def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def saturates(kernel: str) -> bool:
    """Whether sums of 8-bit products overflow in a kernel, as on processors without VNNI."""
    x, weight = torch.full((8, 64), 127.0), torch.full((16, 64), 127, dtype=torch.int8)
    with torch.inference_mode():
        summed = scaled_int8_product(kernel, x, pack(kernel, weight), torch.ones(16))
    return not bool((summed == 64 * 127**2).all())
