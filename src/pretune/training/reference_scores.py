"""The scores of a run's frozen reference: computed once, and kept in the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pretune.checkpoints.atomic_io import atomic_file
from pretune.data.arrays import Array
from pretune.errors import RecipeError
from pretune.models.families import preset
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import HasReference, Preprocessor

#: The file in a run folder: an array `[N, K]` for each set of features.
REFERENCE_FILE = "reference.safetensors"


def read_scores(folder: Path, key: str) -> dict[str, Array] | None:
    """Read the scores that a run has kept; None where there are none, or they are of other data.

    Args:
        folder: of the run.
        key: from `scores_key`.
    """
    try:
        with safe_open(folder / REFERENCE_FILE, framework="numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    # A damaged number would be learned from in silence.
    return scores if all(np.isfinite(values).all() for values in scores.values()) else None


def keep_scores(folder: Path, key: str, scores: Mapping[str, Array]) -> None:
    """Write the scores of a run's features, atomically."""
    with atomic_file(folder / REFERENCE_FILE) as path:
        save_file({n: np.ascontiguousarray(v) for n, v in scores.items()}, path, {"key": key})


def scores_key(fingerprints: Mapping[str, str | None], source: str) -> str:
    """Hash what scores depend on: the features, and where the reference comes from."""
    parts = [f"{name}={value}" for name, value in sorted(fingerprints.items())]
    return hashlib.sha256("\n".join([source, *parts]).encode()).hexdigest()


def check_reference(task: Preprocessor, recipe: Recipe) -> None:
    """Check that a task's reference is a model that has learned something.

    Raises:
        RecipeError: it is the start of a run that begins with random weights.
    """
    start = isinstance(task, HasReference) and task.reference == "start"
    if start and preset(recipe.model.source) is not None:
        raise RecipeError(
            f"task.reference: {task.name} stays close to the model it starts from, but "
            f"{recipe.model.source} has random weights",
            "Name a trained model with model.from=FOLDER.",
        )
