"""`linear` and `dropout`, with textbook results, in the way that is fastest on this machine.

On CUDA both are PyTorch's own. On a CPU three things are done by hand:

- PyTorch sends float32 matrix products to MKL, which takes an AVX2 path on processors that are not
  Intel's. oneDNN, which PyTorch ships too, uses AVX-512 there and is about twice as fast.
- Under bf16 autocast, `linear` is twice as fast on processors that multiply bf16 (AVX512-BF16,
  AMX). Softmax, GELU and the small products of attention are slower in bf16 than in float32, so
  that inputs and outputs stay float32.
- `torch.nn.functional.dropout` draws one random number for each element. Here one 64-bit draw
  serves four elements.
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: On the oneDNN path, a model pads its rows to a multiple of this: oneDNN compiles a kernel for
#: every shape (about 10 ms for a layer), and packed batches rarely have the same T twice.
ROW_TILE = 64


@lru_cache(maxsize=1)
def uses_onednn() -> bool:
    """Whether float32 products on this CPU go to oneDNN; `PRETUNE_MATMUL=onednn|mkl` overrides."""
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    available = built_in and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    choice = os.environ.get("PRETUNE_MATMUL", "auto")
    if choice in ("onednn", "mkl"):
        return available and choice == "onednn"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return available and x86 and not _is_intel()


@lru_cache(maxsize=1)
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16 products, and oneDNN is used."""
    if not uses_onednn():
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


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


def _is_intel() -> bool:
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = platform.processor()
    return "GenuineIntel" in described


def padded_rows(rows: int, device: torch.device) -> int:
    """The number of rows to pad to for `rows` tokens; see `ROW_TILE`. Few rows are not padded."""
    if device.type != "cpu" or not uses_onednn() or rows < 4 * ROW_TILE:
        return rows
    return -(-rows // ROW_TILE) * ROW_TILE


def pad_rows(x: Tensor) -> Tensor:
    """Append rows of zeros to `[rows, hidden]`, up to `padded_rows`."""
    return F.pad(x, (0, 0, 0, padded_rows(len(x), x.device) - len(x)))


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
    # Use PyTorch's own wherever the oneDNN kernel does not apply.
    given = (x, weight) if bias is None else (x, weight, bias)
    half = _rounds()
    types = (torch.float32, torch.bfloat16) if half else (torch.float32,)
    plain = (
        # The kernel does not check: for a weight on CUDA or meta it would read arbitrary memory.
        any(t.device.type != "cpu" or t.dtype not in types for t in given)
        or x.dim() != 2
        or len(x) == 0
        or (bias is not None and bias.shape != weight.shape[:1])
        or not uses_onednn()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )
    if plain:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        how = (half, keep_bf16)
        product: Tensor = _OneDnnLinear.apply(x, weight, bias, how)  # type: ignore[no-untyped-call]
        return product
    if half:
        x, weight = x.bfloat16(), weight.bfloat16()
    return _product(x, weight, bias, keep_bf16)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, keep_bf16: bool = False
) -> Tensor:
    """A product by oneDNN, in float32, or in bf16 with sums in float32."""
    if bias is not None:
        bias = bias.to(x.dtype).contiguous()  # the kernel ignores strides
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product if keep_bf16 else product.float()


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[bool, bool]
    ) -> Tensor:
        half, keep_bf16 = how
        ctx.keep_bf16 = x.dtype == torch.bfloat16  # a gradient has the type of its input
        if half:
            x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias, keep_bf16)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=torch.float32)
        grad = grad.to(x.dtype).contiguous()
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad, weight.t(), keep_bf16=ctx.keep_bf16)
        if ctx.needs_input_grad[1]:
            # Both give grad.T @ x; the kernel is faster with the smaller side first.
            if grad.shape[1] <= x.shape[1]:
                grad_weight = _product(grad.t(), x.t())
            else:
                grad_weight = _product(x.t(), grad.t()).t()
        return grad_x, grad_weight, grad_bias, None


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
