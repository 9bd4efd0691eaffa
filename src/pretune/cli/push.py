"""`pretune push`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result, to_stderr


@command(
    "push",
    "pretune push runs/tickets me/tickets --dry-run /tmp/tickets",
    "pretune push runs/tickets me/tickets --license apache-2.0 --language en",
    "pretune push runs/tickets me/tickets --public",
)
def push(
    run: Annotated[str, Argument(metavar="RUN", help="A finished run, or a checkpoint folder.")],
    repo: Annotated[
        str, Argument(metavar="OWNER/NAME", help="The repository on the Hugging Face Hub.")
    ],
    public: Annotated[
        bool, Option("--public", help="Let everybody see the repository. Default: private.")
    ] = False,
    license_id: Annotated[
        str | None, Option("--license", help="License as the Hub names it, e.g. apache-2.0.")
    ] = None,
    languages: Annotated[
        list[str] | None,
        Option("--language", help="A language of the texts, e.g. en; may be repeated."),
    ] = None,
    dry_run: Annotated[
        str | None,
        Option(metavar="FOLDER", help="Send nothing; write what would be sent to this folder."),
    ] = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Publish a trained model on the Hugging Face Hub, with a model card and its recipe.

    The repository is private unless --public is given. No data are sent, only the names of labels,
    columns, local files and folders. Log in first: hf auth login, or HF_TOKEN.
    """
    from pretune.publishing import publish

    about: dict[str, Any] = {"license_id": license_id, "languages": languages or ()}
    about["allow_pickle"] = allow_pickle
    # The same files are made either way; a dry run leaves them in a folder to look at.
    if dry_run is not None:
        files = publish.stage(run, repo, dry_run, **about)
        shown = {"folder": dry_run, "files": [vars(file) for file in files]}
        last = f"nothing was sent; all of it is in {dry_run}"
    else:
        # The Hub's progress bars are turned off where they would go to a log.
        if not sys.stderr.isatty():
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()
        done = publish.push(run, repo, public=public, say=to_stderr().say, **about)
        files, shown = done.files, done.to_dict()
        last = f"{done.url} ({'private' if done.private else 'public'})"
    width = max(len(file.name) for file in files)
    lines = (f"{file.name:<{width}}  {file.size:>13,} bytes" for file in files)
    print_result(shown, *lines, last, as_json=as_json, saved=True)
