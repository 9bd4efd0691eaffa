"""DeBERTa-v2 and v3: scores that depend on distances, beside transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from pretune.bundle.bundle import load
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.save import save_model
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.deberta import MODERN, DebertaConfig, bucket_table
from pretune.models.families import FAMILIES, build_head
from tests.models.encoders import SIZES, saved

TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [9, 8], [11, 12, 13]]
V3: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "no buckets, texts longer than the largest distance": {
        "relative_attention": True,
        "pos_att_type": "c2p|p2c",
        "max_relative_positions": 5,
    },
    "own matrices for distances": {**V3, "share_att_key": False, "norm_rel_ebd": "none"},
    "c2p": {**V3, "pos_att_type": ["c2p"], "share_att_key": False},
    "p2c": {**V3, "pos_att_type": ["p2c"], "share_att_key": False},
    "nothing of distances but the scale": {"relative_attention": False, "pos_att_type": ["c2p"]},
    "no kind of score": {"relative_attention": True},
    "positions, segments and narrow embeddings": {
        **V3,
        "position_biased_input": True,
        "type_vocab_size": 2,
        "embedding_size": 6,
    },
    "a convolution beside the first layer": {**V3, "conv_kernel_size": 3, "conv_act": "gelu"},
    "a wide convolution in groups": {**V3, "conv_kernel_size": 5, "conv_groups": 2},
    "as many buckets as distances": {**V3, "position_buckets": 64, "max_relative_positions": 20},
}


def theirs_padded(model: Any, texts: list[list[int]]) -> list[Tensor]:
    """Transformers' last hidden states of a padded batch, without the padding."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    hidden = model(ids, attention_mask=mask).last_hidden_state
    return [own[: len(text)] for own, text in zip(hidden, texts, strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n != "own matrices for distances" else [])
        for n in VARIANTS
    ],
)
@torch.no_grad()
def test_a_packed_batch_equals_a_padded_one(name: str, tmp_path: Path) -> None:
    theirs, _ = saved(tmp_path, "DebertaV2Model", **VARIANTS[name])
    ours = load(tmp_path).backbone
    batch = PackedBatch.of(TEXTS)
    expected = torch.cat(theirs_padded(theirs, TEXTS))
    assert (ours(batch).last_hidden_state - expected).abs().max() < 1e-5
    # Some rows of the last layer alone, which are not the last of their texts.
    some = batch.where(torch.arange(18) % 4 == 1)
    assert (ours(batch, select=some).last_hidden_state - expected[some.rows]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("buckets", "largest"),
    [(4, 20), pytest.param(256, 512, marks=pytest.mark.slow), (-1, 512), (7, 9), (64, 20)],
)
def test_buckets_are_those_of_transformers(buckets: int, largest: int) -> None:
    distance = torch.arange(600)
    expected = distance
    if buckets > 0:
        expected = make_log_bucket_position(distance, buckets, largest).long()
    assert torch.equal(bucket_table(600, buckets, largest), expected)


@torch.no_grad()
def test_the_newer_head_for_masked_tokens_both_ways(tmp_path: Path) -> None:
    theirs, _ = saved(tmp_path / "theirs", "DebertaV2ForMaskedLM", **V3, legacy=False)
    bundle = load(tmp_path / "theirs")
    assert bundle.report is not None
    assert (bundle.report.missing, bundle.report.unexpected) == ((), ())
    expected = theirs(torch.tensor([TEXTS[0]])).logits[0]
    found = bundle.model(PackedBatch.of(TEXTS[:1]))
    assert (found - expected).abs().max() < 1e-5
    (tmp_path / "ours").mkdir()
    save_model(bundle.model, tmp_path / "ours", bundle.family, "masked_lm")
    again = transformers.DebertaV2ForMaskedLM.from_pretrained(tmp_path / "ours")
    assert (again(torch.tensor([TEXTS[0]])).logits[0] - expected).abs().max() < 1e-5
    assert bundle.family is MODERN


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    entries = {**V3, "share_att_key": False, "vocab_size": 20}
    model = build_head(
        FAMILIES["deberta-v2"].backbone(DebertaConfig.from_dict({**SIZES, **entries})),
        "sequence_classification",
        3,
    ).train()
    model(PackedBatch.of(TEXTS)).logsumexp(1).sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # A shift of all keys changes no softmax, so the biases of keys have no gradient but noise.
    assert still <= {f"backbone.layers.{i}.attention.position_query.bias" for i in range(2)}


@pytest.mark.parametrize(
    "entries",
    [
        {"conv_kernel_size": 2},
        {"pos_att_type": ["p2p"]},
        {"pos_att_type": 3},
        {"position_buckets": 1},
        {"position_buckets": 4, "max_relative_positions": 3},  # transformers divides by log(1)
        {"position_buckets": 10**9},
        {"norm_rel_ebd": ["x"]},
        {"pooler_hidden_act": "mish"},
        {"pooler_hidden_size": 3},
        {"attention_head_size": 3},
        {"share_att_key": 1},
        {"cls_dropout": 2},
        {"type_vocab_size": -1},
        {"embedding_size": 0},
    ],
)
def test_entries_that_are_refused_by_name(entries: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(entries))):
        DebertaConfig.from_dict({**SIZES, **V3, **entries})


def test_a_v3_release_loads_without_its_pre_training_heads(tmp_path: Path) -> None:
    theirs, _ = saved(tmp_path, "DebertaV2ForMaskedLM", **V3, legacy=False)
    known = FAMILIES["deberta-v2"]
    config = DebertaConfig.from_dict(theirs.config.to_dict())
    _, report = load_into(
        lambda: known.build(config), open_weights(tmp_path), tmp_path, known, "backbone"
    )
    assert report.missing == ()
    assert {name.partition(".")[0] for name in report.unexpected} == {"lm_predictions"}
    assert report.unknown == ()


def test_published_sizes() -> None:
    family = FAMILIES["deberta-v2"]
    config = DebertaConfig.from_dict(family.presets["deberta-v3-base"])
    with torch.device("meta"):
        ours = family.build(config)
        theirs = transformers.DebertaV2Model(transformers.DebertaV2Config(**config.to_dict()))
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts == [183_831_552] * 2
