"""`pretune describe`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_notes, print_result, progress_bar, to_stderr
from pretune.errors import PretuneError, not_writable
from pretune.text.spoken_language import tr


@command(
    "describe",
    "pretune describe train.tsv",
    "pretune describe train.tsv --validation dev.tsv --tokenizer minilm --html data.html",
    "pretune describe reviews.jsonl --text title --text body --label stars --png charts",
)
def describe(
    data: Annotated[list[str], Argument(help="Data files, or Hub datasets.")],
    validation: Annotated[
        list[str] | None,
        Option(help="Another file; its texts that occur in the files before are leaks."),
    ] = None,
    task: Annotated[
        str | None, Option(help="Look at the columns that this task reads, e.g. causal_lm.")
    ] = None,
    text: Annotated[
        list[str] | None, Option(help="A column with text; may be repeated. Default: guessed.")
    ] = None,
    label: Annotated[str | None, Option(help="The column with the labels.")] = None,
    tokenizer: Annotated[
        str | None,
        Option(
            help="Count tokens too, with this tokenizer: a folder (tokenizer.json; vocab.txt; "
            "vocab.json and merges.txt), a model, a run, minilm, or a Hub id."
        ),
    ] = None,
    near: Annotated[
        float,
        Option(
            min=0.0,
            max=1.0,
            help="Similarity from which texts are near-duplicates; 0: do not look for them.",
        ),
    ] = 0.8,
    html: Annotated[Path | None, Option(help="Write everything to one HTML file.")] = None,
    png: Annotated[Path | None, Option(help="Write the charts to this folder.")] = None,
    lang: options.Lang = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Look at data: labels, lengths, duplicates, leaks between splits, unknown tokens."""
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.checkpoints.source import find_tokenizer
    from pretune.data.readers.files import read
    from pretune.inspection.describe import describe as look
    from pretune.render.charts import undrawable
    from pretune.render.data_report import description_page, description_view, write_charts

    # Places that cannot be written are refused before hours of reading.
    if html is not None and not html.resolve().parent.is_dir():
        raise PretuneError(f"--html {html}: no such folder", "Make it first.")
    if png is not None and png.exists() and not png.is_dir():
        raise PretuneError(f"--png {png}: is a file", "Give the name of a folder.")
    # Read all data, then look at them together: leaks are texts that two files have.
    sources = [*data, *(validation or [])]
    named = {name: name for name in (*(text or ()), label) if name is not None}
    files = [
        read(name, encoding=encoding, quoting=quoting, columns=named, keep_bad=True)
        for name in sources
    ]
    for records in files:
        print_notes(records)
    # Near-duplicates are looked for between files, if the extra for that is installed.
    looks_near = near > 0 and len(files) > 1 and find_spec("datasketch") is not None
    chosen = None if tokenizer is None else find_tokenizer(tokenizer)
    with progress_bar("looking", sum(map(len, files)), shown=not quiet) as bar:
        description = look(
            files,
            text=text or _columns(task),
            label=label,
            tokenizer=chosen,
            near=near if looks_near else None,
            progress=bar,
        )
    print_result(description.to_dict(), description_view(description), as_json=as_json)
    # The page and the charts, if they are asked for.
    notes = to_stderr()
    if html is not None:
        try:
            with options.page_language(lang):
                title = tr(f"Data: {', '.join(sources)}")
                atomic_text(html, description_page(description, title))
        except OSError as error:
            raise not_writable(html, "--html", error) from None
        notes.say(f"written: {html}")
    if png is not None:
        for path in write_charts(description, png):
            notes.say(f"written: {path}")
    # Labels that the font of the charts does not have.
    labels = [name for facts in description.files for name in facts.labels]
    if png is not None and (warning := undrawable(labels)) is not None:
        notes.say(warning)


def _columns(task: str | None) -> list[str] | None:
    """The columns that a task reads; None without a task."""
    from pretune.tasks.builtin import task_class

    if task is None:
        return None
    chosen = task_class(task)
    return list(chosen(chosen.options_type(name=task)).inputs)
