"""`pretune init` and `pretune recipes`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli.app import command, to_stdout
from pretune.errors import RecipeError, did_you_mean


@command("init", "pretune init classify > my-recipe.yaml")
def init(
    task: Annotated[str, Argument(help="The task, e.g. classify.")],
    output: Annotated[
        Path | None, Option("--output", "-o", help="Write to this file instead of the terminal.")
    ] = None,
) -> None:
    """Write a recipe to start from, with every key, its meaning and its default."""
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.recipe.commented import commented_recipe

    text = commented_recipe(task)
    if output is None:
        print(text, end="")
        return
    if os.path.exists(output):  # unlike Path.exists, False for a name that no file can have
        raise RecipeError(f"{output}: exists already", "Choose another name, or remove it first.")
    try:
        atomic_text(output, text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise RecipeError(f"{output}: cannot be written ({reason})") from None
    print(f"wrote {output}; run it with: pretune train {output}")


@command("recipes", "pretune recipes", "pretune recipes mrpc > my-recipe.yaml")
def recipes(name: Annotated[str | None, Argument(help="The recipe to print.")] = None) -> None:
    """List the recipes that have a name, built-in or installed, or print one."""
    from rich.table import Table

    from pretune.recipe.recipe import Recipe, named_recipes

    known = named_recipes()
    if name is not None:
        if name not in known:
            raise RecipeError(f"no recipe is called '{name}'", did_you_mean(name, known))
        print(known[name], end="")
        return
    table = Table("recipe", "what it does", pad_edge=False)
    for key in known:
        table.add_row(key, Recipe.load(key).description)
    to_stdout().print(table)
