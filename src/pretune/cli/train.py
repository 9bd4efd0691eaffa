"""`pretune train`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from pretune.cli.app import INTERRUPTED, AsJson, app, fail


@app.command(
    epilog="Examples:\n\n"
    "pretune train tickets.tsv\n\n"
    "pretune train mrpc model.from=minilm train.epochs=2\n\n"
    "pretune train my-recipe.yaml output=runs/second --seeds 3"
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_FILE",
            help="A built-in recipe (see `pretune recipes`), a YAML file, or a labelled data file.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values of the recipe to change."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train under N seeds and show mean ± sd.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier run in the output folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model as a recipe says.

    Everything goes into the recipe's output folder: the best and the last model, the logs, and the
    recipe itself with every default written out.
    """
    from pretune.recipe import Recipe
    from pretune.report import run_table, seeds_table, seeds_to_dict
    from pretune.training import Interrupted, train_recipe, train_seeds

    chosen = Recipe.load(recipe, overrides or [])
    out = Console()
    try:
        if seeds > 1:
            several = train_seeds(chosen, seeds, overwrite=overwrite, quiet=quiet)
            out.print_json(data=seeds_to_dict(several)) if as_json else out.print(
                seeds_table(several)
            )
            return
        result = train_recipe(chosen, overwrite=overwrite, quiet=quiet)
    except Interrupted as stopped:
        fail(
            f"{stopped}\nuse it:      pretune predict {stopped.folder}/last TEXT\n"
            f"train again: add --overwrite, or choose another output=FOLDER",
            INTERRUPTED,
        )
    if as_json:
        out.print_json(data=result.to_dict())
        return
    out.print(run_table(result))
    out.print(f"ask it:      pretune predict {result.folder} TEXT", highlight=False, markup=False)
    out.print(f"evaluate it: pretune evaluate {result.folder} DATA", highlight=False, markup=False)
