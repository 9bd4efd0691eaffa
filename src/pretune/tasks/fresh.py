"""A model of random weights: what it takes from its tokenizer, and what a recipe may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pretune.errors import CheckpointError, did_you_mean
from pretune.hub import Family, find_source
from pretune.models import ModelConfig
from pretune.text import Tokenizer


def of_tokenizer(tokenizer: Tokenizer, config_class: type[ModelConfig]) -> dict[str, Any]:
    """What a model of random weights takes from its tokenizer: the vocabulary, the end of text.

    One that writes another text than it reads must begin and end it: it begins with the padding
    token, as Marian does, or the end where there is none.
    """
    names = {item.name for item in fields(config_class)}
    end = tokenizer.special_id("eos_token")
    entries = {"vocab_size": tokenizer.vocab_size, "bos_token_id": end, "eos_token_id": end}
    if "decoder_start_token_id" in names:
        end = tokenizer.special_id("sep_token") if end is None else end
        if end is None:
            raise CheckpointError(
                "the tokenizer has no token for the end of a text",
                "Take one with an eos_token or a sep_token; wordpiece and bpe have them "
                "(model.train_tokenizer.kind).",
            )
        pad = tokenizer.special_id("pad_token")
        begin = end if pad is None else pad
        entries |= {"eos_token_id": end, "forced_eos_token_id": end, "bos_token_id": None}
        entries |= {"pad_token_id": begin, "decoder_start_token_id": begin}
    return {name: value for name, value in entries.items() if name in names}


def known_entries(
    config: Mapping[str, Any] | None, config_class: type[ModelConfig]
) -> Mapping[str, Any]:
    """The entries, if the family's `config.json` has such.

    Raises:
        CheckpointError: it has not; names the nearest.
    """
    names = [item.name for item in fields(config_class)]
    for name in config or {}:
        if name not in names:
            raise CheckpointError(
                f"model.config: no entry is called '{name}'", did_you_mean(name, names)
            )
    return config or {}


def vocabulary_for(family: Family, name: str) -> Path:
    """A tokenizer for random weights: the uncased English one that comes with `minilm`."""
    if family.model_type not in ("bert", "distilbert"):
        raise CheckpointError(
            f"{name}: random weights need a tokenizer",
            "Name a folder that has one (model.tokenizer=FOLDER), or have one trained on the data: "
            "model.train_tokenizer='{kind: bpe, vocab_size: 8000}'",
        )
    return find_source("minilm")
