"""The abilities of tasks whose models can learn from a teacher, and how outputs are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import PackedBatch, Selection
from pretune.data.records import Records
from pretune.models.heads.vocabulary import Scores, SoftTargets


@dataclass(frozen=True)
class Comparison:
    """How a student's outputs differ from a teacher's, term by term of the loss.

    Attributes:
        divergence: `[N]` with its graph.
        agreeing: `[N]` from 0 to 1: whether both give the same answer.
        scale: what the divergence is multiplied by in the loss: T^2, which keeps its gradient as
            large as that of the labels (Hinton et al. 2015, section 2), or 1 for numbers.
    """

    divergence: Tensor
    agreeing: Tensor
    scale: float


class Teachable(ABC):
    """Ability: its outputs can be learned from those of a teacher."""

    #: Whether an output belongs to a record as a whole: its teacher may then have another tokenizer
    #: and another `max_length`, and records need no label.
    by_record: ClassVar[bool] = False
    #: The type in which what `soften` gives is kept on disk.
    soft_type: ClassVar[torch.dtype] = torch.float16

    @abstractmethod
    def soften(self, outputs: Any, batch: PackedBatch, temperature: float) -> Tensor:
        """Turn a teacher's outputs into what a student is compared with.

        Args:
            outputs: of `forward`.
            batch: of the outputs.
            temperature: divides the logits.

        Returns:
            `[B, C]` or `[T, C]` float32, by feature or by token; a mean over several teachers is of
            the same kind.
        """

    @abstractmethod
    def compare(
        self, outputs: Any, soft: Tensor, batch: PackedBatch, temperature: float
    ) -> Comparison:
        """Compare a student's outputs with what `soften` gave for the same batch.

        There is one term for each that `loss` counts, whether it has a label or not.
        """

    def terms(self, batch: PackedBatch) -> Tensor:
        """Return `[B]`: how many terms of the loss each feature has."""
        return torch.ones(len(batch.index), device=batch.tokens.device)


class TeachableRecord(Teachable):
    """Ability: one vector of outputs for each record; records without a label are welcome."""

    by_record: ClassVar[bool] = True
    #: Whether records may lack their label; set where there is a teacher.
    unlabelled: bool = False

    @abstractmethod
    def has_label(self, records: Records, row: int) -> bool:
        """Whether a record has all of what is learned from it."""

    @abstractmethod
    def no_label(self) -> dict[str, Any]:
        """Return the targets of a record without a label, by name."""


class TeachableTokens(ABC):
    """Ability: scores tokens of a vocabulary; its `forward` takes `soft`, a teacher's view."""

    @abstractmethod
    def scored_tokens(self, batch: PackedBatch) -> Selection | None:
        """Return the tokens of a batch whose hidden states are scored; None: all."""

    @abstractmethod
    def token_scores(self, outputs: Any) -> Scores:
        """Return the scores in the outputs of `forward`."""

    def terms(self, batch: PackedBatch) -> Tensor:
        """Return `[S]`: how many tokens are scored in each sequence."""
        select = self.scored_tokens(batch)
        lengths = (batch if select is None else select).layout.lengths
        return torch.tensor(lengths, dtype=torch.float32, device=batch.tokens.device)


def compare_classes(logits: Tensor, soft: Tensor, temperature: float) -> Comparison:
    """Compare a softmax over classes: KL(teacher || student) of each row.

    Args:
        logits: `[N, C]` of the student.
        soft: `[N, C]` the teacher's probabilities at the temperature.
        temperature: T.
    """
    p = soft / soft.sum(-1, keepdim=True)
    far = SoftTargets(p, None, temperature, 1.0, 0.0).divergence(logits.float())
    agreeing = (logits.argmax(-1) == p.argmax(-1)).float()
    return Comparison(far, agreeing, temperature**2)


def compare_flags(logits: Tensor, soft: Tensor, temperature: float) -> Comparison:
    """Compare the yes or no of each label: KL of each.

    Args:
        logits: `[N, K]` of the student.
        soft: `[N, K]` the teacher's probabilities at the temperature.
        temperature: T.
    """
    # The cross-entropy less the entropy of the teacher.
    scaled = logits.float() / temperature
    crossed = F.binary_cross_entropy_with_logits(scaled, soft, reduction="none")
    entropy = -torch.xlogy(soft, soft) - torch.xlogy(1 - soft, 1 - soft)
    agreeing = ((logits > 0) == (soft > 0.5)).float()
    return Comparison((crossed - entropy).flatten(), agreeing.flatten(), temperature**2)
