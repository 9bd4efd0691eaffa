"""`pretune describe`: what is in the data, before anybody trains on it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.app import command, to_stderr, to_stdout
from pretune.cli.options import EncodingOption, JsonOption, QuotingOption
from pretune.errors import PretuneError, not_writable


@command(
    "describe",
    "pretune describe train.tsv",
    "pretune describe train.tsv --validation dev.tsv --tokenizer minilm --html data.html",
    "pretune describe reviews.jsonl --text title --text body --label stars --png charts",
)
def describe(
    data: Annotated[list[str], typer.Argument(help="Data files, or Hub datasets.")],
    validation: Annotated[
        list[str] | None,
        typer.Option(help="One more file; texts that are in those before it are leaks."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Take the columns that this task reads, e.g. causal_lm.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A column with text. Default: what looks like it.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The column with the labels.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="A tokenizer's folder (tokenizer.json; vocab.txt; vocab.json and merges.txt), a "
            "model, a run, minilm, a Hub id: count its tokens too."
        ),
    ] = None,
    near: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Similarity of near-duplicates between files; 0: do not look."
        ),
    ] = 0.8,
    html: Annotated[Path | None, typer.Option(help="Write all of it as one HTML file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the charts into this folder.")] = None,
    encoding: EncodingOption = "utf-8",
    quoting: QuotingOption = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at data: labels, lengths, duplicates, leaks between splits, what becomes [UNK]."""
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.checkpoints.source import find_tokenizer
    from pretune.data.readers.files import read
    from pretune.inspection.describe import describe as look
    from pretune.render.data_report import (
        description_page,
        description_view,
        font_warning,
        write_charts,
    )
    from pretune.training.logging import Reporter

    if html is not None and not html.resolve().parent.is_dir():
        raise PretuneError(f"--html {html}: no such folder", "Make it first.")
    if png is not None and png.exists() and not png.is_dir():
        raise PretuneError(f"--png {png}: is a file", "Give the name of a folder.")
    sources = [*data, *(validation or [])]
    files = [read(source, encoding=encoding, quoting=quoting) for source in sources]
    there = importlib.util.find_spec("datasketch") is not None
    chosen = None if tokenizer is None else find_tokenizer(tokenizer)
    total = sum(map(len, files))
    with Reporter(quiet=quiet) as reporter, reporter.working("looking", total) as done:
        found = look(
            files,
            text=text or _columns(task),
            label=label,
            tokenizer=chosen,
            near=near if near and there and len(files) > 1 else None,
            progress=done,
        )
    out = to_stdout()
    if as_json:
        out.print_json(data=found.to_dict())
    else:
        out.print(description_view(found))
    notes = to_stderr()
    if html is not None:
        try:
            atomic_text(html, description_page(found, "Data: " + ", ".join(sources)))
        except OSError as error:
            raise not_writable(html, "--html", error) from None
        notes.print(f"written: {html}", soft_wrap=True)
    if png is not None:
        for path in write_charts(found, png):
            notes.print(f"written: {path}", soft_wrap=True)
    warning = font_warning(found) if png else None
    if warning:
        notes.print(warning, soft_wrap=True)


def _columns(task: str | None) -> list[str] | None:
    from pretune.tasks.builtin import task_class

    if task is None:
        return None
    chosen = task_class(task)
    return list(chosen(chosen.options_type(name=task)).inputs)
