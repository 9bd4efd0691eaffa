"""What a checkpoint must be to be loaded: whole, with its head, of one size with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from pretune.checkpoints.manifest import MANIFEST, find_damage
from pretune.checkpoints.names import head_parameters
from pretune.errors import CheckpointError
from pretune.models.config import ModelConfig
from pretune.models.family import Family
from pretune.tasks.base import AnyTask
from pretune.tokenizers.tokenizer import Tokenizer, segments_of

#: How the files of a checkpoint begin that hold the state of its run (training/checkpoint.py).
RUN_STATE = ("trainer.", "shards/")


def head_names(family: Family, task: AnyTask) -> set[str]:
    """Our names of what the task adds to a model of the family.

    Raises:
        CheckpointError: it has no such head.
    """
    if task.head not in family.heads:
        raise CheckpointError(
            f"a {family.model_type} model cannot be used for the task {task.name}",
            f"It has heads for: {', '.join(h for h in family.heads if h != 'backbone')}.",
        )
    return head_parameters(family, task.head)


def refuse_headless(folder: Path, family: Family, head: str, missing: set[str]) -> None:
    """See that no part of a head that a checkpoint promises had to be made up.

    Args:
        folder: of the checkpoint, for errors.
        family: of the model.
        head: which of the family's heads it has.
        missing: our names of those parts of the head that its file lacks.

    Raises:
        CheckpointError: there are such.
    """
    if missing:
        raise CheckpointError(
            f"{folder}: config.json says {family.heads[head].architecture}, but the weights of its "
            f"head are not in the file: {', '.join(sorted(missing))}",
            "Copy the file again; or fine-tune it first: pretune train RECIPE model.from=...",
        )


def refuse_damaged(folder: Path) -> None:
    """Compare a checkpoint of a run with its manifest; other folders have none.

    Raises:
        CheckpointError: a file of the model is not what was written; names it.
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


def check_sizes(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, task: AnyTask | None
) -> None:
    """Whether no token id and no position can be beyond the model's tables."""
    vocabulary, positions = config.size("vocab_size"), config.size("max_position_embeddings")
    if tokenizer.vocab_size > vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model only "
            f"{vocabulary:,}",
            "They are not of the same model: copy both from one place.",
        )
    if tokenizer.target is not None and getattr(config, "share_encoder_decoder_embeddings", True):
        raise CheckpointError(
            f"{folder}: there is a tokenizer for each of two vocabularies, and a model with one",
            "Train with model.config='{share_encoder_decoder_embeddings: false}'; or take another "
            "tokenizer.",
        )
    if tokenizer.target is not None:
        size = tokenizer.target.vocab_size
        if size > config.target_vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer of the targets has {size:,} tokens, the model only "
                f"{config.target_vocab_size:,}",
                "They are not of the same model: copy both from one place.",
            )
    if task is not None and task.options.max_length > positions:
        raise CheckpointError(
            f"{folder}: the model has {positions} positions, "
            f"fewer than task.max_length={task.options.max_length}",
            f"Set task.max_length={positions} or less.",
        )


def check_segments(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, task: AnyTask | None
) -> None:
    """Whether no segment can be beyond the model's table, where it has one.

    Args:
        folder: of the model, for errors.
        config: its sizes.
        tokenizer: as the task uses it: some put a token between the texts of a pair.
        task: what it reads texts for; None: for nothing, one at a time.

    Raises:
        CheckpointError: a text, or a pair where the task reads such, has more of them.
    """
    table: int | None = getattr(config, "type_vocab_size", None)
    if table is None:
        return
    single = segments_of(tokenizer, pair=False)
    needed = single if task is None else task.segments(tokenizer)
    if needed <= table:
        return
    if single > table or task is None:
        raise CheckpointError(
            f"{folder}: the tokenizer numbers the segments of a text up to {single - 1}, the model "
            f"has {table} (type_vocab_size), counted from 0",
            "They are not of the same model: copy both from one place, or correct the type_id of "
            "tokenizer.json.",
        )
    raise CheckpointError(
        f"{folder}: the task {task.name} reads two texts at a time, as {needed} segments; the "
        f"model has {table} (type_vocab_size)",
        "Take a model with as many segments, or a tokenizer that gives both texts segment 0.",
    )
