"""`pretune plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from pretune.cli.app import command, to_stdout
from pretune.cli.options import JsonOption


@command(
    "plan",
    "pretune plan tickets.tsv",
    "pretune plan mrpc model.from=minilm train.epochs=5 --json",
)
def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_FILE",
            help="A built-in recipe, a YAML file, or a labelled data file.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values of the recipe to change."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            help="Do a few updates on a copy of the model to tell how long the run takes."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Tell what a training takes before it starts: data, updates, FLOPs, memory, disk, hours.

    Nothing is written. Data and model are read, so a run that is planned finds both.
    """
    from pretune.experiments.plan import plan_run
    from pretune.recipe.recipe import Recipe
    from pretune.render.experiment_views import plan_view

    found = plan_run(Recipe.load(recipe, overrides or []), measure=measure)
    out = to_stdout()
    if as_json:
        out.print_json(data=found.to_dict())
        return
    out.print(plan_view(found))
