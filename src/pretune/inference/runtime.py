"""Where and how precisely a model computes; training, evaluation and prediction share this."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pretune.errors import RunError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one.

    Args:
        name: of `auto` and `cuda`, each process on a machine takes its own.
        local_rank: which process on this machine.

    Raises:
        RunError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # `meta` has no numbers to give
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise RunError(
            f"device '{name}' cannot be used: {reason}", "Use device auto or cpu."
        ) from None
    return device


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing. `auto`: bf16 on CUDA, float32 elsewhere."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
