"""Memory in large pages, where the system has them: for weights that are read again and again.

A processor remembers where some thousand pages lie. Weights of a model are on more pages of 4 KiB
than that, and each miss costs as much as several products; on pages of 2 MiB they are on a few
dozen.
"""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

#: The size of a large page, and of a block of them that tensors are put into.
_PAGE, _BLOCK = 1 << 21, 1 << 25
#: Tensors begin at multiples of this, as the vector units and the caches like it.
_ALIGNED = 64
#: Smaller weights, in bytes, stay where they are.
_SMALLEST = 1 << 16
#: Says whether the system has large pages.
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: What is left of the block in use. A block lives as long as any tensor in it.
_rest = [torch.empty(0, dtype=torch.uint8)]
_lock = threading.Lock()


def in_large_pages(values: Tensor) -> Tensor:
    """A contiguous copy of a CPU tensor, in large pages on Linux."""
    copy = _take(values.numel() * values.element_size()).view(values.dtype).view(values.shape)
    return copy.copy_(values.detach())


def _take(size: int) -> Tensor:
    """`size` bytes of a block."""
    taken = -(-size // _ALIGNED) * _ALIGNED
    with _lock:
        # What is too large for what is left begins a new block, which nothing else may fit into.
        if taken > len(_rest[0]):
            _rest[0] = _block(max(taken, _BLOCK))
        part, _rest[0] = _rest[0][:size], _rest[0][taken:]
    return part


def _block(size: int) -> Tensor:
    """Fresh memory that begins with a page and asks for large ones."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    # A page more than asked for, as the system may begin anywhere. Private memory: what processes
    # could share has large pages only where the system's administrator says so.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, -(-size // _PAGE) * _PAGE + _PAGE, flags=private)
    # A system without large pages refuses; small ones hold the same.
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(memory, dtype=torch.uint8)
    return block[-block.data_ptr() % _PAGE :]


def settle(model: nn.Module) -> None:
    """Move the larger weights of a model on the CPU into large pages, where the system has them.

    They keep their numbers and shapes, and the memory that they had is free. A model that writes
    reads all of them for every token.
    """
    if not _has_large_pages():
        return
    for weight in model.parameters():
        size = weight.numel() * weight.element_size()
        known = getattr(weight, "settled_at", None) == weight.data_ptr()
        if size < _SMALLEST or known or weight.device.type != "cpu":
            continue
        if weight.is_contiguous():
            weight.data = in_large_pages(weight.data)
            weight.settled_at = weight.data_ptr()  # type: ignore[attr-defined]


def _has_large_pages() -> bool:
    """Whether this system gives them to who asks."""
    try:
        text = _SETTING.read_text(encoding="ascii")
    except OSError:
        return False
    return "[never]" not in text and hasattr(mmap, "MADV_HUGEPAGE")
