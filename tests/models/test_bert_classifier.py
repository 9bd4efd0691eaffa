from __future__ import annotations

import pytest
import torch

from pretune.data.batch import PackedBatch
from pretune.models.bert import BertClassifier, BertConfig, BertModel

CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
    hidden_dropout_prob=0.25,
    initializer_range=0.5,
)


def build(dropout: float | None = None) -> BertClassifier:
    torch.manual_seed(0)
    model = BertClassifier(BertModel(CONFIG), 3, dropout)
    model.backbone.init_weights(model)
    return model


def test_logits_are_a_linear_map_of_the_pooled_output(matmul):
    model, batch = build().eval(), PackedBatch.of([[1, 2, 3], [4], [5, 6]])
    pooled = model.backbone(batch).pooler_output
    expected = pooled @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-5)
    assert model(batch).shape == (3, 3)


def test_logits_are_in_the_order_of_the_batch():
    model, ids = build().eval(), [[1, 2, 3], [4], [5, 6]]
    straight, reverse = model(PackedBatch.of(ids)), model(PackedBatch.of(ids[::-1]))
    torch.testing.assert_close(straight, reverse.flip(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("given", "used"), [(None, 0.25), (0.0, 0.0), (0.5, 0.5)])
def test_the_dropout_before_the_last_layer(given, used):
    model = build(given)
    assert model.dropout.p == used
    model.backbone.eval()
    batch = PackedBatch.of([[1, 2, 3], [4], [5, 6]] * 5)
    assert torch.equal(model(batch), model(batch)) == (used == 0)
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_a_backbone_without_pooler_is_refused():
    with pytest.raises(ValueError, match="pooler"):
        BertClassifier(BertModel(CONFIG, pooler=False), 2)
