"""`pretune runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result


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
