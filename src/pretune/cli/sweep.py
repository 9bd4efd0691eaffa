"""`pretune sweep`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Option

from pretune.cli import options
from pretune.cli.app import STOPPED_BY, command, fail, print_result, to_stderr


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
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    trials: Annotated[int, Option(min=1, help="Training runs in total.")] = 20,
    over: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=RANGE",
            help="Values of a key to try: log:1e-5..1e-3, 0..0.2, 1..5, or 8,16,32. May be "
            "repeated.",
        ),
    ] = None,
    metric: Annotated[
        str | None, Option(help="What to compare. Default: what picks the best checkpoint.")
    ] = None,
    direction: Annotated[
        Direction, Option(help="What is better; auto: less loss, more of anything else.")
    ] = Direction.AUTO,
    study: Annotated[
        Path | None,
        Option(metavar="FILE.db", help="Optuna's study. Default: study.db in the output."),
    ] = None,
    seed: Annotated[int, Option(min=0, help="Seed of the search.")] = 0,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
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
    try:
        result = search.run(trials)
    except SweepStopped as stopped:
        # What was tried so far is worth seeing, too.
        print_result(stopped.result.to_dict(), sweep_view(stopped.result), as_json=as_json)
        fail(f"{stopped}; the same command goes on", STOPPED_BY + stopped.signal)
    last = f"repeat the best: pretune train {result.best_recipe}"
    print_result(result.to_dict(), sweep_view(result), last, as_json=as_json)
