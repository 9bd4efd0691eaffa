"""`pretune plot-schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.app import command, to_stdout
from pretune.cli.options import JsonOption, OverridesArgument, RecipeArgument


@command(
    "plot-schedule",
    "pretune plot-schedule mrpc --updates 345",
    "pretune plot-schedule my-recipe.yaml train.schedule=wsd train.warmup=0.01 --png schedule.png",
)
def plot_schedule(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    updates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of updates of the run. Default: train.max_steps, or counted in the "
            "training data.",
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plot to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Plot the learning rate and the batch size of a run before it starts."""
    from pretune.experiments.schedule_plan import SchedulePlan
    from pretune.recipe.recipe import Recipe
    from pretune.render.schedule_chart import draw_schedule, schedule_view

    chosen = Recipe.load(recipe, overrides or [])
    if updates is not None:
        chosen = chosen.changed({"train.max_steps": updates})
    plan = SchedulePlan.of(chosen)
    if png is not None:
        draw_schedule(plan, png)
    out = to_stdout()
    if as_json:
        out.print_json(data=plan.to_dict())
        return
    out.print(schedule_view(plan, unicode=out.encoding.lower().startswith("utf")))
    if png is not None:
        out.print(f"wrote {png}", soft_wrap=True)
