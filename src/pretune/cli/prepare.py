"""`pretune prepare`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pretune.cli.app import AsJson, Encoding, app


class Documents(StrEnum):
    """What a document of a text file is."""

    BLANK_LINE = "blank-line"
    LINE = "line"
    FILE = "file"


class Errors(StrEnum):
    """What to do with documents that cannot be read."""

    STOP = "stop"
    SKIP = "skip"


class Engine(StrEnum):
    """Where documents are tokenized."""

    PROCESSES = "processes"
    RAY = "ray"


@app.command(
    epilog="Examples:\n\n"
    "pretune prepare books/ --tokenizer minilm --output corpus\n\n"
    "pretune prepare 'web/*.jsonl.gz' --field content --tokenizer tok --output corpus "
    "--near-duplicates 0.8 --validation 0.01\n\n"
    "pretune prepare novels/ --documents file --join-lines --tokenizer tok --output corpus"
)
def prepare(
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS...",
            help="Files (.txt, .jsonl, .parquet; .gz too), folders, globs, Hub datasets "
            "(owner/name[:config]:split).",
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(metavar="FOLDER", help="With tokenizer.json; minilm; a Hub id.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    documents: Annotated[
        Documents, typer.Option(help="Of text files: what lies between blank lines, lines, files.")
    ] = Documents.BLANK_LINE,
    field: Annotated[str, typer.Option(help="Of JSON lines, Parquet, Hub: the text.")] = "text",
    encoding: Encoding = "utf-8",
    errors: Annotated[
        Errors, typer.Option(help="At a document that cannot be read: stop, or leave it out.")
    ] = Errors.STOP,
    max_chars: Annotated[
        int, typer.Option(min=1, help="Longer documents are cut into several.")
    ] = 1_000_000,
    nfc: Annotated[bool, typer.Option(help="Unicode's normal form C.")] = True,
    control: Annotated[bool, typer.Option(help="Remove control characters.")] = True,
    spaces: Annotated[bool, typer.Option(help="Collapse spaces within lines.")] = True,
    join_lines: Annotated[
        bool, typer.Option("--join-lines", help="Undo the wrapping of lines at a column.")
    ] = False,
    drop_repeated_lines: Annotated[
        bool, typer.Option("--drop-repeated-lines", help="Within a document.")
    ] = False,
    min_chars: Annotated[int, typer.Option(min=0, help="Shorter documents are dropped.")] = 1,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Do not drop documents equal to another.")
    ] = False,
    near_duplicates: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Drop documents as similar as this, e.g. 0.8."),
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of documents to hold back, e.g. 0.01.")
    ] = 0.0,
    shard_tokens: Annotated[
        int, typer.Option(min=1, help="The most tokens of a shard.")
    ] = 100_000_000,
    engine: Annotated[Engine, typer.Option(help="Where to tokenize.")] = Engine.PROCESSES,
    workers: Annotated[
        int | None, typer.Option(min=1, help="At a time. Default: one for each core.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Do not go on with an unfinished corpus.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Clean and tokenize raw text into shards that pre-training reads.

    Stopped or killed, the same command goes on where it was, and the result is the same.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from pretune.corpus import Cleaning, Reading, Settings
    from pretune.corpus import prepare as run
    from pretune.corpus.pipeline import Progress as Done
    from pretune.report.corpus_tables import corpus_table

    settings = Settings(
        Reading(documents.value, field, encoding, errors.value, max_chars),
        Cleaning(nfc, control, spaces, join_lines, drop_repeated_lines, min_chars),
        keep_duplicates,
        near_duplicates,
        validation,
        shard_tokens,
    )
    bar = Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
    with bar:
        task = bar.add_task("reading", total=None)

        def show(done: Done) -> None:
            text = f"{done.documents:,} documents, {done.tokens:,} tokens"
            bar.update(task, completed=done.done, total=done.size or None, description=text)

        made = run(
            corpus,
            tokenizer,
            output,
            settings,
            engine=engine.value,
            workers=workers,
            restart=restart,
            on_progress=show,
        )
    out = Console(highlight=False)
    if as_json:
        out.print_json(data=made.to_dict())
        return
    out.print(corpus_table(made))
    what = "is there already: " if made.found else "wrote "
    out.print(f"{what}{made.folder}", markup=False, soft_wrap=True)
