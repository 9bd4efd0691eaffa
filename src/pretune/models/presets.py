"""The published sizes by name: a model with random weights, to be trained from scratch."""

from __future__ import annotations

from typing import Any

#: Name -> (model type, entries of config.json). BERT's smaller sizes: Turc et al. 2019, table 1.
#: `transformer-...`: Vaswani et al. 2017, table 3 (`small` is ours).
#: `nnlm`: Bengio et al. 2003, MLP10. `lstm-...`: Zaremba et al. 2014, section 4.1, and the same for
#: the other cells; a vocabulary of 10,000.
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
    **{
        f"transformer-{name}": (
            "marian",
            {
                "encoder_layers": layers,
                "decoder_layers": layers,
                "d_model": hidden,
                "encoder_attention_heads": heads,
                "decoder_attention_heads": heads,
                "encoder_ffn_dim": 4 * hidden,
                "decoder_ffn_dim": 4 * hidden,
                "activation_function": "relu",
                "scale_embedding": True,
            },
        )
        for name, layers, hidden, heads in (
            ("small", 3, 256, 4),
            ("base", 6, 512, 8),
            ("big", 6, 1024, 16),
        )
    },
    "nnlm": ("nnlm", {}),
    **{
        f"{cell}-{name}": (
            "rnn",
            {"cell": cell, "embedding_size": size, "hidden_size": size, "dropout": dropout},
        )
        for cell in ("rnn", "gru", "lstm")
        for name, size, dropout in (
            ("small", 200, 0.0),
            ("medium", 650, 0.5),
            ("large", 1500, 0.65),
        )
    },
}
