"""Features that need not be in memory: what is asked of them, and those made on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from pretune.data.batch import Array, Feature, FeatureSet, PackedBatch, Repaired, Skipped


class Features(Protocol):
    """Many features, wherever they are: all that training and evaluation ask of them."""

    @property
    def lengths(self) -> Array:
        """`[N]` whole numbers: tokens of each feature."""

    @property
    def truncated(self) -> int:
        """How many features had text cut."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Records that nothing can be learned from."""

    @property
    def repaired(self) -> tuple[Repaired, ...]:
        """Records that something was put right in."""

    @property
    def choices(self) -> tuple[tuple[int, ...], ...] | None:
        """Where features are several sequences: for each feature the tokens of each."""

    @property
    def goes_on(self) -> Array:
        """`[N]` whether a feature goes on in the record that the one before it is of."""

    def __len__(self) -> int: ...

    def sequences(self, which: Array) -> Array:
        """Tokens of each sequence of some features: more of them where features are several."""

    def batch(self, which: Array, *, sort: bool = True) -> PackedBatch:
        """Pack some features, shortest first, or in the given order.

        Many threads may ask at once.
        """

    def record(self, index: int) -> int:
        """The record that a feature came from."""

    def fingerprint(self) -> str:
        """A SHA-256 of all that can be learned from these features, in their order."""


@dataclass(frozen=True)
class MadeFeatures:
    """Features that are made each time they are asked for, and kept nowhere.

    Attributes:
        lengths: `[N]` tokens of each feature.
        make: a feature by its number; the same at each time, in any thread.
        digest: a SHA-256 of all that the features are made from, and how.
        truncated: how many features had text cut.
        begins: `[N]` whether a feature is the first of its record; None: each is.
        skipped: records that nothing can be learned from.
        choices: none: a feature is one sequence.
        repaired: records that something was put right in.
    """

    lengths: Array
    make: Callable[[int], Feature]
    digest: str
    truncated: int = 0
    begins: Array | None = None
    skipped: tuple[Skipped, ...] = ()
    choices: None = None
    repaired: tuple[Repaired, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, which: Array, *, sort: bool = True) -> PackedBatch:
        """Pack some features; see `FeatureSet.batch`."""
        made = FeatureSet.of(self.make(int(index)) for index in which)
        batch = made.batch(np.arange(len(which)), sort=sort)
        index = np.asarray(which, dtype=np.int64)[batch.index.numpy()]
        return replace(batch, index=torch.from_numpy(index))

    @property
    def goes_on(self) -> Array:
        """`[N]` whether a feature goes on in the record that the one before it is of."""
        return np.zeros(len(self), np.bool_) if self.begins is None else ~self.begins

    def sequences(self, which: Array) -> Array:
        """Tokens of each sequence of some features, which are one each."""
        found: Array = self.lengths[which]
        return found

    def record(self, index: int) -> int:
        """The record that a feature came from."""
        return self.make(index).record

    def fingerprint(self) -> str:
        """A SHA-256 of all that can be learned from these features, in their order."""
        return self.digest
