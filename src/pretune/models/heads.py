"""What stands on top of a backbone: one module per kind of answer.

Each is the head of the transformers class of the same purpose, so that checkpoints go both ways.
Where families differ, `sequence_classifier`, `masked_lm` and `span_answerer` choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from pretune.data import Layout, PackedBatch, Selection
from pretune.models import ops
from pretune.models.backbone import Backbone
from pretune.models.bert import BertModel
from pretune.models.cache import KVCache
from pretune.models.classic import ClassicLM, ClassicModel
from pretune.models.distilbert import EPS, DistilBertModel
from pretune.models.gpt2 import Gpt2Model
from pretune.models.layers import ACTIVATIONS, Dropout, Linear
from pretune.models.scores import Scores, score_tokens
from pretune.models.tagger import CrfTagger, TokenClassifier


class PooledHead(nn.Module):
    """A head that reads one vector a sequence.

    In two steps, so that what a frozen backbone gives can be kept and read again.
    """

    backbone: Backbone

    def read(self, batch: PackedBatch) -> Tensor:
        """`[B, hidden]`: what the head sees of the backbone."""
        raise NotImplementedError

    def answer(self, pooled: Tensor) -> Tensor:
        """`[B, hidden]` to logits `[B, num_labels]`."""
        raise NotImplementedError

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits `[B, num_labels]`, in the order of the batch's sequences."""
        return self.answer(self.read(batch))


class SequenceClassifier(PooledHead):
    """BERT's: dropout and a linear map on the pooled output (section 4.1 of the paper).

    Raises:
        ValueError: the backbone has no pooler.
    """

    def __init__(self, backbone: BertModel, num_labels: int, dropout: float | None = None) -> None:
        super().__init__()
        if backbone.pooler is None:
            raise ValueError("a sequence classifier reads the pooled output: pooler=True")
        config = backbone.config
        self.backbone = backbone
        self.dropout = Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = Linear(config.hidden_size, num_labels)
        backbone.init_weights(self.classifier)

    def read(self, batch: PackedBatch) -> Tensor:
        """The pooled output."""
        pooled: Tensor = self.backbone(batch, select=batch.first).pooler_output
        return pooled

    def answer(self, pooled: Tensor) -> Tensor:
        """Dropout and a linear map."""
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class DistilBertClassifier(PooledHead):
    """DistilBERT's: dense, ReLU, dropout and a linear map on the first token."""

    def __init__(
        self, backbone: DistilBertModel, num_labels: int, dropout: float | None = None
    ) -> None:
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self.dense = Linear(config.dim, config.dim)
        self.dropout = Dropout(config.seq_classif_dropout if dropout is None else dropout)
        self.classifier = Linear(config.dim, num_labels)
        backbone.init_weights(self.dense)
        backbone.init_weights(self.classifier)

    def read(self, batch: PackedBatch) -> Tensor:
        """The first token's last hidden state."""
        first: Tensor = self.backbone(batch, select=batch.first).last_hidden_state
        return first

    def answer(self, pooled: Tensor) -> Tensor:
        """Dense, ReLU, dropout and a linear map."""
        logits: Tensor = self.classifier(self.dropout(F.relu(self.dense(pooled))))
        return logits


class Gpt2Classifier(PooledHead):
    """GPT-2's: a linear map without bias on the last token."""

    def __init__(self, backbone: Gpt2Model, num_labels: int, dropout: float | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = Dropout(dropout or 0.0)
        self.classifier = Linear(backbone.config.n_embd, num_labels, bias=False)
        backbone.init_weights(self.classifier)

    def read(self, batch: PackedBatch) -> Tensor:
        """The last token's last hidden state."""
        last: Tensor = self.backbone(batch, select=batch.last).last_hidden_state
        return last

    def answer(self, pooled: Tensor) -> Tensor:
        """A linear map."""
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class MaskedLM(nn.Module):
    """Dense, activation, LayerNorm, then the vocabulary's own table as the output layer.

    BERT's section 3.1, task 1; the decoder is tied to the token embeddings and has a bias.
    """

    def __init__(self, backbone: Backbone, activation: str, eps: float) -> None:
        super().__init__()
        size = backbone.config.size("hidden_size")
        self.backbone = backbone
        self.transform = Linear(size, size)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(size, eps=eps)
        self.bias = nn.Parameter(
            self.transform.weight.new_zeros(backbone.config.size("vocab_size"))
        )
        backbone.init_weights(self.transform)

    def forward(self, batch: PackedBatch, *, select: Selection | None = None) -> Tensor:
        """Logits `[T, vocab]`, or `[R, vocab]` for the selected tokens alone."""
        hidden = self.backbone(batch, select=select).last_hidden_state
        return self.decode(hidden)

    def decode(self, hidden: Tensor) -> Tensor:
        """`[R, hidden]` to logits `[R, vocab]`."""
        transformed = self.norm(self.activation(self.transform(hidden)))
        return ops.linear(transformed, self.backbone.embeddings.tokens.weight, self.bias)


@dataclass(frozen=True)
class PreTrainingOutput:
    """What BERT's two pre-training tasks give.

    Attributes:
        prediction_logits: `[T, vocab]` or `[R, vocab]`.
        seq_relationship_logits: `[B, 2]`: index 0 means that the second text follows the first.
    """

    prediction_logits: Tensor
    seq_relationship_logits: Tensor


class BertPreTraining(MaskedLM):
    """BERT's two heads: masked tokens, and whether one text follows the other (section 3.1)."""

    def __init__(self, backbone: BertModel) -> None:
        super().__init__(backbone, backbone.config.hidden_act, backbone.config.layer_norm_eps)
        self.relationship = Linear(backbone.config.hidden_size, 2)
        backbone.init_weights(self.relationship)

    @overload
    def forward(self, batch: PackedBatch, *, select: Selection | None = None) -> Tensor: ...

    @overload
    def forward(
        self, batch: PackedBatch, *, select: Selection | None = None, both: Literal[True]
    ) -> PreTrainingOutput: ...

    def forward(
        self, batch: PackedBatch, *, select: Selection | None = None, both: bool = False
    ) -> Tensor | PreTrainingOutput:
        """Masked tokens alone, as `MaskedLM`; or both heads on one pass.

        Args:
            batch: for `both`, of pairs.
            select: the tokens to predict, the first of a sequence not among them; default all.
            both: what to give.
        """
        if not both:
            return super().forward(batch, select=select)
        if select is None:
            output = self.backbone(batch)
            hidden, pooled = output.last_hidden_state, output.pooler_output
        else:
            rows, order = torch.cat([batch.first.rows, select.rows]).sort()
            layout = Layout.of([1 + count for count in select.layout.lengths], rows.device)
            found = self.backbone(batch, select=Selection(rows, layout)).last_hidden_state
            first = order < batch.num_sequences
            hidden = found[~first]
            pooled = self.backbone.pool(found[first], batch, batch.first)
        return PreTrainingOutput(self.decode(hidden), self.relationship(pooled))


class CausalLM(nn.Module):
    """The next token, by the vocabulary's own table as the output layer, without bias.

    A `LanguageModel`: with `start` and `step` it generates, keeping keys and values in between.
    """

    def __init__(self, backbone: Gpt2Model) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        **how: float,
    ) -> Tensor | Scores:
        """What follows each token.

        Args:
            batch: of texts.
            select: only what follows these tokens.
            labels: `[T]` what does follow: score that, instead of giving all logits.
            how: options of `score_tokens`.

        Returns:
            logits `[T, vocab]`, or `[R, vocab]` of the selected tokens; with `labels` the scores.
        """
        hidden = self.backbone(batch, select=select).last_hidden_state
        table = self.backbone.embeddings.tokens.weight
        if labels is not None:
            return score_tokens(hidden, table, None, labels, **how)  # type: ignore[arg-type]
        return ops.linear(hidden, table)

    def _decode(self, hidden: Tensor) -> Tensor:
        return ops.linear(hidden, self.backbone.embeddings.tokens.weight)

    @property
    def context_length(self) -> int:
        """As `LanguageModel`'s: the table of positions ends there."""
        return self.backbone.config.size("max_position_embeddings")

    @property
    def vocab_size(self) -> int:
        """As `LanguageModel`'s."""
        return self.backbone.config.size("vocab_size")

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KVCache]:
        """As `LanguageModel.start`: one pass over all prompts, packed."""
        cache = KVCache(len(self.backbone.layers))
        batch = PackedBatch.of(prompts).to(self.backbone.embeddings.tokens.weight.device)
        output = self.backbone(batch, select=batch.last, cache=cache)
        cache.lengths = list(batch.layout.lengths)
        return self._decode(output.last_hidden_state), cache

    def step(self, tokens: Tensor, state: KVCache) -> Tensor:
        """As `LanguageModel.step`: one row a sequence."""
        positions = state.advance(tokens.device)
        batch = PackedBatch(tokens, Layout.of([1] * len(tokens), tokens.device), positions)
        return self._decode(self.backbone(batch, cache=state).last_hidden_state)


def sequence_classifier(
    backbone: Backbone, num_labels: int, dropout: float | None = None
) -> nn.Module:
    """One label for the whole sequence, by the head of the backbone's family.

    Raises:
        ValueError: the family has no such head.
    """
    makers: dict[type[Backbone], Callable[..., nn.Module]] = {
        BertModel: SequenceClassifier,
        DistilBertModel: DistilBertClassifier,
        Gpt2Model: Gpt2Classifier,
    }
    if type(backbone) not in makers:
        raise ValueError(f"a {backbone.config.model_type} has no sequence classifier")
    return makers[type(backbone)](backbone, num_labels, dropout)


def masked_lm(backbone: Backbone) -> MaskedLM:
    """Masked tokens, by the head of the backbone's family.

    Raises:
        ValueError: the family has no such head.
    """
    if isinstance(backbone, BertModel):
        backbone.pooler = None  # as transformers' class has none
        return MaskedLM(backbone, backbone.config.hidden_act, backbone.config.layer_norm_eps)
    if isinstance(backbone, DistilBertModel):
        return MaskedLM(backbone, backbone.config.activation, EPS)
    raise ValueError(f"a {backbone.config.model_type} has no masked-LM head")


def token_classifier(
    backbone: Backbone,
    num_labels: int,
    dropout: float | None = None,
    crf_rate: float | None = None,
) -> TokenClassifier:
    """A label for each token, with the dropout of the backbone's family.

    Args:
        backbone: of the model.
        num_labels: how many there are.
        dropout: default: the model's own.
        crf_rate: for a `CrfTagger`: its field's learning rate, in those of the model.

    Raises:
        ValueError: the family has no such head.
    """
    if isinstance(backbone, BertModel):
        backbone.pooler = None
        own = backbone.config.hidden_dropout_prob
    elif isinstance(backbone, DistilBertModel):
        own = backbone.config.dropout
    else:
        raise ValueError(f"a {backbone.config.model_type} has no token-classification head")
    rate = own if dropout is None else dropout
    if crf_rate is not None:
        return CrfTagger(backbone, num_labels, rate, crf_rate)
    return TokenClassifier(backbone, num_labels, rate)


def span_answerer(backbone: Backbone) -> TokenClassifier:
    """The start and the end of an answer: two logits a token.

    Raises:
        ValueError: the family has no such head.
    """
    if isinstance(backbone, DistilBertModel):
        return TokenClassifier(backbone, 2, backbone.config.qa_dropout)
    if isinstance(backbone, BertModel):
        backbone.pooler = None
        return TokenClassifier(backbone, 2, 0.0)
    raise ValueError(f"a {backbone.config.model_type} has no question-answering head")


def causal_lm(backbone: Backbone) -> CausalLM | ClassicLM:
    """The next token.

    Raises:
        ValueError: the backbone's tokens see what follows them.
    """
    if isinstance(backbone, ClassicModel):
        return ClassicLM(backbone)
    if not isinstance(backbone, Gpt2Model):
        raise ValueError(f"a {backbone.config.model_type} has no causal-LM head")
    return CausalLM(backbone)


def pretraining(backbone: Backbone) -> BertPreTraining:
    """BERT's masked tokens and next sentence.

    Raises:
        ValueError: the backbone is not a BERT.
    """
    if not isinstance(backbone, BertModel):
        raise ValueError(f"a {backbone.config.model_type} has no pre-training heads")
    return BertPreTraining(backbone)


#: Heads by the names `hub/keys.py` gives them: (backbone, number of labels) -> model.
HEADS: dict[str, Callable[[Backbone, int], nn.Module]] = {
    "sequence_classification": sequence_classifier,
    "token_classification": token_classifier,
    "token_classification_crf": lambda backbone, n: token_classifier(backbone, n, None, 1.0),
    "question_answering": lambda backbone, _: span_answerer(backbone),
    "masked_lm": lambda backbone, _: masked_lm(backbone),
    "pretraining": lambda backbone, _: pretraining(backbone),
    "causal_lm": lambda backbone, _: causal_lm(backbone),
}
