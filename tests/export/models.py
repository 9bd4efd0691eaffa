"""Small random models of every family with every head."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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
#: Every family with each of its heads; a translator is exported with its head alone.
HEADS = [
    (family, head)
    for family in SIZES
    for head in FAMILIES[family].heads
    if head != "backbone" or not FAMILIES[family].backbone.reads_pairs
]


@lru_cache(maxsize=1)
def random_model(family: str, head: str) -> Exported:
    """A model whose every weight counts: no bias is 0 and no LayerNorm is 1."""
    own = FAMILIES[family]
    config = own.backbone.config_class.from_dict(SIZES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = own.build(config, head, 3).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    segments = any(rule.ours == "embeddings.segments.weight" for rule in own.rules)
    kind = "last" if own.backbone.causal else "mean"
    pooling = Pooling(kind, normalize=True) if head == "backbone" else None
    return Exported(model, head, segments, pooling)
