from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.eurobert import EuroBertConfig, EuroBertMaskedLM, EuroBertModel
from pretune.models.families import FAMILIES, build_head, preset
from pretune.models.resize import resize_vocabulary
from tests.parity.families import difference, our_logits, ours_of, published, their_logits

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
IDS = [[1, 4, 8, 2, 9], [5], [2, 7]]


@pytest.mark.parametrize(
    ("head", "entries"),
    [
        pytest.param(
            "sequence_classification", {"classifier_pooling": "bos"}, marks=pytest.mark.slow
        ),
        ("sequence_classification", {"classifier_pooling": "mean", "num_key_value_heads": 4}),
        pytest.param(
            "masked_lm", {"mlp_bias": True, "attention_bias": True}, marks=pytest.mark.slow
        ),
        pytest.param(
            "backbone",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_variants_are_transformers(tmp_path: Path, head: str, entries: dict[str, Any]) -> None:
    torch.manual_seed(1)
    theirs = published("eurobert", head, **entries)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(tmp_path, "eurobert", head)
    with torch.no_grad():
        found = difference(our_logits(ours, head, IDS), their_logits(theirs, head, IDS))
    assert found < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_layer_may_be_the_table_of_tokens(tied: bool) -> None:
    config = EuroBertConfig(**SMALL, mlp_bias=True, tie_word_embeddings=tied)
    family = FAMILIES["eurobert"]
    assert family.variant is not None
    own = family.variant(config.to_dict()).heads["masked_lm"]
    assert bool(own.tied) is tied
    model = build_head(EuroBertModel(config), "masked_lm")
    assert isinstance(model, EuroBertMaskedLM)
    assert (model.output_table() is model.backbone.embeddings.tokens.weight) is tied
    resize_vocabulary(model, 24)
    assert model(PackedBatch.of(IDS)).shape == (8, 24)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"classifier_pooling": "max"}, "classifier_pooling 'max' is unknown"),
        ({"num_key_value_heads": 3}, "not divisible by num_key_value_heads 3"),
        ({"head_dim": 0}, "head_dim must be"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_what_makes_no_sense_is_named(entries: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        EuroBertConfig.from_dict({**SMALL, **entries})


def test_the_first_files_are_read() -> None:
    """They name a theta, and no kind of rotary positions."""
    ours = EuroBertConfig.from_dict({**SMALL, "rope_theta": 250_000, "rope_scaling": None})
    theirs = transformers.EuroBertConfig(**SMALL, rope_theta=250_000)
    assert ours.to_dict()["rope_parameters"] == theirs.rope_parameters
    assert EuroBertConfig.from_dict(ours.to_dict()) == ours


@pytest.mark.slow
def test_published_sizes() -> None:
    for name, millions in (("eurobert-210m", 212), ("eurobert-610m", 608), ("eurobert-2.1b", 2108)):
        config = EuroBertConfig.from_dict(preset(name) or {})
        with torch.device("meta"):
            model = FAMILIES["eurobert"].build(config)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
