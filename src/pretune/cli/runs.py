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
        Path, typer.Argument(help="Where to look; the folders in it are looked at too.")
    ] = Path("runs"),
    sort: Annotated[
        str,
        typer.Option(
            help="time (the newest first), metric (each by the one that picks its best model), or "
            "the name of a metric."
        ),
    ] = "time",
    as_json: JsonOption = False,
) -> None:
    """List all runs below a folder: what was trained, how far it came, and how good it is."""
    from pretune.experiments.runs import find_runs
    from pretune.render.experiment_views import runs_view

    found = find_runs(folder, sort)
    out = to_stdout()
    if as_json:
        out.print_json(data=found.to_dict())
        return
    out.print(runs_view(found))
