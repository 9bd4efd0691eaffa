"""N-gram models on disk: sizes in `config.json`, tables in `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pretune.checkpoints.config import read_object
from pretune.errors import CheckpointError
from pretune.models.classics.ngram import Level, NGram

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: The tables of a level and their types.
_TABLES = {"keys": np.int64, "probability": np.float64, "backoff": np.float64}


def save_ngram(model: NGram, folder: Path) -> None:
    """Write a model into an existing folder."""
    config = {
        "model_type": "ngram",
        "order": model.order,
        "vocab_size": model.vocab_size,
        "discounts": [model.discounts, *(level.discounts for level in model.levels)],
    }
    tables = {"unigrams": model.unigrams}
    for n, level in enumerate(model.levels, start=2):
        tables |= {f"levels.{n}.{name}": getattr(level, name) for name in _TABLES}
    save_file(
        {name: np.ascontiguousarray(table) for name, table in tables.items()}, folder / WEIGHTS
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_ngram(folder: str | Path) -> NGram:
    """Read a model that `save_ngram` wrote.

    Raises:
        CheckpointError: there is none, it is damaged, or it is another kind of model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: no n-gram model here (no {CONFIG})", "pretune ladder CORPUS makes one."
        )
    config = read_object(folder / CONFIG)
    if config.get("model_type") != "ngram":
        raise CheckpointError(
            f"{folder / CONFIG}: not an n-gram model but of the type {config.get('model_type')}",
            "Open it with pretune.load.",
        )
    # A table that is damaged in any way must not become a model.
    try:
        tables = load_file(folder / WEIGHTS)
        return _model(config, tables)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{folder}: damaged ({type(error).__name__}: {error})", "Copy it again, or fit it anew."
        ) from None


def _model(config: dict[str, Any], tables: dict[str, NDArray[Any]]) -> NGram:
    """Build a model, and check that no table points beyond another."""
    order, vocabulary = int(config["order"]), int(config["vocab_size"])
    first, *discounts = [(float(a), float(b), float(c)) for a, b, c in config["discounts"]]
    unigrams = _table(tables, "unigrams", np.float64, vocabulary)
    if len(discounts) != order - 1:
        raise ValueError(f"{len(discounts) + 1} discounts for an order of {order}")
    levels: list[Level] = []
    below = vocabulary + 1  # with the beginning-of-text symbol
    for n, three in enumerate(discounts, start=2):
        # Keys point into the level below, and are looked up by binary search.
        keys = _table(tables, f"levels.{n}.keys", np.int64)
        if len(keys) and not 0 <= keys[0] <= keys[-1] < below * (vocabulary + 1):
            raise ValueError(f"levels.{n}.keys: beyond the level below")
        if (np.diff(keys) <= 0).any():
            raise ValueError(f"levels.{n}.keys: not in order")
        probability = _table(tables, f"levels.{n}.probability", np.float64, len(keys))
        backoff = _table(tables, f"levels.{n}.backoff", np.float64, below)
        levels.append(Level(keys, probability, backoff, three))
        below = len(keys)
    return NGram(vocabulary, unigrams, levels, first)


def _table(
    tables: dict[str, NDArray[Any]], name: str, kind: type[Any], size: int | None = None
) -> NDArray[Any]:
    table = tables[name]
    if table.ndim != 1 or table.dtype != kind or size not in (None, len(table)):
        expected = "" if size is None else f" of {size}"
        raise ValueError(
            f"{name}: {table.dtype} {list(table.shape)}, not {kind.__name__}{expected}"
        )
    if not np.isfinite(table).all():
        raise ValueError(f"{name}: not finite (NaN or infinity)")
    return table
