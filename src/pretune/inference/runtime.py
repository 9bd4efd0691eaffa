"""Where and how precisely a model computes; training, evaluation and prediction share this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from pretune.errors import RunError, did_you_mean
from pretune.models.packed import packing


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return a device that works; `auto` is a GPU where there is one.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        local_rank: number of this process on the machine, where several train together; with `auto`
            and `cuda` each takes the GPU of its own number, and opens no other.

    Raises:
        RunError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        gpus = torch.cuda.device_count()
        if 0 < gpus <= local_rank:
            raise RunError(
                f"process {local_rank} of this machine has no GPU of its own: there are {gpus}",
                f"Start as many processes as GPUs: torchrun --nproc-per-node={gpus}.",
            )
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        # Before anything is put there: what names no GPU, as NCCL's exchange of objects, goes to
        # the current one, which is GPU 0 in every process.
        if device.type == "cuda" and local_rank is not None:
            torch.cuda.set_device(device)
        torch.empty(1, device=device).tolist()  # `meta` has no numbers to give
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise RunError(
            f"device '{name}' cannot be used: {reason}", "Use device auto or cpu."
        ) from None
    return device


#: How precisely a model can compute when it does not learn.
PRECISIONS = ("auto", "float32", "bf16", "int8")


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a model can answer in this precision on this device.

    Raises:
        RunError: it is none of `PRECISIONS`, or int8 on another device than a CPU.
    """
    if precision not in PRECISIONS:
        raise RunError(f"no precision is called '{precision}'", did_you_mean(precision, PRECISIONS))
    if precision == "int8" and device.type != "cpu":
        raise RunError(
            f"precision int8 is for a CPU, not for {device.type}", "Use bf16 there, or device cpu."
        )


#: The most tokens of a batch that a model answers: of any, and for each thread of a CPU, where what
#: a layer makes of them should stay in the processor's cache.
BATCH_TOKENS, THREAD_TOKENS = 8192, 1024


def usual_batch_tokens(device: torch.device) -> int:
    """How many tokens a model answers at a time where nobody asks for another number."""
    if device.type != "cpu":
        return BATCH_TOKENS
    return min(BATCH_TOKENS, THREAD_TOKENS * torch.get_num_threads())


def inference_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Context for the forward passes of a model whose weights stay as they are."""
    if device.type == "cpu" and precision in ("auto", "float32"):
        return packing("float32")
    return precision_context(device, precision)


def writing_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Context for passes of few tokens by weights that are read where they lie.

    A large model writes, and has to be in memory once only.
    """
    if device.type == "cpu" and precision in ("auto", "float32"):
        return packing("plain")
    return precision_context(device, precision)


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Context for forward passes: bf16 autocast for `bf16`, and for `auto` on CUDA.

    `int8` is for passes without gradients: large matrices are multiplied in 8 bits.
    """
    if precision == "int8":
        return packing("int8")
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context that puts a model into evaluation mode; each module's own mode returns afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
