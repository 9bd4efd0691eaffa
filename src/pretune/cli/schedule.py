"""`pretune plot-schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from pretune.cli import options
from pretune.cli.app import command, print_result, to_stdout


@command(
    "plot-schedule",
    "pretune plot-schedule mrpc --updates 345",
    "pretune plot-schedule my-recipe.yaml train.schedule=wsd train.warmup=0.01 --png schedule.png",
)
def plot_schedule(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    updates: Annotated[
        int | None,
        Option(
            min=1,
            help="Number of updates of the run. Default: train.max_steps, or counted in the "
            "training data.",
        ),
    ] = None,
    png: Annotated[Path | None, Option(help="Write the plot to this file.")] = None,
    as_json: options.AsJson = False,
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
    view = schedule_view(plan, unicode=to_stdout().encoding.lower().startswith("utf"))
    written = [] if png is None else [f"wrote {png}"]
    print_result(plan.to_dict(), view, *written, as_json=as_json)
