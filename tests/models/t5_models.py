"""Small T5s of transformers, with random weights far from zero."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def t5(kind: str, name: str, *, separate: bool = False, seed: int = 0, **more: Any) -> Any:
    """A model of transformers.

    Args:
        kind: `t5` or `mt5`.
        name: what its class is called after `T5` or `MT5`.
        separate: whether it has an output layer of its own, as version 1.1.
        seed: of the weights.
        more: entries of its `config.json`.
    """
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **more})
    config._attn_implementation = "eager"
    model = getattr(transformers, kind.upper() + name)(config)
    torch.manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        norm = "norm" in parameter_name
        nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.1 if norm else 0.4)
    if separate:
        # transformers would tie it, but for a file that has both with other values.
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.shared.weight) * 0.4)
        model.all_tied_weights_keys.pop("lm_head.weight")
    return model.eval()
