"""Convert any checkpoint that can be read to the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pretune.bundle.bundle import load, save, save_tokenizer
from pretune.bundle.loadable import refuse_headless
from pretune.bundle.task_file import TASK_FILE
from pretune.checkpoints.atomic_io import atomic_folder
from pretune.checkpoints.config import (
    CRF,
    THRESHOLD,
    config_file,
    family_of,
    read_config,
    read_generation,
    sizes_of,
)
from pretune.checkpoints.load import LoadReport, load_into, settled
from pretune.checkpoints.names import head_parameters
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.save import save_model
from pretune.checkpoints.sentence_transformers import copy_settings
from pretune.checkpoints.source import find_source
from pretune.checkpoints.weights import named_dtype
from pretune.errors import CheckpointError, not_writable, with_article
from pretune.models.config import brief
from pretune.models.family import Family
from pretune.tasks.base import published_architecture
from pretune.tokenizers.load import load_tokenizer


def convert(
    source: str | Path, target: Path, *, dtype: str = "float32", allow_pickle: bool = False
) -> LoadReport:
    """Read a checkpoint with its head, and write it as safetensors into a new folder.

    A model trained by pretune keeps its task; the copy gives the same answers, up to `dtype`. All
    but `target` is as for `pretune.load`.

    Raises:
        CheckpointError: nothing there, damaged, of an unknown kind, or without the weights of its
            head; or the target exists.
        RunError: the target cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target}: exists already", "Choose another folder.")
    weights_dtype = named_dtype(dtype)
    folder = find_source(source, allow_pickle=allow_pickle)
    # A model of ours knows its task: load and save it whole.
    if (folder / TASK_FILE).is_file():
        bundle = load(folder, dtype=dtype, allow_pickle=allow_pickle)
        assert bundle.report is not None  # noqa: S101 - for the type checker
        with _written(target) as place:
            save(bundle, place)
        return bundle.report
    # Of any other, the head is the one that its config.json names.
    weights = open_weights(folder, allow_pickle=allow_pickle, mapped=True)
    config = settled(read_config(folder, lambda: weights.names), folder, weights)
    family, head = head_of(config, folder)
    sizes = sizes_of(family, config, config_file(folder))
    # What its outputs mean is kept; a file may give their number alone.
    meaning = ("id2label", "label2id", "problem_type", THRESHOLD, CRF)
    kept = {name: config[name] for name in meaning if config.get(name) is not None}
    labels = len(kept.get("id2label", ())) or config.get("num_labels") or 2
    build = partial(family.build, sizes, head, labels)
    model, report = load_into(build, weights, folder, family, head, dtype=weights_dtype)
    refuse_headless(folder, family, head, head_parameters(family, head) & set(report.missing))
    # Nothing is written before everything has been read.
    generation = read_generation(folder, config)
    tokenizer = load_tokenizer(folder)
    with _written(target) as place:
        save_model(model, place, family, head, kept)
        save_tokenizer(tokenizer, family, place)
        copy_settings(folder, place)
        # How it writes: in a file of its own also where older releases have it in config.json.
        if generation and head in ("translation", "causal_lm"):
            text = json.dumps(generation, ensure_ascii=False, indent=2)
            (place / "generation_config.json").write_text(text + "\n", encoding="utf-8")
    return report


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """Context that yields a folder, which gets its name once it is complete."""
    try:
        with atomic_folder(target) as place:
            yield place
    except OSError as error:
        raise not_writable(target, "folder", error) from None


def head_of(config: dict[str, Any], folder: Path) -> tuple[Family, str]:
    """Return the family of a checkpoint and the name of its head, by its `config.json`.

    Raises:
        CheckpointError: either is unknown; says which are read.
    """
    family = family_of(config, folder)
    architecture = published_architecture(config)
    known = {head.architecture: name for name, head in family.heads.items()}
    if architecture and architecture not in known:
        raise CheckpointError(
            f"{folder / 'config.json'}: a {brief(architecture)} is not supported",
            f"The classes of {with_article(family.model_type)} that are read: {', '.join(known)}.",
        )
    name = known.get(architecture, "backbone")
    with_crf = name == "token_classification" and config.get(CRF) is True
    return family, "token_classification_crf" if with_crf else name
