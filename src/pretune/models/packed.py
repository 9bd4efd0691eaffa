"""Products of weights that stay as they are: laid out for a kernel ahead of time, or in 8 bits.

Inside `packing`, the layers' products use weights that were prepared at their first use: in the
layout of the kernel that is fastest for them (`float32`), or rounded to 8 bits (`int8`). A weight
that changed since then is prepared again.

8 bits: each output's weights have a scale of their own, and so has each row (token) of the inputs,
taken from the row itself when it comes: q = round(x / s) with s = max|x| / 127. The products of the
integers and their sums are exact. On processors without VNNI, two products are added in 16 bits
first, which overflows with 8 bits on both sides; there weights have 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pretune.models import kernels
from pretune.models.products import INT8, pack, packed_product, saturates, scaled_int8_product

How = Literal["float32", "int8"]
#: The kinds of their products.
_KINDS = {"float32": "packed", "int8": "int8"}
#: How weights are packed in this thread now.
_how: ContextVar[How | None] = ContextVar("packing", default=None)
#: The largest integer of an input: 8 bits without -128.
TOP = 127


@contextmanager
def packing(how: How) -> Iterator[None]:
    """Context in which layers multiply prepared weights, where no gradients are wanted."""
    token = _how.set(how)
    try:
        yield
    finally:
        _how.reset(token)


def active(int8: bool = False) -> How | None:
    """How weights are packed now; None where they are used as they are.

    Args:
        int8: whether the weight is one of 8 bits, whatever `packing` says.
    """
    if torch.is_grad_enabled():
        return None
    return "int8" if int8 else _how.get()


def kernel_now(rows: int, inner: int, outer: int) -> str:
    """The kernel of a layer's product `[rows, inner] @ [inner, outer]`, prepared or not."""
    how = active()
    # Small matrices, such as a classifier's, stay as they are.
    if how is None or inner * outer < kernels.SMALLEST:
        return kernels.choose("forward", rows, inner, outer)
    return kernels.choose(_KINDS[how], rows, inner, outer)


class Int8Weight(NamedTuple):
    """A weight in 8 bits.

    Attributes:
        integers: `[out, in]` int8, in the kernel's layout.
        scale: `[out]`, what an integer of each output stands for.
    """

    integers: Tensor
    scale: Tensor


class PackedWeights:
    """The prepared forms of one weight and of its parts; copies and pickles are empty."""

    def __init__(self) -> None:
        self._forms: dict[tuple[str, int, int], tuple[Any, Any]] = {}

    def __reduce__(self) -> tuple[type[PackedWeights], tuple[()]]:
        return PackedWeights, ()

    def product(
        self, how: How, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice
    ) -> Tensor | None:
        """`x @ weight[rows].T + bias[rows]`; None where nothing is to be won by a prepared weight.

        Args:
            how: as in `packing`.
            x: `[T, in]`.
            weight: `[out, in]`.
            bias: `[out]` or None.
            rows: the outputs wanted.
        """
        if not all(t.is_cpu and t.dtype == torch.float32 for t in (x, weight)):
            return None
        # Small matrices, such as a classifier's, stay as they are.
        if weight.numel() < kernels.SMALLEST:
            return None
        if x.dim() != 2 or len(x) == 0 or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        outputs = len(range(*rows.indices(len(weight))))
        kernel = kernels.choose(_KINDS[how], len(x), x.shape[1], outputs)
        if how == "float32" and kernel in kernels.FORCED:
            return None
        form = self._form(kernel, weight, rows)
        if outputs < len(weight):
            weight, bias = weight[rows], None if bias is None else bias[rows]
        if how == "int8":
            return int8_product(kernel, x, form, bias)
        return packed_product(kernel, x, form, weight, bias)

    def _form(self, kernel: str, weight: Tensor, rows: slice) -> Any:
        """The weight as a kernel wants it, made anew where the weight is another one by now."""
        key = (kernel, rows.start or 0, len(weight) if rows.stop is None else rows.stop)
        version = 0 if weight.is_inference() else weight._version
        state = (weight.data_ptr(), weight.shape, version)
        known = self._forms.get(key)
        if known is None or known[0] != state:
            part = weight[rows].detach().contiguous()
            known = (state, int8_weight(kernel, part) if kernel in INT8 else pack(kernel, part))
            self._forms[key] = known
        return known[1]


def int8_weight(kernel: str, weight: Tensor) -> Int8Weight:
    """Round a weight `[out, in]` to 8 bits, or to 7 where the kernel's sums would overflow."""
    top = 63 if _saturates(kernel) else TOP
    scale = weight.abs().amax(1) / top
    integers = (weight / torch.where(scale == 0, 1.0, scale)[:, None]).round().to(torch.int8)
    return Int8Weight(pack(kernel, integers), scale)


def int8_product(kernel: str, x: Tensor, weight: Int8Weight, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` with both sides in 8 bits, `[T, out]` float32."""
    integers, scale = int8_rows(x)
    product = scaled_int8_product(kernel, integers, weight.integers, weight.scale)
    if bias is None:
        return product.mul_(scale)
    return torch.addcmul(bias, product, scale, out=product)


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of `[T, in]` to 8 bits with a scale of its own, `[T, 1]`."""
    # As few passes over the row as there can be, and one of them writes: its two ends tell max|x|.
    largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    # A number that is not finite makes its row's scale so, and with it the row of the product.
    largest.clamp_(min=1e-30)
    return torch.mul(x, TOP / largest).round_().to(torch.int8), largest.div_(TOP)


def instruction_set() -> str:
    """What products in 8 bits depend on here: the instruction set, and the bits of the weights."""
    bits = 8
    for kernel in INT8:
        # Not every build of PyTorch has every kernel.
        with suppress(RuntimeError, NotImplementedError, AttributeError):
            bits = min(bits, 7 if _saturates(kernel) else 8)
    return f"{torch.backends.cpu.get_cpu_capability()}, weights of {bits} bits"


@lru_cache(maxsize=8)
def _saturates(kernel: str) -> bool:
    return saturates(kernel)


def is_int8(model: nn.Module) -> bool:
    """Whether a model has weights that are stored and multiplied in 8 bits."""
    return any(getattr(part, "int8", None) for part in model.modules())
