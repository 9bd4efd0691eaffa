"""Products of weights that stay as they are: laid out for a kernel ahead of time, or in 8 bits.

Inside `packing`, the layers' products use weights that were prepared at their first use: in the
layout of the kernel that is fastest for them (`float32`), or rounded to 8 bits (`int8`). A weight
that changed since then is prepared again. `plain` keeps no copies: products of few rows use weights
as they lie, by the kernel that is fastest then.

8 bits: each output's weights have a scale of their own, and so has each row (token) of the inputs,
taken from the row itself when it comes: q = round(x / s) with s = max|x| / 127. The products of the
integers and their sums are exact. On processors without VNNI, two products are added in 16 bits
first, which overflows with 8 bits on both sides; there weights have 7, whichever kernel multiplies
them: a text gets the same answer alone as among others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pretune.models import kernels
from pretune.models.products import (
    INT8,
    PLAIN,
    multiplier,
    pack,
    product,
    saturates,
    scaled_int8_product,
)

How = Literal["plain", "float32", "int8"]
#: The kinds of their products.
_KINDS = {"plain": kernels.FEW, "float32": "packed", "int8": "int8"}
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
    if how in (None, "plain") or inner * outer < kernels.SMALLEST:
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


class _Prepared(NamedTuple):
    """A product that is ready to be computed.

    Attributes:
        state: what it was made from, see `_state`.
        standing: what its kernel was chosen from.
        multiply: maps `[T, in]` to `[T, outputs]`.
    """

    state: tuple[int, ...]
    standing: object
    multiply: Callable[[Tensor], Tensor]


class PackedWeights:
    """The products of one weight and of its parts, prepared; copies and pickles are empty."""

    def __init__(self) -> None:
        self._products: dict[tuple[How, int, int | None, int | None], _Prepared] = {}
        self._forms: dict[tuple[str, int | None, int | None], tuple[tuple[int, ...], Any]] = {}

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
        # Small matrices stay as they are, and so do operands that autocast rounds.
        if not (packable(x) and packable(weight)) or weight.numel() < kernels.SMALLEST:
            return None
        if how == "plain" and x.shape[0] >= kernels.MANY:
            return None
        if x.dim() != 2 or torch.is_autocast_enabled("cpu") or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        return self.prepared(how, x.shape[0], weight, bias, rows)(x) if x.shape[0] else None

    def prepared(
        self, how: How, count: int, weight: Tensor, bias: Tensor | None, rows: slice
    ) -> Callable[[Tensor], Tensor]:
        """The function that computes such a product of about `count` rows."""
        # Made anew where the weight, or what chooses the kernel, is another one by now.
        key = (how, kernels.bucket(count), rows.start, rows.stop)
        known, state = self._products.get(key), _state(weight, bias)
        if known is None or known.state != state or known.standing is not kernels.standing():
            multiply = self._multiplier(how, count, weight, bias, rows)
            known = self._products[key] = _Prepared(state, kernels.standing(), multiply)
        return known.multiply

    def _multiplier(
        self, how: How, count: int, weight: Tensor, bias: Tensor | None, rows: slice
    ) -> Callable[[Tensor], Tensor]:
        """The product of a weight's part with about so many rows."""
        part, own = weight[rows].detach(), None if bias is None else bias[rows].detach()
        if weight.numel() < kernels.SMALLEST:
            return partial(product, PLAIN, weight=part, bias=own)
        kind = "forward" if how == "plain" and count >= kernels.MANY else _KINDS[how]
        kernel = kernels.choose(kind, count, part.shape[1], part.shape[0])
        if how == "plain":
            return multiplier(kernel, part, part, own)
        form = self._form(kernel, part, _state(weight, None), rows)
        if how == "int8":
            return partial(int8_product, kernel, weight=form, bias=own)
        return multiplier(kernel, form, part, own)

    def _form(self, kernel: str, part: Tensor, state: tuple[int, ...], rows: slice) -> Any:
        """A part of a weight as a kernel wants it, for any number of rows."""
        if kernel in kernels.FORCED:
            return part
        key = (kernel, rows.start, rows.stop)
        known = self._forms.get(key)
        if known is None or known[0] != state:
            part = part.contiguous()
            known = (state, int8_weight(kernel, part) if kernel in INT8 else pack(kernel, part))
            self._forms[key] = known
        return known[1]


def packable(x: Tensor) -> bool:
    """Whether kernels of this module take a tensor."""
    return x.is_cpu and x.dtype == torch.float32


def _state(weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    """Where a weight and a bias lie, and how often the weight was changed in place."""
    return (
        weight.data_ptr(),
        weight.numel(),
        version_of(weight),
        0 if bias is None else bias.data_ptr(),
    )


def version_of(x: Tensor) -> int:
    """How often a tensor was changed in place, as far as that is counted."""
    return 0 if x.is_inference() else x._version


def int8_weight(kernel: str, weight: Tensor) -> Int8Weight:
    """Round a weight `[out, in]` to 8 bits, or to 7 where sums would overflow on this processor."""
    top = TOP if weight_bits() == 8 else 63
    scale = weight.abs().amax(1) / top
    integers = (weight / torch.where(scale == 0, 1.0, scale)[:, None]).round().to(torch.int8)
    return Int8Weight(pack(kernel, integers), scale)


def int8_product(kernel: str, x: Tensor, weight: Int8Weight, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` with both sides in 8 bits, `[T, out]` float32."""
    integers, scale = int8_rows(x)
    summed = scaled_int8_product(kernel, integers, weight.integers, weight.scale)
    if bias is None:
        return summed.mul_(scale)
    return torch.addcmul(bias, summed, scale, out=summed)


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of `[T, in]` to integers of 8 bits, as floats, with its scale, `[T, 1]`."""
    # As few passes over the row as there can be, and one of them writes: its two ends tell max|x|.
    largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    # A number that is not finite makes its row's scale so, and with it the row of the product.
    largest.clamp_(min=1e-30)
    return torch.mul(x, TOP / largest).round_(), largest.div_(TOP)


def instruction_set() -> str:
    """What products in 8 bits depend on here: the instruction set, and the bits of the weights."""
    return f"{torch.backends.cpu.get_cpu_capability()}, weights of {weight_bits()} bits"


@lru_cache(maxsize=1)
def weight_bits() -> int:
    """7 where a kernel of this processor would overflow with weights of 8 bits, else 8."""
    for kernel in INT8:
        # Not every build of PyTorch has every kernel.
        with suppress(RuntimeError, NotImplementedError, AttributeError):
            if saturates(kernel):
                return 7
    return 8


def is_int8(model: nn.Module) -> bool:
    """Whether a model has weights that are stored and multiplied in 8 bits."""
    return any(getattr(part, "int8", None) for part in model.modules())
