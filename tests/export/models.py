"""Small random models of every family with every head."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from pretune.export.onnx_models import Exported, Pooling
from pretune.models.families import FAMILIES

_ENCODER = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
_TRANSLATOR = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
    "decoder_start_token_id": 1,
    "scale_embedding": True,
}
#: Entries of `config.json` by family.
SIZES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "bert-sinusoidal": {**_ENCODER, "position_embedding_type": "sinusoidal"},
    "electra": {**_ENCODER, "embedding_size": 8},
    "roberta": {**_ENCODER, "type_vocab_size": 1},
    "albert": {**_ENCODER, "embedding_size": 12},
    "ernie": {**_ENCODER, "use_task_id": True},
    "distilbert": {
        "vocab_size": 60,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 24,
    },
    "gpt2": {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24},
    "marian": _TRANSLATOR,
    "transformer": {
        **_TRANSLATOR,
        "normalize_before": True,
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 50,
    },
}
#: Families with rotary positions, gates, and what else is newer.
NEWER: dict[str, dict[str, Any]] = {
    # Grouped heads, RMSNorm and gates.
    "eurobert": {**_ENCODER, "num_key_value_heads": 1, "head_dim": 6},
    "llama": {**_ENCODER, "num_key_value_heads": 1, "attention_bias": True},
    # A local layer, which sees fewer tokens than texts have.
    "modernbert": {**_ENCODER, "local_attention": 4, "classifier_pooling": "mean"},
    # With norms of queries and keys, and a window in the second layer.
    "qwen3": {
        **_ENCODER,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
    # Norms after each block, too.
    "gemma3_text": {
        **_ENCODER,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "sliding_window": 3,
        "query_pre_attn_scalar": 5,
    },
    # Relative positions, shorter than texts.
    "t5": {
        "vocab_size": 60,
        "d_model": 16,
        "d_kv": 6,
        "d_ff": 24,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 6,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 1,
        "decoder_start_token_id": 1,
    },
}


def _heads(sizes: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (family, head)
        for family in sizes
        for head in FAMILIES[family].heads
        if head != "backbone" or not FAMILIES[family].backbone.reads_pairs
        if head != "replaced_tokens"  # of which there is no task
    ]


#: Every family with each of its heads; a translator is exported with its head alone.
HEADS, NEWER_HEADS = _heads(SIZES), _heads(NEWER)
#: Families of which tests look at two heads; at all of them in the long run.
_ALIKE = {"roberta": "masked_lm", "albert": "pretraining", "ernie": "backbone"}
CASES = [
    pytest.param(
        *(family, head),
        marks=[pytest.mark.slow] if family in _ALIKE and head != _ALIKE[family] else [],
    )
    for family, head in HEADS
]


@lru_cache(maxsize=1)
def random_model(family: str, head: str) -> Exported:
    """A model whose every weight counts: no bias is 0 and no LayerNorm is 1."""
    own = FAMILIES[family]
    config = own.backbone.config_class.from_dict((SIZES | NEWER)[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = own.build(config, head, 3).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    segments = getattr(config, "type_vocab_size", 0) > 1
    kind = "last" if own.backbone.causal else "mean"
    pooling = Pooling(kind, normalize=True) if head == "backbone" else None
    return Exported(model, head, segments, pooling)
