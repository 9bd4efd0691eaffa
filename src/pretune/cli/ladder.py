"""`pretune ladder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import STOPPED_BY, command, fail, print_result, to_stderr
from pretune.errors import PretuneError


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
    log = to_stderr(quiet=quiet)
    climb = Climb(settings, quiet=quiet, say=lambda text: log.print(text, soft_wrap=True))
    try:
        result = climb.run()
    except Interrupted as stopped:
        fail(f"{stopped}; the same command goes on", STOPPED_BY + stopped.signal)
    # Write the files, then show the table.
    write_ladder(result, settings.output)
    last = f"wrote ladder.json, ladder.csv and ladder.png to {settings.output}"
    print_result(result.to_dict(), ladder_view(result), last, as_json=as_json)
