"""`pretune plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from pretune.cli.app import command, to_stdout
from pretune.cli.options import JsonOption, OverridesArgument, RecipeArgument


@command(
    "plan",
    "pretune plan tickets.tsv",
    "pretune plan mrpc model.from=minilm train.epochs=5 --json",
)
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    measure: Annotated[
        bool,
        typer.Option(help="Time a few updates on a copy of the model to estimate the hours."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a training run takes: data, updates, FLOPs, memory, disk, hours.

    Nothing is written. Data and model are read, so a planned run will find both.
    """
    from pretune.experiments.plan import plan_run
    from pretune.recipe.recipe import Recipe
    from pretune.render.experiment_views import plan_view

    planned = plan_run(Recipe.load(recipe, overrides or []), measure=measure)
    out = to_stdout()
    if as_json:
        out.print_json(data=planned.to_dict())
        return
    out.print(plan_view(planned))
