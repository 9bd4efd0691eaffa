from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from pretune.bundle.bundle import grow_vocabulary, load, save
from pretune.data.batch import PackedBatch
from pretune.errors import DataError
from pretune.models.bert import BertConfig, BertModel
from pretune.models.families import build_head
from pretune.models.resize import resize_vocabulary
from pretune.tasks.classification.classify import Classify, ClassifyOptions

CONFIG = BertConfig(
    vocab_size=200,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)


def test_old_rows_stay_and_new_ones_are_about_their_mean() -> None:
    model = build_head(BertModel(CONFIG), "masked_lm")
    model.bias.data.normal_()
    old, bias = (
        model.backbone.embeddings.tokens.weight.detach().clone(),
        model.bias.detach().clone(),
    )
    resize_vocabulary(model, 300)
    new = model.backbone.embeddings.tokens.weight
    assert torch.equal(new[:200], old)
    assert (new[200:] - old.mean(0)).abs().max() < 1e-4
    assert torch.equal(model.bias[:200], bias)
    assert torch.allclose(model.bias[200:], bias.mean())
    assert model(PackedBatch.of([[1, 299]])).shape == (2, 300)
    assert model.backbone.config.vocab_size == 300


def test_new_rows_vary_as_the_old_ones() -> None:
    torch.manual_seed(0)
    backbone = BertModel(CONFIG)
    stretched = torch.randn(200, 8) * torch.arange(1, 9)
    backbone.embeddings.tokens.weight.data.copy_(stretched)
    resize_vocabulary(backbone, 5200)
    new = backbone.embeddings.tokens.weight[200:].double()
    expected = torch.cov(stretched.double().T, correction=0) * 1e-9
    # Sums near 1e-4 in float32: compare what is large.
    found = torch.cov(new.T)
    assert torch.allclose(found.diagonal(), expected.diagonal(), rtol=0.2)


def test_fewer_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="200 token embeddings cannot become 100"):
        resize_vocabulary(BertModel(CONFIG), 100)


def test_tokenizer_and_model_grow_together(tiny_folder: Path, tmp_path: Path) -> None:
    task = Classify(ClassifyOptions(max_length=16), ["a", "b"])
    bundle = load(tiny_folder, task=task)
    before = bundle.tokenizer.vocab_size
    assert grow_vocabulary(bundle, ["covid", "good", "云南"], 8) == 2
    (encoded,) = bundle.tokenizer.encode(["covid, Covid 云南"])
    pieces = bundle.tokenizer.tokens(encoded.ids)
    assert pieces == ["[CLS]", "covid", ",", "covid", "云南", "[SEP]"]
    rows = bundle.backbone.config.size("vocab_size")
    assert rows % 8 == 0
    assert rows >= before + 2
    save(bundle, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([encoded.ids])).logits
        found = bundle.model.eval()(PackedBatch.of([encoded.ids]))
    assert (expected - found).abs().max() < 1e-5
    assert load(tmp_path).tokenizer.encode(["covid"])[0].ids == encoded.ids[:2] + encoded.ids[-1:]


def test_an_empty_token_is_an_error(tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        grow_vocabulary(load(tiny_folder), [" "])
