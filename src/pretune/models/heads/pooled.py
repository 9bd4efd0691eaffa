"""What stands on top of a backbone: one module per kind of answer.

Each is the head of the transformers class of the same purpose, so that checkpoints go both ways.
Where families differ, `sequence_classifier`, `masked_lm` and `span_answerer` choose.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import PackedBatch
from pretune.models.backbone import Backbone
from pretune.models.bert import BertModel
from pretune.models.classics.common import ClassicLM, ClassicModel
from pretune.models.distilbert import EPS, DistilBertModel
from pretune.models.gpt2 import Gpt2Model
from pretune.models.heads.language import BertPreTraining, CausalLM, MaskedLM
from pretune.models.heads.token import CrfTagger, TokenClassifier
from pretune.models.layers import Dropout, Linear
from pretune.models.transformer import TransformerModel
from pretune.models.translator import Translator


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


def chooser(backbone: Backbone, dropout: float | None = None) -> nn.Module:
    """A score for each sequence, to choose one of several by: a sequence classifier of one label.

    Raises:
        ValueError: the family has no such head.
    """
    if not isinstance(backbone, BertModel | DistilBertModel):
        raise ValueError(f"a {backbone.config.model_type} has no multiple-choice head")
    return sequence_classifier(backbone, 1, dropout)


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


def translator(backbone: Backbone) -> Translator:
    """The next token of a target.

    Raises:
        ValueError: the backbone has no encoder and decoder.
    """
    if not isinstance(backbone, TransformerModel):
        raise ValueError(f"a {backbone.config.model_type} has no translation head")
    return Translator(backbone)


#: Heads by the names `hub/keys.py` gives them: (backbone, number of labels) -> model.
HEADS: dict[str, Callable[[Backbone, int], nn.Module]] = {
    "sequence_classification": sequence_classifier,
    "token_classification": token_classifier,
    "token_classification_crf": lambda backbone, n: token_classifier(backbone, n, None, 1.0),
    "question_answering": lambda backbone, _: span_answerer(backbone),
    "multiple_choice": lambda backbone, _: chooser(backbone),
    "masked_lm": lambda backbone, _: masked_lm(backbone),
    "pretraining": lambda backbone, _: pretraining(backbone),
    "causal_lm": lambda backbone, _: causal_lm(backbone),
    "translation": lambda backbone, _: translator(backbone),
}
