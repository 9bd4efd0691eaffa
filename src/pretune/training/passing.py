"""Data that cannot be read a second time: out of a pipe, or out of the memory of a program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pretune.data.readers.in_memory import gone, is_from_memory, is_held
from pretune.errors import RunError
from pretune.recipe.recipe import Recipe
from pretune.text.byte_stream import is_file, is_passing
from pretune.training.run_folder import RunFolder


def check_data_is_there(path: str | Path, recipe: Recipe, passing: Mapping[str, str]) -> None:
    """Check data that cannot be read again; `passing` are those that the run began with."""
    for key, source in passing_data(recipe).items():
        if is_from_memory(source):
            _check_handed_in(path, key, source, passing.get(key))
        elif not all(map(is_file, source.split(","))):
            raise RunError(
                f"{path}: its {key} came through a pipe ({source}), and is gone",
                f"Save the same data to a file, and name it: {resume_command(path)}",
            )


def _check_handed_in(path: str | Path, key: str, source: str, earlier: str | None) -> None:
    """Check that data from memory are at hand, and are those of the run.

    Args:
        path: the folder of the run.
        key: which data: `data.train` or `data.validation`.
        source: their name in the recipe.
        earlier: that of the data that the run began with, if they could not be read again either.
    """
    if earlier is not None and is_from_memory(earlier) and source != earlier:
        raise RunError(
            f"{path}: other data than those that it began with: {source}; they were {earlier}",
            "Hand in the same rows in the same order; or start a new run from its weights: "
            f"pretune.train(RECIPE, {{'model.from': '{path}', 'output': ...}}, data=...).",
        )
    if not is_held(source):
        raise gone(source, path, key)


def passing_data(recipe: Recipe) -> dict[str, str]:
    """Return the sources of data that cannot be read again, by their keys in the recipe."""
    sources = {"data.train": recipe.data.train, "data.validation": recipe.data.validation}
    return {
        key: source
        for key, source in sources.items()
        if isinstance(source, str)
        and (is_from_memory(source) or any(map(is_passing, source.split(","))))
    }


def resume_command(path: str | Path) -> str:
    """Return the shell command that continues a run; it names files for data from pipes."""
    named = "".join(f" {key}=FILE" for key in passing_data(RunFolder(path).recipe()))
    return f"pretune train --resume {path}{named}"
