"""`pretune push`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretune.cli.app import command, to_stderr, to_stdout
from pretune.cli.options import JsonOption, PickleOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pretune.publishing.upload import StagedFile


@command(
    "push",
    "pretune push runs/tickets me/tickets --dry-run /tmp/tickets",
    "pretune push runs/tickets me/tickets --license apache-2.0 --language en",
    "pretune push runs/tickets me/tickets --public",
)
def push(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run, or a checkpoint folder.")
    ],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hugging Face Hub.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see the repository. Default: private.")
    ] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", help="License as the Hub names it, e.g. apache-2.0.")
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option("--language", help="A language of the texts, e.g. en; may be repeated."),
    ] = None,
    dry_run: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Send nothing; write what would be sent to this folder."
        ),
    ] = None,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a trained model on the Hugging Face Hub, with a model card and its recipe.

    The repository is private unless --public is given. No data are sent, only the names of labels,
    columns, local files and folders. Log in first: hf auth login, or HF_TOKEN.
    """
    from pretune.publishing import publish

    out = to_stdout()
    about: dict[str, Any] = {
        "license_id": license_id,
        "languages": languages or (),
        "allow_pickle": allow_pickle,
    }
    if dry_run is not None:
        files = publish.stage(run, repo, dry_run, **about)
        shown = {"folder": dry_run, "files": [vars(file) for file in files]}
        last = f"nothing was sent; all of it is in {dry_run}"
    else:
        log = to_stderr()
        _quiet_unless_watched()
        say = partial(log.print, soft_wrap=True)
        done = publish.push(run, repo, public=public, say=say, **about)
        files, shown = done.files, done.to_dict()
        last = f"{done.url} ({'private' if done.private else 'public'})"
    if as_json:
        out.print_json(data=shown)
        return
    _show(out, files)
    out.print(last, soft_wrap=True)


def _quiet_unless_watched() -> None:
    """Turn off the Hub's progress bars where they would go to a log."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()


def _show(out: Console, files: Sequence[StagedFile]) -> None:
    width = max(len(file.name) for file in files)
    for file in files:
        out.print(f"{file.name:<{width}}  {file.size:>13,} bytes", soft_wrap=True)
