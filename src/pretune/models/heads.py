"""What stands on top of a backbone: one module per kind of answer."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from pretune.data import PackedBatch
from pretune.models.bert import BertModel
from pretune.models.layers import Dropout, Linear


class SequenceClassifier(nn.Module):
    """One label for the whole sequence: dropout and a linear map on the pooled output.

    The head of BERT's section 4.1 and of transformers' `BertForSequenceClassification`.

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

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits `[B, num_labels]`, in the order of the batch's sequences."""
        pooled = self.backbone(batch, select=batch.first).pooler_output
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits
