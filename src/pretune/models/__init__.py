"""Models one can read: each family is one file, equal in numbers to the published one."""

from pretune.models.attention import attention, attention_maps, attention_reference
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.bert import BertConfig, BertModel
from pretune.models.config import ModelConfig, brief
from pretune.models.distilbert import DistilBertConfig, DistilBertModel
from pretune.models.gpt2 import Gpt2Config, Gpt2Model
from pretune.models.heads import (
    HEADS,
    BertPreTraining,
    CausalLM,
    MaskedLM,
    PooledHead,
    PreTrainingOutput,
    SequenceClassifier,
    TokenClassifier,
    masked_lm,
    pretraining,
    sequence_classifier,
    span_answerer,
    token_classifier,
)
from pretune.models.layers import ModelOutput
from pretune.models.sizes import SIZES
from pretune.models.vocabulary import resize_vocabulary

__all__ = [
    "HEADS",
    "SIZES",
    "Backbone",
    "BertConfig",
    "BertModel",
    "BertPreTraining",
    "CausalLM",
    "DistilBertConfig",
    "DistilBertModel",
    "Embeddings",
    "Gpt2Config",
    "Gpt2Model",
    "MaskedLM",
    "ModelConfig",
    "ModelOutput",
    "PooledHead",
    "PreTrainingOutput",
    "SequenceClassifier",
    "TokenClassifier",
    "attention",
    "attention_maps",
    "attention_reference",
    "brief",
    "masked_lm",
    "pretraining",
    "resize_vocabulary",
    "sequence_classifier",
    "span_answerer",
    "token_classifier",
]
