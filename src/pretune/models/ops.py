"""`linear`, `gated` and `dropout`, with textbook results, as fast as this machine can.

On CUDA both are PyTorch's own. On a CPU three things are done by hand:

- Each float32 product goes to the kernel that was measured to be the fastest for its shape, forward
  and backward (`kernels`).
- Under bf16 autocast, `linear` is twice as fast on processors that multiply bf16 (AVX512-BF16,
  AMX). Softmax, GELU and the small products of attention are slower in bf16 than in float32, so
  that inputs and outputs stay float32.
- `torch.nn.functional.dropout` draws one random number for each element. Here one 64-bit draw
  serves four elements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretune.models import kernels
from pretune.models.packed import kernel_now
from pretune.models.products import COMPILED, ONEDNN, PLAIN, product

#: On the oneDNN path, a model pads its rows to a multiple of this: oneDNN compiles a kernel for
#: every shape (about 10 ms for a layer), and packed batches rarely have the same T twice.
ROW_TILE = 64


@lru_cache(maxsize=1)
def has_bf16() -> bool:
    """Whether this processor has instructions for bf16 products, and oneDNN may use them."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, name, bool)() for name in checks):
        return False
    # oneDNN can be told to use an older instruction set (ONEDNN_MAX_CPU_ISA).
    tiny = torch.zeros(16, 16, dtype=torch.bfloat16, device="cpu")
    try:
        product(ONEDNN, tiny, tiny)
    except (RuntimeError, AttributeError):
        return False
    return True


def multiplies_bf16() -> bool:
    """Whether products under bf16 autocast are rounded here, and go to oneDNN.

    That changes results by more than a last bit, so that no measurement decides it.
    """
    return kernels.current_mode() != PLAIN and has_bf16()


def _rounds() -> bool:
    """Whether products on the CPU round to bf16 now, as torch's autocast asks."""
    if not torch.is_autocast_enabled("cpu") or not multiplies_bf16():
        return False
    return bool(torch.get_autocast_dtype("cpu") == torch.bfloat16)


def rounded(weight: Tensor) -> Tensor:
    """Round a weight as `linear` would, once for several products."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and _rounds():
        return weight.bfloat16()
    return weight


def padded_rows(rows: int, width: int, device: torch.device) -> int:
    """The number of rows to pad to for `rows` tokens of a model `width` wide; see `ROW_TILE`.

    Few rows are not padded, nor any where products of that width do not go to oneDNN.
    """
    if device.type != "cpu" or rows < 4 * ROW_TILE:
        return rows
    compiled = _rounds() or kernel_now(rows, width, width) in COMPILED
    return -(-rows // ROW_TILE) * ROW_TILE if compiled else rows


def pad_rows(x: Tensor) -> Tensor:
    """Append rows of zeros to `[rows, hidden]`, up to `padded_rows`."""
    rows = padded_rows(len(x), x.shape[1], x.device)
    return F.pad(x, (0, 0, 0, rows - len(x))) if rows > len(x) else x


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, keep_bf16: bool = False
) -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: `[rows, in]`.
        weight: `[out, in]`.
        bias: `[out]`.
        keep_bf16: return bf16 where products are in bf16, for an activation and another product.
    """
    half = _rounds()
    # Asked to round on a processor that would only be slower for it.
    unwanted = torch.is_autocast_enabled("cpu") and not half and kernels.current_mode() != PLAIN
    if unwanted and all(t.is_cpu and t.dtype == torch.float32 for t in (x, weight)):
        with torch.autocast("cpu", enabled=False):
            return linear(x, weight, bias)
    # Use PyTorch's own wherever no other kernel applies.
    if not _chooses(x, weight, bias, half=half):
        return F.linear(x, weight, bias)
    given = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        # Nothing of our own in the graph where it would do what PyTorch does.
        rows, inner, outer = *x.shape, len(weight)
        if not half and {_kernel(x, weight), *_backward(rows, inner, outer)} == {PLAIN}:
            return F.linear(x, weight, bias)
        how = (half, keep_bf16)
        differentiable: Tensor = _Linear.apply(x, weight, bias, how)  # type: ignore[no-untyped-call]
        return differentiable
    if half:
        return _half_product(x.bfloat16(), weight.bfloat16(), bias, keep_bf16)
    return product(_kernel(x, weight), x, weight, bias)


def _chooses(x: Tensor, weight: Tensor, bias: Tensor | None, *, half: bool) -> bool:
    """Whether there is a choice of kernels for these operands."""
    if not half and kernels.current_mode() in (PLAIN, kernels.DEFAULT):
        return False
    # The kernels do not check: for a weight on CUDA or meta one would read arbitrary memory.
    types = (torch.float32, torch.bfloat16) if half else (torch.float32,)
    given = (x, weight) if bias is None else (x, weight, bias)
    if any(t.device.type != "cpu" or t.dtype not in types for t in given):
        return False
    if x.dim() != 2 or len(x) == 0 or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    return not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _kernel(x: Tensor, weight: Tensor) -> str:
    """The kernel for `x @ weight.T`; which product of a layer it is shows in the layout."""
    (rows, inner), outer = x.shape, len(weight)
    if not x.is_contiguous() and x.t().is_contiguous():
        return kernels.choose("weight", inner, *sorted((rows, outer)))
    gradient = not weight.is_contiguous() and weight.t().is_contiguous()
    return kernels.choose("input" if gradient else "forward", rows, inner, outer)


def _backward(rows: int, inner: int, outer: int) -> tuple[str, str]:
    """The kernels for the gradients of the inputs and of the weight of a layer."""
    to_input = kernels.choose("input", rows, outer, inner)
    return to_input, kernels.choose("weight", rows, min(inner, outer), max(inner, outer))


def _half_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, keep_bf16: bool = False
) -> Tensor:
    """A product of bf16 with sums in float32."""
    result = product(ONEDNN, x, weight, bias)
    return result if keep_bf16 else result.float()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[bool, bool]
    ) -> Tensor:
        ctx.half, keep_bf16 = how
        ctx.keep_bf16 = x.dtype == torch.bfloat16  # a gradient has the type of its input
        if ctx.half:
            x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        if ctx.half:
            return _half_product(x, weight, bias, keep_bf16)
        return product(_kernel(x, weight), x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=torch.float32)
        grad = grad.to(x.dtype).contiguous()
        to_input, to_weight = _backward(len(x), x.shape[1], grad.shape[1])
        if ctx.half:
            to_input = to_weight = ONEDNN
        if ctx.needs_input_grad[0]:
            grad_x = product(to_input, grad, weight.t())
            grad_x = grad_x if ctx.keep_bf16 else grad_x.float()
        if ctx.needs_input_grad[1]:
            # Both give grad.T @ x; the kernel is faster with the smaller side first.
            if grad.shape[1] <= x.shape[1]:
                grad_weight = product(to_weight, grad.t(), x.t()).float()
            else:
                grad_weight = product(to_weight, x.t(), grad.t()).float().t()
        return grad_x, grad_weight, grad_bias, None


def gated(
    x: Tensor,
    activation: Callable[[Tensor], Tensor],
    derivative: Callable[..., Tensor] | None = None,
) -> Tensor:
    """`activation(gate) * up` of a gate and what it lets through, which lie side by side.

    Args:
        x: `[rows, 2 * width]`: the gate, then the rest.
        activation: a function that gives a new tensor.
        derivative: writes the gradient of the activation into `grad_input`, of the gradient above
            and the input; None: PyTorch finds it.
    """
    gate, up = x.chunk(2, -1)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return activation(gate).mul_(up)
    if derivative is None or torch.compiler.is_compiling():
        return activation(gate) * up
    differentiable: Tensor = _Gated.apply(x, activation, derivative)  # type: ignore[no-untyped-call]
    return differentiable


class _Gated(torch.autograd.Function):
    """A gate whose gradient is written where it belongs: PyTorch would join its halves after."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activation: Callable[[Tensor], Tensor],
        derivative: Callable[..., Tensor],
    ) -> Tensor:
        gate, up = x.chunk(2, -1)
        opened = activation(gate)
        ctx.save_for_backward(x, opened)
        ctx.derivative = derivative
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, opened = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        to_gate, to_up = grad_x.chunk(2, -1)
        torch.mul(grad, opened, out=to_up)
        torch.mul(grad, up, out=to_gate)
        ctx.derivative(to_gate, gate, grad_input=to_gate)
        return grad_x, None, None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability `p` and divide the rest by `1 - p`.

    On a CPU the probability is rounded to 1/65536 and the scale follows the rounded value, so that
    the expectation is exact. Each call makes one draw from torch's CPU generator.

    Raises:
        ValueError: `p` is not in [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout probability must be in [0, 1), not {p}")
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training=True)
    dropped: Tensor = _Dropout.apply(x, p)  # type: ignore[no-untyped-call]
    return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep, scale = keep_mask(x.numel(), p)
        ctx.save_for_backward(keep.view(x.shape))
        ctx.scale = scale
        return torch.mul(x, keep.view(x.shape)).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return torch.mul(grad, keep).mul_(ctx.scale), None


def keep_mask(count: int, p: float) -> tuple[Tensor, float]:
    """Draw the mask, `[count]` uint8 ones where an element stays, and the scale of those."""
    dropped = min(round(p * 65536), 65535)  # p < 1: an element must be able to stay
    seed = int(torch.randint(2**63 - 1, (1,), device="cpu"))
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(0, 2**64 - 1, size=-(-count // 4), dtype=np.uint64, endpoint=True)
    halves = torch.from_numpy(words.view(np.int16))[:count]
    # A signed 16-bit number is uniform on [-32768, 32767], and `dropped` of its 65536 values are
    # below the threshold. A byte, not a bool: only multiplying by a byte is vectorized.
    keep = (halves >= dropped - 32768).view(torch.uint8)
    return keep, 65536 / (65536 - dropped)
