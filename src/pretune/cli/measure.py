"""`pretune evaluate` and `pretune compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result, progress_bar


@command(
    "evaluate",
    "pretune evaluate runs/tickets test.tsv",
    "pretune evaluate runs/translate test.de,test.en --set beams=1",
    "pretune evaluate runs/chat-zh dialogues.jsonl --set samples=500",
)
def evaluate(
    run: options.Run,
    data: options.LabelledData,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    task_options: options.TaskSet = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure a trained model on labelled data."""
    from pretune import api
    from pretune.render.result_views import confusion_view, evaluation_view, samples_view

    result = api.evaluate(
        api.load(run, options=options.option_pairs(task_options), allow_pickle=allow_pickle),
        data,
        columns=options.column_pairs(columns),
        device=device,
        precision=precision,
        encoding=encoding,
        quoting=quoting,
        max_chars=max_chars,
        quiet=False,
    )
    more = (confusion_view(result.details), samples_view(result.details))
    views = (evaluation_view(result), *(view for view in more if view is not None))
    print_result(result.to_dict(), *views, as_json=as_json)


@command(
    "compare",
    "pretune compare runs/mrpc runs/mrpc-large",
    "pretune compare runs/a runs/b runs/c --data test.tsv --output apart.jsonl",
)
def compare(
    context: typer.Context,
    runs: Annotated[
        list[str],
        Argument(
            metavar="RUN",
            help="Run folders, checkpoints or Hub ids; the others are compared with the first.",
        ),
    ],
    data: Annotated[
        str | None,
        Option(
            help="A labelled file, or a Hub dataset. Default: the validation data of the first run."
        ),
    ] = None,
    resamples: Annotated[
        int, Option(min=100, help="Resamples for the intervals and the test.")
    ] = 5000,
    level: Annotated[
        float, Option(min=0.5, max=0.999, help="Confidence level of the intervals.")
    ] = 0.95,
    examples: Annotated[
        int,
        Option(min=0, help="Number of examples to show that only one of two models gets right."),
    ] = 3,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="Write the answers of each model to every example (.jsonl)."),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace that file.")] = False,
    limit: options.Limit = None,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    device: options.Device = "auto",
    task_options: options.TaskSet = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare trained models on the same data: is one better, or was it luck?

    Figures come with bootstrap intervals, differences with the p-value of a paired randomization
    test. This covers chance in the test data, not in training: for that, train with --seeds.
    """
    from pretune.bundle.bundle import load
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.evaluation import compare as comparison
    from pretune.evaluation.examine import examine
    from pretune.inference.predict import task_of
    from pretune.render.report import check_writable
    from pretune.render.result_views import comparison_view

    # Mistakes in the command line are reported before the models are loaded.
    options.only_with_data(context, data, "--data")
    if output is not None:
        check_writable(output, None, overwrite=overwrite)
    # All models must do the same job, else there is nothing to compare.
    values = options.option_pairs(task_options)
    bundles = [load(run, options=values, allow_pickle=allow_pickle) for run in runs]
    comparison.check_tasks(runs, [task_of(bundle) for bundle in bundles])
    records = options.records_to_examine(context, runs[0], bundles[0], data).head(limit)
    # Every model answers the same records.
    examined = []
    for run, bundle in zip(runs, bundles, strict=True):
        with progress_bar(f"examining with {run}") as bar:
            examined.append(examine(bundle, records, device=device, progress=bar))
    with progress_bar("resampling") as bar:
        result = comparison.compare(runs, examined, resamples=resamples, level=level, progress=bar)
    if output is not None:
        lines = (json.dumps(row, ensure_ascii=False) for row in result.rows())
        atomic_text(output, "".join(line + "\n" for line in lines))
    # The file has every answer, what is printed only the figures and some examples.
    written = [] if output is None else [f"wrote {output}"]
    views = (comparison_view(result, examples), *written)
    print_result(result.to_dict(), *views, as_json=as_json)
