"""`pretune plan`."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from pretune.cli import options
from pretune.cli.app import command, print_result


@command(
    "plan", "pretune plan tickets.tsv", "pretune plan mrpc model.from=minilm train.epochs=5 --json"
)
def plan(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    measure: Annotated[
        bool, Option(help="Time a few updates on a copy of the model to estimate the hours.")
    ] = True,
    as_json: options.AsJson = False,
) -> None:
    """Estimate what a training run takes: data, updates, FLOPs, memory, disk, hours.

    Nothing is written. Data and model are read, so a planned run will find both.
    """
    from pretune.experiments.plan import plan_run
    from pretune.recipe.recipe import Recipe
    from pretune.render.experiment_views import plan_view

    planned = plan_run(Recipe.load(recipe, overrides or []), measure=measure)
    print_result(planned.to_dict(), plan_view(planned), as_json=as_json)
