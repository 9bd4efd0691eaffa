"""`pretune prepare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretune.cli.app import command, to_stderr, to_stdout
from pretune.cli.options import EncodingOption, JsonOption

if TYPE_CHECKING:
    from pretune.corpus.pipeline import CorpusProgress as Done


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


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS...",
        help="Files (text, .jsonl, .parquet; .gz too), folders, globs, Hub datasets "
        "(owner/name[:config]:split).",
    ),
]
TokenizerFolder = Annotated[
    str, typer.Option(metavar="FOLDER", help="With tokenizer.json; minilm; a Hub id.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")]
DocumentsOf = Annotated[
    Documents, typer.Option(help="Of text files: what lies between blank lines, lines, files.")
]
Field = Annotated[str, typer.Option(help="Of JSON lines, Parquet, Hub: the text.")]
AtErrors = Annotated[
    Errors, typer.Option(help="At a document that cannot be read: stop, or leave it out.")
]
MaxChars = Annotated[int, typer.Option(min=1, help="Longer documents are cut into several.")]
Nfc = Annotated[bool, typer.Option(help="Unicode's normal form C.")]
Control = Annotated[bool, typer.Option(help="Remove control characters.")]
Spaces = Annotated[bool, typer.Option(help="Collapse spaces within lines.")]
JoinLines = Annotated[
    bool, typer.Option("--join-lines", help="Undo the wrapping of lines at a column.")
]
DropRepeatedLines = Annotated[
    bool, typer.Option("--drop-repeated-lines", help="Within a document.")
]
MinChars = Annotated[int, typer.Option(min=0, help="Shorter documents are dropped.")]
KeepDuplicates = Annotated[
    bool, typer.Option("--keep-duplicates", help="Do not drop documents equal to another.")
]
NearDuplicates = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Drop documents as similar as this, e.g. 0.8."),
]
Validation = Annotated[
    float, typer.Option(min=0, max=1, help="Share of documents to hold back, e.g. 0.01.")
]
ShardTokens = Annotated[int, typer.Option(min=1, help="The most tokens of a shard.")]
OnEngine = Annotated[Engine, typer.Option(help="Where to tokenize.")]
Workers = Annotated[int | None, typer.Option(min=1, help="At a time. Default: one for each core.")]
Restart = Annotated[bool, typer.Option("--restart", help="Do not go on with an unfinished corpus.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@command(
    "prepare",
    "pretune prepare books/ --tokenizer minilm --output corpus",
    "pretune prepare 'web/*.jsonl.gz' --field content --tokenizer tok --output corpus "
    "--near-duplicates 0.8 --validation 0.01",
    "pretune prepare novels/ --documents file --join-lines --tokenizer tok --output corpus",
)
def prepare(
    corpus: Sources,
    tokenizer: TokenizerFolder,
    output: Output,
    documents: DocumentsOf = Documents.BLANK_LINE,
    field: Field = "text",
    encoding: EncodingOption = "utf-8",
    errors: AtErrors = Errors.STOP,
    max_chars: MaxChars = 1_000_000,
    nfc: Nfc = True,
    control: Control = True,
    spaces: Spaces = True,
    join_lines: JoinLines = False,
    drop_repeated_lines: DropRepeatedLines = False,
    min_chars: MinChars = 1,
    keep_duplicates: KeepDuplicates = False,
    near_duplicates: NearDuplicates = None,
    validation: Validation = 0.0,
    shard_tokens: ShardTokens = 100_000_000,
    engine: OnEngine = Engine.PROCESSES,
    workers: Workers = None,
    restart: Restart = False,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Clean and tokenize raw text into shards that pre-training reads.

    Stopped or killed, the same command goes on where it was, and the result is the same.
    """
    from pretune.corpus.documents import ReadingOptions
    from pretune.corpus.encode import Cleaning
    from pretune.corpus.pipeline import Settings
    from pretune.corpus.pipeline import prepare as run
    from pretune.render.experiment_views import corpus_view

    settings = Settings(
        ReadingOptions(documents.value, field, encoding, errors.value, max_chars),
        Cleaning(nfc, control, spaces, join_lines, drop_repeated_lines, min_chars),
        keep_duplicates,
        near_duplicates,
        validation,
        shard_tokens,
    )
    with _progress(quiet) as show:
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
    out = to_stdout()
    if as_json:
        out.print_json(data=made.to_dict())
        return
    out.print(corpus_view(made))
    what = "is there already: " if made.found else "wrote "
    out.print(f"{what}{made.folder}", soft_wrap=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Done], None]]:
    """A bar on standard error, and what moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.description}"),
        TimeRemainingColumn(),
        console=to_stderr(),
        disable=quiet,
    )
    with bar:
        task = bar.add_task("reading", total=None)

        def show(done: Done) -> None:
            text = f"{done.documents:,} documents, {done.tokens:,} tokens"
            bar.update(task, completed=done.done, total=done.size or None, description=text)

        yield show
