"""The published sizes by name: a model with random weights, to be trained from scratch."""

from __future__ import annotations

from typing import Any

#: Name -> (model type, entries of config.json). BERT's smaller sizes: Turc et al. 2019, table 1.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"bert-{name}": (
            "bert",
            {
                "num_hidden_layers": layers,
                "hidden_size": hidden,
                "num_attention_heads": hidden // 64,
                "intermediate_size": 4 * hidden,
            },
        )
        for name, layers, hidden in (
            ("tiny", 2, 128),
            ("mini", 4, 256),
            ("small", 4, 512),
            ("medium", 8, 512),
            ("base", 12, 768),
            ("large", 24, 1024),
        )
    },
    "distilbert-base": ("distilbert", {}),
    **{
        f"gpt2-{name}": ("gpt2", {"n_layer": layers, "n_embd": hidden, "n_head": hidden // 64})
        for name, layers, hidden in (
            ("small", 12, 768),
            ("medium", 24, 1024),
            ("large", 36, 1280),
            ("xl", 48, 1600),
        )
    },
}
