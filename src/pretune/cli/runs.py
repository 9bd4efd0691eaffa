"""`pretune runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.app import command, to_stdout
from pretune.cli.options import JsonOption


@command(
    "runs",
    "pretune runs",
    "pretune runs runs/sweep --sort accuracy",
    "pretune runs --sort metric --json",
)
def runs(
    folder: Annotated[
        Path, typer.Argument(help="Where to look; folders below it are searched as well.")
    ] = Path("runs"),
    sort: Annotated[
        str,
        typer.Option(
            help="time (newest first), metric (each run by the metric that picks its best model), "
            "or the name of a metric."
        ),
    ] = "time",
    as_json: JsonOption = False,
) -> None:
    """List the runs below a folder: what was trained, how far, and how good it is."""
    from pretune.experiments.runs import find_runs
    from pretune.render.experiment_views import runs_view

    listed = find_runs(folder, sort)
    out = to_stdout()
    if as_json:
        out.print_json(data=listed.to_dict())
        return
    out.print(runs_view(listed))
