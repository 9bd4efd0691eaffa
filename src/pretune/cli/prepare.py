"""`pretune prepare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result, to_stderr

if TYPE_CHECKING:
    from pretune.corpus.pipeline import CorpusProgress


class DocumentUnit(StrEnum):
    """What counts as one document of a text file."""

    BLANK_LINE = "blank-line"
    LINE = "line"
    FILE = "file"


class OnError(StrEnum):
    """What to do with documents that cannot be read."""

    STOP = "stop"
    SKIP = "skip"


class Engine(StrEnum):
    """Where the work is done."""

    PROCESSES = "processes"
    RAY = "ray"


@command(
    "prepare",
    "pretune prepare books/ --tokenizer minilm --output corpus",
    "pretune prepare 'web/*.jsonl.gz' --field content --tokenizer tok --output corpus "
    "--near-duplicates 0.8 --validation 0.01",
    "pretune prepare s3://bucket/texts --tokenizer tok --output s3://bucket/corpus",
    "pretune prepare novels/ --documents file --join-lines --tokenizer tok --output corpus",
)
def prepare(
    corpus: Annotated[
        list[str],
        Argument(
            metavar="CORPUS",
            help="Files (text, .jsonl, .parquet; .gz too), folders, globs, also in object storage "
            "(s3://bucket/texts), Hub datasets (owner/name[:config]:split).",
        ),
    ],
    tokenizer: Annotated[
        str, Option(metavar="FOLDER", help="A folder with tokenizer.json, minilm, or a Hub id.")
    ],
    output: options.OutputFolder,
    documents: Annotated[
        DocumentUnit,
        Option(
            help="What is one document of a text file: what stands between blank lines, a line, "
            "or the file."
        ),
    ] = DocumentUnit.BLANK_LINE,
    field: Annotated[
        str, Option(help="The field with the text in JSON lines, Parquet and Hub datasets.")
    ] = "text",
    encoding: options.Encoding = "utf-8",
    errors: Annotated[
        OnError, Option(help="At a document that cannot be read: stop, or leave it out.")
    ] = OnError.STOP,
    max_chars: Annotated[int, Option(min=1, help="Cut longer documents into several.")] = 1_000_000,
    nfc: Annotated[bool, Option(help="Normalize to Unicode's form C.")] = True,
    control: Annotated[bool, Option(help="Remove control characters.")] = True,
    spaces: Annotated[bool, Option(help="Collapse spaces within lines.")] = True,
    join_lines: Annotated[
        bool, Option("--join-lines", help="Join lines that were wrapped at a column.")
    ] = False,
    drop_repeated_lines: Annotated[
        bool, Option("--drop-repeated-lines", help="Drop lines that a document repeats.")
    ] = False,
    min_chars: Annotated[int, Option(min=0, help="Drop shorter documents.")] = 1,
    keep_duplicates: Annotated[
        bool, Option("--keep-duplicates", help="Keep documents that are equal to an earlier one.")
    ] = False,
    near_duplicates: Annotated[
        float | None,
        Option(
            min=0, max=1, help="Drop documents at least this similar to an earlier one, e.g. 0.8."
        ),
    ] = None,
    validation: Annotated[
        float, Option(min=0, max=1, help="Share of documents to hold back, e.g. 0.01.")
    ] = 0.0,
    shard_tokens: Annotated[
        int, Option(min=1, help="Maximum number of tokens of a shard.")
    ] = 100_000_000,
    engine: Annotated[
        Engine,
        Option(
            help="processes: here; one reads, compares and writes. ray: workers do all of it, on "
            "the cluster of RAY_ADDRESS or one that is started here."
        ),
    ] = Engine.PROCESSES,
    workers: Annotated[
        int | None,
        Option(min=1, help="Processes that work in parallel. Default: one for each core."),
    ] = None,
    restart: Annotated[
        bool, Option("--restart", help="Discard an unfinished corpus and begin anew.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Clean and tokenize raw text into shards that pre-training reads.

    After an interruption the same command continues where it was, with the same result.
    """
    from pretune.corpus.documents import ReadingOptions
    from pretune.corpus.encode import Cleaning
    from pretune.corpus.pipeline import Settings
    from pretune.corpus.pipeline import prepare as prepare_corpus
    from pretune.render.experiment_views import corpus_view

    # Everything that the content of the corpus depends on.
    settings = Settings(
        ReadingOptions(documents.value, field, encoding, errors.value, max_chars),
        Cleaning(nfc, control, spaces, join_lines, drop_repeated_lines, min_chars),
        keep_duplicates,
        near_duplicates,
        validation,
        shard_tokens,
    )
    # How it is made changes nothing in it.
    with _progress(quiet) as show:
        made = prepare_corpus(
            corpus,
            tokenizer,
            output,
            settings,
            engine=engine.value,
            workers=workers,
            restart=restart,
            on_progress=show,
        )
    last = f"{'is there already: ' if made.found else 'wrote '}{made.folder}"
    print_result(asdict(made), corpus_view(made), last, as_json=as_json, saved=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[CorpusProgress], None]]:
    """A bar on standard error that shows documents and tokens beside it."""
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

        def show(done: CorpusProgress) -> None:
            text = f"{done.documents:,} documents, {done.tokens:,} tokens"
            if done.stage != "reading":
                text = f"{text} ({done.stage})"
            bar.update(task, completed=done.done, total=done.size or None, description=text)

        yield show
