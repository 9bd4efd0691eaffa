"""`pretune push`: give a trained model to others."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pretune.cli.app import AsJson, app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pretune.hub import StagedFile


@app.command(
    epilog="Examples:\n\n"
    "pretune push runs/tickets me/tickets --dry-run /tmp/tickets\n\n"
    "pretune push runs/tickets me/tickets --license apache-2.0 --language en\n\n"
    "pretune push runs/tickets me/tickets --public"
)
def push(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run, or a checkpoint folder.")
    ],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Where on the Hugging Face Hub.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it. Default: it is private.")
    ] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", help="As the Hub knows it, e.g. apache-2.0.")
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option("--language", help="Of the texts, e.g. en; may be given several times."),
    ] = None,
    dry_run: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Send nothing; write what would be sent here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a trained model on the Hugging Face Hub, with a model card and its recipe.

    It is private unless --public is given. Of the data only the names of labels and columns are
    sent, of local files and folders only their names. Log in first: hf auth login, or HF_TOKEN.
    """
    from pretune import publish

    out, log = Console(highlight=False), Console(stderr=True, highlight=False)
    if dry_run is not None:
        files = publish.stage(run, repo, dry_run, license_id=license_id, languages=languages or ())
        if as_json:
            out.print_json(data={"folder": dry_run, "files": [vars(file) for file in files]})
            return
        _show(out, files)
        out.print(f"nothing was sent; all of it is in {dry_run}", markup=False, soft_wrap=True)
        return
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    done = publish.push(
        run,
        repo,
        public=public,
        license_id=license_id,
        languages=languages or (),
        say=lambda text: log.print(text, markup=False, soft_wrap=True),
    )
    if as_json:
        out.print_json(data=done.to_dict())
        return
    _show(out, done.files)
    seen = "private" if done.private else "public"
    out.print(f"{done.url} ({seen})", markup=False, soft_wrap=True)


def _show(out: Console, files: Sequence[StagedFile]) -> None:
    width = max(len(file.name) for file in files)
    for file in files:
        out.print(f"{file.name:<{width}}  {file.size:>13,} bytes", markup=False, soft_wrap=True)
