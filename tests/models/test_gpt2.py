"""GPT-2 with other factors of its scores, beside transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.checkpoints.config import read_config
from pretune.checkpoints.save import save_model
from pretune.errors import CheckpointError
from pretune.models.families import FAMILIES
from pretune.models.gpt2 import Gpt2Config
from pretune.models.kv_cache import KVCache
from tests.parity.families import difference, our_logits, ours_of, published, their_logits

VARIANTS: list[dict[str, Any]] = [
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
]


@pytest.mark.parametrize("entries", VARIANTS, ids=", ".join)
def test_factors_are_those_of_transformers(entries: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = published("gpt2", "causal_lm", **entries)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(tmp_path, "gpt2", "causal_lm")
    ids = [torch.randint(1, 53, (length,)).tolist() for length in (9, 4)]
    with torch.no_grad():
        expected = their_logits(theirs, "causal_lm", ids)
        assert difference(our_logits(ours, "causal_lm", ids), expected) < 1e-5
        # Token by token, with a cache.
        first, state = ours.start([ids[0][:-1]])
        last = ours.step(torch.tensor(ids[0][-1:]), state)
        assert difference([first[0], last[0]], list(expected[0][-2:])) < 1e-5
        assert isinstance(state, KVCache)
    # And the entries are written back.
    (tmp_path / "again").mkdir()
    save_model(ours, tmp_path / "again", FAMILIES["gpt2"], "causal_lm")
    written = read_config(tmp_path / "again")
    assert {name: written[name] for name in entries} == entries


def test_layers_that_are_numbered_stay_where_they_are() -> None:
    config = Gpt2Config(n_layer=4, scale_attn_by_inverse_layer_idx=True)
    assert config.with_layers([0, 1]).n_layer == 2
    with pytest.raises(CheckpointError, match="divided by its number"):
        config.with_layers([0, 2])
    assert Gpt2Config(n_layer=4).with_layers([0, 2]).n_layer == 2


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"scale_attn_weights": "yes"}, "scale_attn_weights must be true or false"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
    ],
)
def test_what_is_refused(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        Gpt2Config(**entries)
