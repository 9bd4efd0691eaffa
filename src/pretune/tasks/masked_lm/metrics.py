"""How well masked tokens are guessed, and pairs told apart."""

from __future__ import annotations

import math
from typing import Any, Self

from torch import Tensor

from pretune.data.batch import PackedBatch
from pretune.models.heads.language import PreTrainingOutput
from pretune.models.heads.vocabulary import Scores

#: What masked tokens are counted under in a batch: the token that was there, or -1 where none is.
TARGET = "masked"
#: At a gap whose token nobody knows.
UNKNOWN = -2
#: Of a pair: whether its second segment is another than the one that follows the first.
NEXT = "next"


#: Logits where nobody knows what is masked, else scores; or those and the pairs' logits.
Outputs = Tensor | Scores | PreTrainingOutput


def token_scores(outputs: Outputs) -> Scores:
    """Of the masked tokens, of one head or of two.

    Raises:
        ValueError: there are gaps whose token nobody knows.
    """
    found = outputs.predictions if isinstance(outputs, PreTrainingOutput) else outputs
    if isinstance(found, Tensor):
        raise ValueError("gaps whose token nobody knows can be filled, not scored")
    return found


class MaskLmMetrics:
    """Over all masked tokens whose truth is known, and all pairs.

    Args:
        perplexity: what exp of the mean loss is called.
        pairs: `nsp` or `sop`, or `none`.
    """

    def __init__(self, perplexity: str = "perplexity", pairs: str = "none") -> None:
        self._perplexity, self._kind = perplexity, pairs
        self._loss, self._right, self._count = 0.0, 0, 0
        self._pairs_right, self._pairs = 0, 0

    def update(self, outputs: Outputs, batch: PackedBatch) -> None:
        """Take in the scores of masked tokens, or those and what the other head gives."""
        scores = token_scores(outputs)
        self._loss += float(scores.cross_entropy)
        self._right += scores.right
        self._count += scores.count
        if isinstance(outputs, PreTrainingOutput):
            truth = batch.targets[NEXT]
            self._pairs_right += int((outputs.seq_relationship_logits.argmax(-1) == truth).sum())
            self._pairs += len(truth)

    def merge(self, other: Self) -> None:
        """Add another's sums."""
        self._loss += other._loss
        self._right += other._right
        self._count += other._count
        self._pairs_right += other._pairs_right
        self._pairs += other._pairs

    def result(self) -> dict[str, float]:
        """Exp of the mean negative log-probability; `accuracy`; `nsp_accuracy` (or `sop_`)."""
        count = max(self._count, 1)
        found = {
            self._perplexity: math.exp(min(self._loss / count, 700.0)),
            "accuracy": self._right / count,
        }
        if self._kind != "none":
            found[f"{self._kind}_accuracy"] = self._pairs_right / max(self._pairs, 1)
        return found

    def details(self) -> dict[str, Any]:
        """How many tokens, and pairs, were asked for."""
        pairs = {} if self._kind == "none" else {"pairs": self._pairs}
        return {"tokens": self._count, **pairs}
