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
from pretune.errors import RecipeError, RunError
from pretune.models.families import preset
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import HasReference, MakesExperience, Preprocessor
from pretune.training.checkpoint import write_reason

#: The file in a run folder: an array `[N, K]` for each set of features.
REFERENCE_FILE = "reference.safetensors"


def read_scores(folder: Path, key: str) -> dict[str, Array] | None:
    """Read the scores that a run has kept; None where they are missing, damaged or of other data.

    Args:
        folder: of the run.
        key: from `scores_key`.
    """
    try:
        with safe_open(folder / REFERENCE_FILE, framework="numpy") as file:
            known = file.metadata() or {}
            scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    # A damaged number would be learned from in silence.
    whole = known.get("key") == key and known.get("digest") == _digest(scores)
    return scores if whole and all(np.isfinite(v).all() for v in scores.values()) else None


def keep_scores(folder: Path, key: str, scores: Mapping[str, Array]) -> None:
    """Write the scores of a run's features, atomically.

    Raises:
        RunError: a folder lies in the place of the file, or it cannot be written.
    """
    place = folder / REFERENCE_FILE
    if place.is_dir():
        raise RunError(
            f"{place}: is a folder, where a file is to be written", "Move it away, then go on."
        )
    whole = {name: np.ascontiguousarray(values) for name, values in scores.items()}
    try:
        with atomic_file(place) as path:
            save_file(whole, path, {"key": key, "digest": _digest(whole)})
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{place}: cannot be written ({write_reason(error)})",
            f"Make room, then go on: pretune train --resume {folder}",
        ) from None


def _digest(scores: Mapping[str, Array]) -> str:
    """SHA-256 of the names and numbers of scores."""
    digest = hashlib.sha256()
    for name, values in sorted(scores.items()):
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def scores_key(fingerprints: Mapping[str, str | None], source: str) -> str:
    """Hash what scores depend on: the features, and where the reference comes from."""
    parts = [f"{name}={value}" for name, value in sorted(fingerprints.items())]
    return hashlib.sha256("\n".join([source, *parts]).encode()).hexdigest()


def check_reference(task: Preprocessor, recipe: Recipe) -> None:
    """Check that a task's reference is a model that has learned something.

    Raises:
        RecipeError: it is the start of a run that begins with random weights.
    """
    tied = isinstance(task, HasReference) and task.reference == "start"
    if tied and preset(recipe.model.source) is not None:
        raise RecipeError(
            f"task.reference: {task.name} stays close to the model it starts from, but "
            f"{recipe.model.source} has random weights",
            "Name a trained model with model.from=FOLDER.",
        )


def holds_reference(task: Preprocessor, recipe: Recipe, *, validated: bool) -> bool:
    """Whether a run has a copy of the reference in memory beside the model.

    Args:
        task: of the run.
        recipe: of the run.
        validated: whether there are validation data.
    """
    if not isinstance(task, HasReference) or not reads_replies(task, validated=validated):
        return False
    # With adapters the model below them is the reference: one copy of the weights.
    return task.reference != "start" or recipe.train.lora is None


def reads_replies(task: HasReference, *, validated: bool) -> bool:
    """Whether a run's reference reads what the model writes, and not only the data."""
    written = isinstance(task, MakesExperience) or (task.writes_in_evaluations and validated)
    return task.reference is not None and written
