"""Several runs of one recipe, each in a folder below its output: seeds, and cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretune.errors import RecipeError
from pretune.recipe.recipe import Recipe
from pretune.training.callbacks import Callback
from pretune.training.data import read_data
from pretune.training.run import resume, train_recipe
from pretune.training.run_folder import RunFolder
from pretune.training.run_result import RunResult, SeveralRuns


def train_seeds(
    recipe: Recipe,
    count: int,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> SeveralRuns:
    """Train `count` times, with seeds from `recipe.seed` on, into `output/seed-S`.

    Runs of this very recipe that exist already count, and are continued if they are unfinished.

    Raises:
        PretuneError: as `train_recipe`; a seed or a folder that cannot be used is an error before
            any training.
        Interrupted: by SIGINT or SIGTERM; the last model of that run is saved.
    """
    seeds = range(recipe.seed, recipe.seed + count)
    named = {f"seed-{seed}": {"seed": seed} for seed in seeds}
    return SeveralRuns(
        _train_each(recipe, named, overwrite=overwrite, quiet=quiet, callbacks=callbacks)
    )


def train_folds(
    recipe: Recipe,
    count: int,
    *,
    group: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> SeveralRuns:
    """Train `count` times, each validated on another part of the data, into `output/fold-K`.

    Runs count, and are continued, as with `train_seeds`.

    Args:
        recipe: its `data.validation` is a share, which the parts replace, or null.
        count: how many parts to make of `data.train`, at least 2.
        group: a column of the data; records with the same value there are in one part.
        overwrite: train all of them anew.
        quiet: show no progress.
        callbacks: as for `train_recipe`; the same for every part.

    Raises:
        PretuneError: as `train_recipe`; data that do not make so many parts are an error before
            any training.
        Interrupted: by SIGINT or SIGTERM; the last model of that run is saved.
    """
    parts = fold_recipes(recipe, count, group)
    # The data are read, and split, once before anything is trained.
    read_data(recipe.changed(parts["fold-1"]))
    return SeveralRuns(
        _train_each(recipe, parts, overwrite=overwrite, quiet=quiet, callbacks=callbacks), "fold"
    )


def fold_recipes(recipe: Recipe, count: int, group: str | None) -> dict[str, dict[str, Any]]:
    """Return what differs in the recipe of each part, by the name of its folder.

    Raises:
        RecipeError: the recipe says what else to validate on.
    """
    if isinstance(recipe.data.validation, str):
        raise RecipeError(
            f"data.validation: {recipe.data.validation} is given, but --folds validates on parts "
            "of data.train",
            "Leave it out: data.validation=null.",
        )
    return {
        f"fold-{number}": {
            "data.validation": None,
            "data.fold": {"number": number, "of": count, "group": group},
        }
        for number in range(1, count + 1)
    }


def _train_each(
    recipe: Recipe,
    named: Mapping[str, Mapping[str, Any]],
    *,
    overwrite: bool,
    quiet: bool,
    callbacks: Sequence[Callback],
) -> tuple[RunResult, ...]:
    """Train a recipe with each of some changes, into the folder of that name."""
    # Every folder is checked before the first run.
    todo = []
    for name, changes in named.items():
        output = str(Path(recipe.output) / name)
        mirror = recipe.train.mirror
        places = {"output": output, "train.mirror": mirror and f"{mirror}/{name}"}
        own = recipe.changed({**changes, **places})
        folder = RunFolder(output)
        exists = not overwrite and folder.holds(own)
        if not exists:
            folder.check(own, overwrite=overwrite)
        todo.append((own, exists))
    return tuple(
        resume(own.output, quiet=quiet, callbacks=callbacks)
        if exists
        else train_recipe(own, overwrite=overwrite, quiet=quiet, callbacks=callbacks)
        for own, exists in todo
    )
