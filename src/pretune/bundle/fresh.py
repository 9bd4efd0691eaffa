"""What a model of random weights needs: sizes that fit a tokenizer, and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pretune.checkpoints.source import find_source
from pretune.errors import CheckpointError, did_you_mean
from pretune.models.config import ModelConfig
from pretune.models.family import Family
from pretune.tokenizers.tokenizer import Tokenizer


def tokenizer_entries(tokenizer: Tokenizer, config_class: type[ModelConfig]) -> dict[str, Any]:
    """Return the entries of `config.json` that follow from the tokenizer.

    Args:
        tokenizer: of the model.
        config_class: of the family; entries that it does not have are left out.

    Raises:
        CheckpointError: a translation model needs a token for the end of a text, and the tokenizer
            has none.
    """
    names = {item.name for item in fields(config_class)}
    end = tokenizer.special_id("eos_token")
    entries: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    if "decoder_start_token_id" in names:
        entries |= _decoder_entries(tokenizer)
    # A family takes the entries that its configuration has.
    return {name: value for name, value in entries.items() if name in names}


def _decoder_entries(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the entries of a model that writes another text than it reads.

    A target begins with the padding token, as in Marian, or with the end where there is none.
    """
    writer = tokenizer.written
    end, pad = writer.end_id, writer.special_id("pad_token")
    if end is None or tokenizer.end_id is None:
        raise CheckpointError(
            "the tokenizer has no token for the end of a text",
            "Use one with an eos_token or a sep_token; wordpiece and bpe have them "
            "(model.train_tokenizer.kind).",
        )
    begin = end if pad is None else pad
    entries: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": end,
        "forced_eos_token_id": end,
        "pad_token_id": begin,
        "decoder_start_token_id": begin,
    }
    if tokenizer.target is not None:
        # transformers wants the padding token to be in both tables.
        entries["vocab_size"] = max(tokenizer.vocab_size, writer.vocab_size)
        entries["decoder_vocab_size"] = writer.vocab_size
        entries["share_encoder_decoder_embeddings"] = False
    return entries


def check_entries(config: Mapping[str, Any], config_class: type[ModelConfig]) -> None:
    """See that a family's `config.json` has entries of these names.

    Raises:
        CheckpointError: it does not; suggests the nearest name.
    """
    names = [item.name for item in fields(config_class)]
    for name in config:
        if name not in names:
            raise CheckpointError(
                f"model.config: no entry is called '{name}'", did_you_mean(name, names)
            )


def default_tokenizer(family: Family, size: str) -> Path:
    """Return the folder of a tokenizer that suits random weights of a family.

    Raises:
        CheckpointError: the family has none; names `size` and the ways out.
    """
    if family.tokenizer is None:
        raise CheckpointError(
            f"{size}: random weights need a tokenizer",
            "Name a folder that has one (model.tokenizer=FOLDER), or have one trained on the data: "
            "model.train_tokenizer='{kind: bpe, vocab_size: 8000}'",
        )
    return find_source(family.tokenizer)
