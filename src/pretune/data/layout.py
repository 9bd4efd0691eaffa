"""Where the sequences of a packed batch begin and end, and which of its tokens are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a packed batch begin and end.

    Attributes:
        lengths: tokens of each sequence, on the host, so that planning never waits for a GPU.
        cu_seqlens: `[B + 1]` int32, on the batch's device: where sequence i begins, and then T.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    # Plans derived from the lengths (see models/attention.py) are kept as long as the layout is:
    # every layer of a model asks for the same one.
    plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """The layout of sequences of these lengths."""
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(tuple(int(n) for n in lengths), torch.from_numpy(ends).to(device))

    @property
    def max_seqlen(self) -> int:
        """The longest sequence, in tokens."""
        return max(self.lengths, default=0)

    @cached_property
    def total(self) -> int:
        """T, the number of tokens."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each sequence begins, on the host."""
        return tuple(int(n) for n in np.cumsum([0, *self.lengths[:-1]])) if self.lengths else ()


@dataclass(frozen=True)
class Selection:
    """Some of the tokens of a packed batch: those whose last hidden state somebody reads.

    Attributes:
        rows: `[R]` int64: which rows of the batch, in ascending order.
        layout: how many of them belong to each sequence.
    """

    rows: Tensor
    layout: Layout
