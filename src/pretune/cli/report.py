"""`pretune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pretune.cli.app import (
    AllowPickle,
    Columns,
    Device,
    Encoding,
    Model,
    Quoting,
    app,
    column_pairs,
)
from pretune.errors import RunError


@app.command(
    epilog="Examples:\n\npretune report runs/emotion\n\n"
    "pretune report runs/emotion test.tsv --output test.html --png pictures --explain 20"
)
def report(
    run: Model,
    data: Annotated[
        str | None,
        typer.Argument(help="A labelled file, or a Hub dataset. Default: the validation data."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the pictures here too.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first records.")] = None,
    explain: Annotated[
        int, typer.Option(min=0, help="Show what the loss hangs on for so many, worst first.")
    ] = 5,
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    quoting: Quoting = "auto",
    device: Device = "auto",
    allow_pickle: AllowPickle = False,
) -> None:
    """Write one page about a trained model: its training, its mistakes, every example."""
    from pretune.data import Records
    from pretune.infer.examine import examine
    from pretune.infer.explain import explain as explain_one
    from pretune.infer.predict import the_task
    from pretune.report.report import ReportFacts, ReportPage, write_report
    from pretune.report.report_charts import read_course
    from pretune.tasks.bundle import load
    from pretune.training import read_for
    from pretune.training.folder import METRICS, RECIPE, RunFolder
    from pretune.training.inputs import read_data

    bundle = load(run, allow_pickle=allow_pickle)
    task, place = the_task(bundle), Path(run)
    recipe = RunFolder(place).recipe() if (place / RECIPE).is_file() else None
    validation = None if recipe is None else read_data(recipe)[1]
    records = validation
    if data is not None:
        names = {**bundle.columns, **column_pairs(columns)}
        records = read_for(task, data, columns=names, encoding=encoding, quoting=quoting)
    if not isinstance(records, Records):
        raise RunError(
            f"{run}: no validation data to report on", "Name some: pretune report RUN DATA"
        )
    found = examine(bundle, records.head(limit), device=device)
    worst = found.worst_first()[:explain]
    calibrates = found.details.get("confusion") is not None
    fitted = None
    if data is not None and isinstance(validation, Records) and calibrates:
        fitted = examine(bundle, validation, device=device)
    facts = ReportFacts(
        name=place.name,
        recipe=None if recipe is None else recipe.to_yaml(),
        course=read_course(place / METRICS),
        examined=found,
        explained={number: explain_one(bundle, found, number) for number in worst},
        fitted=fitted,
    )
    write_report(ReportPage(facts), output, png)
    Console(highlight=False).print(f"wrote {output}", markup=False, soft_wrap=True)
