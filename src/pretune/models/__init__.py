"""Models one can read: each family is one file, equal in numbers to the published one."""

from pretune.models.attention import attention, attention_maps, attention_reference
from pretune.models.bert import BertConfig, BertModel
from pretune.models.heads import SequenceClassifier
from pretune.models.layers import ModelOutput

__all__ = [
    "BertConfig",
    "BertModel",
    "ModelOutput",
    "SequenceClassifier",
    "attention",
    "attention_maps",
    "attention_reference",
]
