"""`pretune.json`: a checkpoint's task with its options, its state, and the data's columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretune.checkpoints.config import config_file, in_file, read_generation, read_object
from pretune.errors import CheckpointError, RecipeError, did_you_mean
from pretune.models.config import ModelConfig, brief
from pretune.tasks.base import FROM_CHECKPOINT, AnyTask
from pretune.tasks.builtin import TASKS, published_task, saved_task_class

#: The only file of a checkpoint that transformers does not know.
TASK_FILE = "pretune.json"


def trained_task(
    folder: Path, config: Mapping[str, Any], sizes: ModelConfig
) -> tuple[AnyTask | None, dict[str, str]]:
    """Return the task that a checkpoint was trained for, if any, and the data's column names.

    Where there is no `pretune.json` its `config.json` decides; `sizes` are as the model reads it.

    Raises:
        CheckpointError: the file is damaged, or the package that provides the task is missing.
    """
    path = folder / TASK_FILE
    if not path.is_file():
        # GPT-2 has another name for its number of positions.
        positions = {"max_position_embeddings": sizes.size("max_position_embeddings")}
        try:
            entries = {"generation_config": read_generation(folder, config), **positions}
            return published_task({**config, **entries}), {}
        except CheckpointError as error:
            raise in_file(error, config_file(folder)) from None
    saved = read_object(path)
    # The file may be damaged or come from anyone: its values are checked like a recipe's.
    try:
        kind = saved_task_class(saved["options"]["name"], saved.get("package"))
        options = kind.options_type.model_validate(saved["options"], context=FROM_CHECKPOINT)
        task = kind(options).with_state(saved["state"])
        columns = dict(saved.get("columns", {}))
        if not all(isinstance(name, str) for name in columns.values()):
            raise TypeError("columns are names")
    except (RecipeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not readable ({type(error).__name__}: {brief(error)})",
            "It was written by another version, or damaged: train again, or copy it again.",
        ) from None
    return task, columns


def task_entries(task: AnyTask, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the contents of `pretune.json`; `columns` has the data's names."""
    entries = {
        "options": task.options.model_dump(mode="json"),
        "state": task.state(),
        "columns": dict(columns),
    }
    package = TASKS.package_of(task.name)
    return entries if package is None else {**entries, "package": package}


def with_options(task: AnyTask, options: Mapping[str, Any]) -> AnyTask:
    """Return a trained task with some options changed.

    Raises:
        RecipeError: no such option, a value that makes no sense, or one that needs another model.
    """
    known = [name for name in task.options_type.model_fields if name != "name"]
    for name in options:
        if name not in known:
            raise RecipeError(
                f"the task {task.name} has no option '{name}'", did_you_mean(name, known)
            )
    # All options are checked together: some exclude each other.
    try:
        chosen = task.options_type.model_validate({**task.options.model_dump(), **options})
        changed = type(task)(chosen).with_state(task.state())
    except ValueError as error:  # pydantic's errors are ValueErrors, too
        message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        message = message.removeprefix("Value error, ")
        raise RecipeError(f"{', '.join(options)}: {message}") from None
    # The weights of the head fit only outputs of the same meaning.
    if changed.output_meaning() != task.output_meaning():
        raise RecipeError(
            f"{', '.join(options)}: the model was trained with another value of this option",
            "Train it again with the new value.",
        )
    return changed
