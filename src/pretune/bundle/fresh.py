"""What a model of random weights takes from its tokenizer; what may be changed of any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretune.checkpoints.source import find_source
from pretune.errors import CheckpointError, RecipeError, did_you_mean
from pretune.models.config import ModelConfig
from pretune.models.family import Family
from pretune.tasks.base import AnyTask
from pretune.tokenizers.tokenizer import Tokenizer


def of_tokenizer(tokenizer: Tokenizer, config_class: type[ModelConfig]) -> dict[str, Any]:
    """What a model of random weights takes from its tokenizer: the vocabulary, the end of text.

    One that writes another text than it reads must begin and end it: it begins with the padding
    token, as Marian does, or the end where there is none.
    """
    names = {item.name for item in fields(config_class)}
    end = tokenizer.special_id("eos_token")
    entries: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    if "decoder_start_token_id" in names:
        writer = tokenizer.written
        end = writer.end_id
        if end is None or tokenizer.end_id is None:
            raise CheckpointError(
                "the tokenizer has no token for the end of a text",
                "Take one with an eos_token or a sep_token; wordpiece and bpe have them "
                "(model.train_tokenizer.kind).",
            )
        pad = writer.special_id("pad_token")
        begin = end if pad is None else pad
        entries |= {"eos_token_id": end, "forced_eos_token_id": end, "bos_token_id": None}
        entries |= {"pad_token_id": begin, "decoder_start_token_id": begin}
        if tokenizer.target is not None:
            # transformers wants the padding token to be in both tables.
            size = max(tokenizer.vocab_size, writer.vocab_size)
            entries |= {"vocab_size": size, "decoder_vocab_size": writer.vocab_size}
            entries["share_encoder_decoder_embeddings"] = False
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
    """The folder of a tokenizer that fits random weights of a family."""
    if family.tokenizer is None:
        raise CheckpointError(
            f"{name}: random weights need a tokenizer",
            "Name a folder that has one (model.tokenizer=FOLDER), or have one trained on the data: "
            "model.train_tokenizer='{kind: bpe, vocab_size: 8000}'",
        )
    return find_source(family.tokenizer)


def with_options(task: AnyTask, options: Mapping[str, Any]) -> AnyTask:
    """A trained task with some options changed.

    Raises:
        RecipeError: there is no such option, its value makes no sense, or the model would have to
            be another one.
    """
    known = [name for name in task.options_type.model_fields if name != "name"]
    for name in options:
        if name not in known:
            raise RecipeError(
                f"the task {task.name} has no option '{name}'", did_you_mean(name, known)
            )
    try:
        chosen = task.options_type.model_validate({**task.options.model_dump(), **options})
        changed = type(task)(chosen).with_state(task.state())
    except ValueError as error:  # of pydantic, for one
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RecipeError(f"{', '.join(options)}: {said.removeprefix('Value error, ')}") from None
    if changed.output_meaning() != task.output_meaning():
        raise RecipeError(
            f"{', '.join(options)}: a model was trained with what this option was",
            "Train it anew with the other value.",
        )
    return changed
