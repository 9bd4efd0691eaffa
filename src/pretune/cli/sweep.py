"""`pretune sweep`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.app import STOPPED_BY, command, fail, to_stderr, to_stdout
from pretune.cli.options import JsonOption, OverridesArgument, QuietOption, RecipeArgument


class Direction(StrEnum):
    """Which values of the metric are better."""

    AUTO = "auto"
    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


@command(
    "sweep",
    "pretune sweep tickets.tsv --trials 20 --over train.learning_rate=log:1e-5..1e-3",
    "pretune sweep mrpc model.from=minilm output=runs/sweep --trials 30 "
    "--over train.batch_size=8,16,32 --over train.warmup=0..0.2 --over train.epochs=2..5 "
    "--metric f1",
)
def sweep(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    trials: Annotated[int, typer.Option(min=1, help="Training runs in total.")] = 20,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE",
            help="Values of a key to try: log:1e-5..1e-3, 0..0.2, 1..5, or 8,16,32. May be "
            "repeated.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What to compare. Default: what picks the best checkpoint.")
    ] = None,
    direction: Annotated[
        Direction, typer.Option(help="What is better; auto: less loss, more of anything else.")
    ] = Direction.AUTO,
    study: Annotated[
        Path | None,
        typer.Option(metavar="FILE.db", help="Optuna's study. Default: study.db in the output."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for good values of a recipe in many training runs.

    Each trial is a run in the output folder; the recipe of the best one is written to best.yaml
    there. After an interruption the same command continues until there are as many trials as asked
    for.
    """
    from pretune.experiments.search_space import parse_space
    from pretune.experiments.sweep import Sweep, SweepStopped
    from pretune.recipe.recipe import Recipe
    from pretune.render.experiment_views import sweep_view

    log = to_stderr(quiet=quiet)
    search = Sweep(
        Recipe.load(recipe, overrides or []),
        [parse_space(text) for text in over or []],
        metric=metric,
        direction=direction.value,
        study=study,
        seed=seed,
        quiet=quiet,
        say=lambda text: log.print(text, soft_wrap=True),
    )
    out = to_stdout()
    try:
        result = search.run(trials)
    except SweepStopped as stopped:
        # What was tried so far is worth seeing, too.
        if as_json:
            out.print_json(data=stopped.result.to_dict())
        else:
            out.print(sweep_view(stopped.result))
        fail(f"{stopped}; the same command goes on", STOPPED_BY + stopped.signal)
    if as_json:
        out.print_json(data=result.to_dict())
        return
    out.print(sweep_view(result))
    out.print(f"repeat the best: pretune train {result.best_recipe}", soft_wrap=True)
