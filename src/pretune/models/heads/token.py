"""Heads that give a label for each token or word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch, Selection
from pretune.models.backbone import Backbone
from pretune.models.family import HeadLayout, rules
from pretune.models.heads.crf import Crf, CrfWeights, log_likelihood
from pretune.models.heads.replaced import Detector
from pretune.models.layers import Dropout, Linear

#: Parameters of a CRF, stored under our names: transformers has no CRF and leaves them out.
CRF_RULES = rules(*((name, name) for name in ("crf.transitions", "crf.start", "crf.end")))


class TokenClassifier(nn.Module):
    """Dropout and a linear map on every token: labels of tokens, or the ends of an answer.

    Args:
        backbone: loses its pooler, as transformers' classes for tokens have none.
        labels: outputs for each token.
        dropout: before the linear map; default: the backbone's own.
        transform: maps the hidden states `[T, hidden]` before that; default: nothing does.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: int,
        dropout: float | None = None,
        transform: nn.Module | None = None,
    ) -> None:
        super().__init__()
        backbone.drop_pooler()
        self.backbone = backbone
        self.transform = transform
        self.dropout = Dropout(backbone.config.hidden_dropout if dropout is None else dropout)
        self.classifier = Linear(backbone.config.size("hidden_size"), labels)
        backbone.init_weights(self.classifier)

    def forward(self, batch: PackedBatch, *, select: Selection | None = None) -> Tensor:
        """Give logits `[T, labels]`, or `[R, labels]` for the selected tokens alone."""
        hidden = self.backbone(batch, select=select).last_hidden_state
        if self.transform is not None:
            hidden = self.transform(hidden)
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits


@dataclass(frozen=True)
class TagScores:
    """What a tagger computes for the words of a batch."""

    logits: Tensor  # [W, labels]; with a CRF, its emissions
    likelihood: Tensor | None = None  # [B]: log p of the labels of each sequence, if given
    field: CrfWeights | None = None  # the weights of the CRF, without a graph


class CrfTagger(TokenClassifier):
    """A conditional random field over the labels of words (Lample et al. 2016, section 2.2).

    `crf_rate` is the learning rate of the CRF's weights, as a multiple of the model's.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: int,
        dropout: float | None = None,
        crf_rate: float = 1.0,
        transform: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, labels, dropout, transform)
        self.crf = Crf(labels, crf_rate)

    def forward(  # type: ignore[override]
        self,
        batch: PackedBatch,
        *,
        select: Selection,
        labels: Tensor | None = None,
        begins: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> TagScores:
        """Compute the emissions, and how likely the given labels are.

        Args:
            batch: sentences, or parts of sentences.
            select: one token for each of W words.
            labels: `[W]`.
            begins: `[B]` bool: whether a sequence starts with the first word of its sentence.
            ends: `[B]` bool: whether it stops with the last word of its sentence.
        """
        logits = super().forward(batch, select=select)
        likelihood = None
        if labels is not None:
            lengths = select.layout.lengths
            likelihood = log_likelihood(logits, labels, lengths, self.crf.weights, begins, ends)
        return TagScores(logits, likelihood, self.crf.weights.detached())


class TokenDetector(Detector, TokenClassifier):  # type: ignore[misc]
    """Tells replaced tokens apart by a head for the classes of tokens, with one output.

    Only ELECTRA has a class of its own for that in transformers.
    """

    def __init__(self, backbone: Backbone, labels: int = 1, *args: Any, **options: Any) -> None:
        TokenClassifier.__init__(self, backbone, 1, *args, **options)

    @override
    def judge(self, batch: PackedBatch) -> Tensor:
        logits = TokenClassifier.forward(self, batch)
        return logits[:, 0]


def token_heads(
    name: str,
    answer_dropout: Callable[[Any], float] = lambda config: 0.0,
    *,
    published: str = "classifier",
    answer_prefix: str | None = None,
    masked: bool = True,
) -> dict[str, HeadLayout]:
    """The heads for tokens that every encoder has, as transformers stores them.

    Args:
        name: first part of the names of transformers' classes.
        answer_dropout: the dropout before the ends of an answer, by the backbone's config.
        published: the published name of the linear map on tokens.
        answer_prefix: the prefix of the backbone in a model for answers, if it has another there.
        masked: whether the family has a head for masked tokens, too: a smaller model of it can then
            replace tokens, and one with this head tells which were replaced.
    """
    tokens, linear = f"{name}ForTokenClassification", rules(("classifier", published))
    replaced = {"replaced_tokens": HeadLayout(tokens, TokenDetector, linear)}
    return {
        **(replaced if masked else {}),
        "token_classification_crf": HeadLayout(tokens, CrfTagger, (*linear, *CRF_RULES)),
        "token_classification": HeadLayout(tokens, TokenClassifier, linear),
        "question_answering": HeadLayout(
            f"{name}ForQuestionAnswering",
            lambda backbone, labels: TokenClassifier(backbone, 2, answer_dropout(backbone.config)),
            rules(("classifier", "qa_outputs")),
            prefix=answer_prefix,
        ),
    }
