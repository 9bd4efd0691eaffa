"""Small random encoders of transformers with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from torch import nn

#: Words that are one token after a space.
WORDS = ("the", "good", "bad", "film")
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 66,
}


def byte_level_tokenizer() -> transformers.RobertaTokenizer:
    """RoBERTa's tokenizer with a handful of merges."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = [f"Ġ{word[:end]}" for end in range(len(word))]
        merges += [(left, word[end]) for end, left in enumerate(letters)]
    merges = list(dict.fromkeys(merges))
    entries = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    entries += [*("".join(pair) for pair in merges), "<mask>"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    mask = transformers.AddedToken("<mask>", lstrip=True)
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, mask_token=mask)


def saved(folder: Path, architecture: str, **entries: Any) -> tuple[nn.Module, Any]:
    """Save a model in which every weight counts; also give it with its tokenizer."""
    tokenizer = byte_level_tokenizer()
    kind = getattr(transformers, architecture)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**{"vocab_size": len(tokenizer), **SIZES, **entries}))
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer
