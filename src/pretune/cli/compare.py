"""`pretune compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.app import command, progress_bar, to_stdout
from pretune.cli.options import (
    ColumnOption,
    DeviceOption,
    EncodingOption,
    JsonOption,
    LimitOption,
    MaxCharsOption,
    PickleOption,
    QuotingOption,
    TaskSetOption,
    column_pairs,
    only_with_data,
    option_pairs,
)


@command(
    "compare",
    "pretune compare runs/mrpc runs/mrpc-large",
    "pretune compare runs/a runs/b runs/c --data test.tsv --output apart.jsonl",
)
def compare(
    context: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Run folders, checkpoints or Hub ids; the others are compared with the first.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="A labelled file, or a Hub dataset. Default: the validation data of the first run."
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=100, help="Resamples for the intervals and the test.")
    ] = 5000,
    level: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.")
    ] = 0.95,
    examples: Annotated[
        int,
        typer.Option(
            min=0, help="Number of examples to show that only one of two models gets right."
        ),
    ] = 3,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the answers of each model to every example (.jsonl)."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    limit: LimitOption = None,
    columns: ColumnOption = None,
    encoding: EncodingOption = "utf-8",
    quoting: QuotingOption = "auto",
    max_chars: MaxCharsOption = None,
    device: DeviceOption = "auto",
    options: TaskSetOption = None,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare trained models on the same data: is one better, or was it luck?

    Figures come with bootstrap intervals, differences with the p-value of a paired randomization
    test. This covers chance in the test data, not in training: for that, train with --seeds.
    """
    from pretune.bundle.bundle import load
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.evaluation import compare as comparison
    from pretune.evaluation.examine import examine
    from pretune.inference.predict import column_names, task_of
    from pretune.render.report import check_writable
    from pretune.render.result_views import comparison_view
    from pretune.training.data import examined_records

    # Mistakes in the command line are reported before the models are loaded.
    only_with_data(context, data, "--data")
    if output is not None:
        check_writable(output, None, overwrite=overwrite)
    values = option_pairs(options)
    bundles = [load(run, options=values, allow_pickle=allow_pickle) for run in runs]
    tasks = [task_of(bundle) for bundle in bundles]
    comparison.check_tasks(runs, tasks)
    names = column_names(bundles[0], column_pairs(columns))
    records = examined_records(
        *(runs[0], tasks[0], data),
        columns=names,
        encoding=encoding,
        quoting=quoting,
        max_chars=max_chars,
    ).head(limit)
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
    out = to_stdout()
    if as_json:
        out.print_json(data=result.to_dict())
        return
    out.print(comparison_view(result, examples))
    if output is not None:
        out.print(f"wrote {output}", soft_wrap=True)
