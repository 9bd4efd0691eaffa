"""The ability of tasks that say how sure a model is of its answer, which attributions are of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from pretune.data.batch import PackedBatch


class HasCertainty(ABC):
    """Ability: says how sure the model is of its answer, in a number that has derivatives."""

    @abstractmethod
    def certainty(self, outputs: Any, batch: PackedBatch, answered: Any) -> Tensor:
        """Return how sure the model is of an answer to a batch of one sequence, a scalar.

        The log-probability of the answer, or what the answer was chosen by; of a score, itself.

        Args:
            outputs: of the model, for any input.
            batch: one sequence.
            answered: the outputs that the answer is read from.
        """
