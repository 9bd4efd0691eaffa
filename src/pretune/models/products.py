"""The kernels that multiply matrices on a CPU, each by its name; `kernels` chooses among them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: PyTorch's own product: MKL, where PyTorch was built with it. What is never measured goes here.
PLAIN = "mkl"
#: oneDNN, through the operator that PyTorch's compiler uses.
ONEDNN = "onednn"


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
