"""A label for each token, and fields of labels on top."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pretune.data.batch import PackedBatch, Selection
from pretune.models.backbone import Backbone
from pretune.models.heads.crf import Crf, CrfWeights, log_likelihood
from pretune.models.layers import Dropout, Linear


class TokenClassifier(nn.Module):
    """Dropout and a linear map on every token: labels of tokens, or the ends of an answer.

    For `...ForTokenClassification`, and with two outputs for `...ForQuestionAnswering`.
    """

    def __init__(self, backbone: Backbone, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = Dropout(dropout)
        self.classifier = Linear(backbone.config.size("hidden_size"), num_labels)
        backbone.init_weights(self.classifier)

    def forward(self, batch: PackedBatch, *, select: Selection | None = None) -> Tensor:
        """Logits `[T, num_labels]`, or `[R, num_labels]` for the selected tokens alone."""
        hidden = self.backbone(batch, select=select).last_hidden_state
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits


@dataclass(frozen=True)
class TagScores:
    """What a tagger gives for the words of a batch.

    Attributes:
        logits: `[W, num_labels]`: the emissions, where there is a field.
        likelihood: `[B]`: log p of the labels of each sequence, where they were given.
        field: of a `CrfTagger`, without a graph.
    """

    logits: Tensor
    likelihood: Tensor | None = None
    field: CrfWeights | None = None


class CrfTagger(TokenClassifier):
    """A conditional random field on the labels of words (Lample et al. 2016, section 2.2)."""

    def __init__(
        self, backbone: Backbone, num_labels: int, dropout: float, rate: float = 1.0
    ) -> None:
        super().__init__(backbone, num_labels, dropout)
        self.crf = Crf(num_labels, rate)

    def forward(  # type: ignore[override]
        self,
        batch: PackedBatch,
        *,
        select: Selection,
        labels: Tensor | None = None,
        begins: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> TagScores:
        """The emissions, and how likely the labels are.

        Args:
            batch: of sentences or parts of such.
            select: a token for each of W words.
            labels: `[W]`.
            begins: `[B]` bool: whether a sequence's words are the first of its sentence.
            ends: `[B]` bool: whether they are the last.
        """
        logits = super().forward(batch, select=select)
        likelihood = None
        if labels is not None:
            lengths = select.layout.lengths
            likelihood = log_likelihood(logits, labels, lengths, self.crf.weights, begins, ends)
        return TagScores(logits, likelihood, self.crf.weights.detached())
