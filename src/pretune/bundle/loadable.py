"""Checks that a checkpoint is whole, and that model, tokenizer and task belong together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretune.checkpoints.int8_weights import QUANTIZATION
from pretune.checkpoints.manifest import MANIFEST, find_damage
from pretune.checkpoints.names import expand, head_parameters
from pretune.errors import CheckpointError, note, with_article
from pretune.models.config import ModelConfig, brief
from pretune.models.family import Family
from pretune.models.packed import instruction_set
from pretune.tasks.base import AnyTask
from pretune.tokenizers.tokenizer import Tokenizer, segments_of

#: Prefixes of the files that hold the state of a run (training/checkpoint.py), not the model.
RUN_STATE = ("trainer.", "shards/")


def refuse_damaged(folder: Path) -> None:
    """Compare a checkpoint of a run with its manifest; other folders have none.

    Raises:
        CheckpointError: a file of the model differs from what was written; names it.
    """
    if not (folder / MANIFEST).is_file():
        return
    damage = find_damage(folder, lambda name: not name.startswith(RUN_STATE))
    if damage is not None:
        raise CheckpointError(
            damage,
            "Use another checkpoint of the run (RUN/last, RUN/best), or copy this one again. If "
            f"you changed it on purpose, remove its {MANIFEST}.",
        )


def note_gate(folder: Path, entries: Mapping[str, Any]) -> None:
    """Tell of a model in 8 bits whose quality was not measured here, or was not good enough."""
    record = entries.get(QUANTIZATION)
    known = record.get("instructions") if isinstance(record, dict) else None
    if isinstance(known, str) and known != instruction_set():
        note(
            f"{folder}: its 8 bits were measured on {brief(known)}; here it is "
            f"{instruction_set()}, where answers may differ: pretune evaluate measures them"
        )
    if isinstance(record, dict) and record.get("forced"):
        note(f"{folder}: its 8 bits cost more than their limit allows; it was written with --force")


def head_names(family: Family, task: AnyTask) -> set[str]:
    """Return our names of the parameters that the task adds to a model of the family.

    Raises:
        CheckpointError: the family has no such head.
    """
    if task.head not in family.heads:
        raise CheckpointError(
            f"{with_article(family.model_type)} model cannot be used for the task {task.name}",
            f"It has heads for: {', '.join(h for h in family.heads if h != 'backbone')}.",
        )
    return head_parameters(family, task.head)


def refuse_headless(folder: Path, family: Family, head: str, missing: set[str]) -> None:
    """Refuse a checkpoint without some weights of the head that its `config.json` promises."""
    if missing:
        published = expand(family.heads[head].rules, (1,))
        names = sorted(part for name in missing for part in published[name].parts)
        raise CheckpointError(
            f"{folder}: config.json says {family.heads[head].architecture}, but the weights of its "
            f"head are not in the file: {', '.join(names)}",
            f"Copy the file again; or fine-tune it first: pretune train RECIPE model.from={folder}",
        )


def check_sizes(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, task: AnyTask | None
) -> None:
    """Refuse tables that lack a row for a token id, or for a position that the task needs."""
    vocabulary, positions = config.size("vocab_size"), config.size("max_position_embeddings")
    if tokenizer.vocab_size > vocabulary:
        raise _too_small(folder, "the tokenizer", tokenizer.vocab_size, vocabulary)
    # A translation model may have a second vocabulary, for its targets.
    if tokenizer.target is not None and tokenizer.two_vocabularies:
        if getattr(config, "share_encoder_decoder_embeddings", True):
            raise CheckpointError(
                f"{folder}: there are tokenizers for two vocabularies, but the model has only one",
                "Train with model.config='{share_encoder_decoder_embeddings: false}'; or use "
                "another tokenizer.",
            )
        size, table = tokenizer.target.vocab_size, config.target_vocab_size
        if size > table:
            raise _too_small(folder, "the tokenizer of the targets", size, table)
    # Texts are truncated to `max_length` tokens, so no longer one occurs.
    if task is not None and task.options.max_length > positions:
        raise CheckpointError(
            f"{folder}: the model has {positions} positions, "
            f"fewer than task.max_length={task.options.max_length}",
            f"Set task.max_length={positions} or less.",
        )


def check_tokenizer(folder: Path, family: Family, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer of two SentencePiece files for a model that does not translate."""
    if tokenizer.cutter is not None and not family.backbone.reads_pairs:
        raise CheckpointError(
            f"{tokenizer.origin}: the tokenizer of a translator (OPUS-MT), which cuts what is read "
            f"and what is written in two ways; {with_article(family.model_type)} model has one",
            f"Give {folder} a tokenizer of another kind.",
        )


def _too_small(folder: Path, tokenizer: str, tokens: int, rows: int) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {tokenizer} has {tokens:,} tokens, the model only {rows:,}",
        "They do not belong to the same model: copy both from one place.",
    )


def check_segments(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, task: AnyTask | None
) -> None:
    """Refuse a table of segments that is too small for a text, or for the task's pairs.

    The tokenizer is as the task uses it: some tasks add a token between the texts of a pair.
    """
    table: int | None = getattr(config, "type_vocab_size", None)
    if not table:  # such a model does not look at segments
        return
    single = segments_of(tokenizer, pair=False)
    needed = single if task is None else task.segments(tokenizer)
    if needed <= table:
        return
    # Either the tokenizer does not suit the model at all, or only not for pairs.
    if single > table or task is None:
        raise CheckpointError(
            f"{folder}: the tokenizer numbers the segments of a text up to {single - 1}, the model "
            f"has {table} (type_vocab_size), counted from 0",
            "They do not belong to the same model: copy both from one place, or correct the "
            "type_id in tokenizer.json.",
        )
    raise CheckpointError(
        f"{folder}: the task {task.name} reads two texts at a time, as {needed} segments; the "
        f"model has {table} (type_vocab_size)",
        "Use a model with as many segments (random weights take any number: "
        f"model.config='{{type_vocab_size: {needed}}}'), or a tokenizer that gives both texts "
        "segment 0.",
    )
