"""`pretune sweep`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.app import STOPPED_BY, command, fail, to_stderr, to_stdout
from pretune.cli.options import JsonOption


class Towards(StrEnum):
    """What is better."""

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
    trials: Annotated[int, typer.Option(min=1, help="Trainings in all.")] = 20,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE",
            help="What to try, once for each key: log:1e-5..1e-3, 0..0.2, 1..5, or 8,16,32.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What to compare. Default: what picks the best checkpoint.")
    ] = None,
    direction: Annotated[
        Towards, typer.Option(help="What is better; auto: less loss, more of anything else.")
    ] = Towards.AUTO,
    study: Annotated[
        Path | None,
        typer.Option(metavar="FILE.db", help="Optuna's study. Default: study.db in the output."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for good values of a recipe: many trainings, each with others.

    Each trial is a run in the output folder; the best one's recipe is written to best.yaml there.
    Stopped or killed, the same command goes on until there are as many trials as asked for.
    """
    from pretune.experiments.search_space import parse_space
    from pretune.experiments.sweep import Sweep, SweepStopped
    from pretune.recipe.recipe import Recipe
    from pretune.render.experiment_views import sweep_view

    log = to_stderr(quiet=quiet)
    search = Sweep(
        Recipe.load(recipe, overrides or []),
        [parse_space(one) for one in over or []],
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
