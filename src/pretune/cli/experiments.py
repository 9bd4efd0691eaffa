"""`pretune sweep`, `pretune ladder` and `pretune runs`: many runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import STOPPED_BY, command, fail, print_result, to_stderr
from pretune.errors import PretuneError


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
    recipe=True,
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

    # Trials that the study already has are not repeated.
    search = Sweep(
        Recipe.load(recipe, overrides or []),
        [parse_space(text) for text in over or []],
        metric=metric,
        direction=direction.value,
        study=study,
        seed=seed,
        quiet=quiet,
        say=to_stderr(quiet=quiet).say,
    )
    try:
        result = search.run(trials)
    except SweepStopped as stopped:
        # What was tried so far is worth seeing, too.
        shown = sweep_view(stopped.result)
        print_result(stopped.result.to_dict(), shown, as_json=as_json, saved=True)
        fail(f"{stopped}; the same command goes on", STOPPED_BY + stopped.signal)
    last = f"repeat the best: pretune train {result.best_recipe}"
    print_result(result.to_dict(), sweep_view(result), last, as_json=as_json, saved=True)


@command(
    "ladder",
    "pretune ladder shakespeare.txt --minutes 1",
    "pretune ladder novels/ --level bpe --updates 2000 --rungs ngram,lstm,gpt --out runs/novels",
)
def ladder(
    corpus: Annotated[
        str,
        Argument(
            metavar="CORPUS", help="A .txt file, a folder of them, or a table with the column text."
        ),
    ],
    minutes: Annotated[
        float | None, Option(min=0.01, max=10**6, help="Training time of each model. Default: 1.")
    ] = None,
    updates: Annotated[
        int | None,
        Option(min=1, help="Updates of 2,048 tokens for each model, instead of minutes."),
    ] = None,
    out: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="The folder to write. Default: runs/ladder-NAME."),
    ] = None,
    level: Annotated[
        str, Option(help="What a token is: char, or bpe (pieces of words, on bytes).")
    ] = "char",
    vocab_size: Annotated[
        int, Option(min=257, max=10**7, help="Size of the vocabulary with --level bpe.")
    ] = 1024,
    rungs: Annotated[
        str | None,
        Option(
            metavar="NAMES",
            help="Models to train, of ngram,nnlm,rnn,lstm,gru,gpt. Default: all of them.",
        ),
    ] = None,
    seed: Annotated[int, Option(min=0, help="Seed of weights, order and samples.")] = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train n-gram, NNLM, RNN, LSTM, GRU and GPT models on one text with the same budget.

    All see the same text and are measured on the same tenth of it, in bits per character. The
    output folder gets ladder.json, ladder.csv, ladder.png and a run folder for every model.

    After an interruption the same command continues; finished models are kept unless an option
    changed.
    """
    from pretune.experiments.ladder import RUNGS, Climb, LadderOptions
    from pretune.render.experiment_views import ladder_view
    from pretune.render.ladder_chart import write_ladder
    from pretune.training.stop import Interrupted

    if minutes is not None and updates is not None:
        raise PretuneError("--minutes or --updates, not both", "Leave one of them out.")
    settings = LadderOptions(
        corpus=corpus,
        output=out or Path("runs") / f"ladder-{Path(corpus).stem}",
        level=level,
        vocab_size=vocab_size,
        minutes=1.0 if minutes is None and updates is None else minutes,
        updates=updates,
        rungs=tuple(RUNGS) if rungs is None else tuple(filter(None, rungs.split(","))),
        seed=seed,
        device=device,
    )
    # Train every rung that is not there yet.
    climb = Climb(settings, quiet=quiet, say=to_stderr(quiet=quiet).say)
    try:
        result = climb.run()
    except Interrupted as stopped:
        fail(f"{stopped}; the same command goes on", STOPPED_BY + stopped.signal)
    # Write the files, then show the table.
    write_ladder(result, settings.output)
    last = f"wrote ladder.json, ladder.csv and ladder.png to {settings.output}"
    print_result(result.to_dict(), ladder_view(result), last, as_json=as_json, saved=True)


@command(
    "runs",
    "pretune runs",
    "pretune runs runs/sweep --sort accuracy",
    "pretune runs --sort metric --json",
)
def runs(
    folder: Annotated[
        Path, Argument(help="Where to look; folders below it are searched as well.")
    ] = Path("runs"),
    sort: Annotated[
        str,
        Option(
            help="time (newest first), metric (each run by the metric that picks its best model), "
            "or the name of a metric."
        ),
    ] = "time",
    as_json: options.AsJson = False,
) -> None:
    """List the runs below a folder: what was trained, how far, and how good it is."""
    from pretune.experiments.runs import find_runs
    from pretune.render.experiment_views import runs_view

    listed = find_runs(folder, sort)
    print_result(listed.to_dict(), runs_view(listed), as_json=as_json)
