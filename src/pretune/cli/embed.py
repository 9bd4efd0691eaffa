"""`pretune embed`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import (
    command,
    print_json_line,
    print_notes,
    print_result,
    progress_bar,
    to_stderr,
    to_stdout,
)
from pretune.errors import PretuneError
from pretune.text.terminal import in_line

#: Numbers of lines without text in a note; JSON has all of them.
SHOWN_LINES = 10


@command(
    "embed",
    "pretune embed minilm sentences.tsv --output vectors.npy",
    "pretune embed runs/tickets inbox.csv --column body --output inbox.parquet",
    "pretune embed minilm faq.jsonl --query 'How do I return a parcel?' --top-k 3",
)
def embed(
    run: options.Run,
    data: Annotated[
        str, Argument(help="A table, a .txt file with one text a line, or a Hub dataset.")
    ],
    output: Annotated[
        Path | None,
        Option(help="A .npy file (float32, one row a text), or .parquet (with the columns)."),
    ] = None,
    query: Annotated[
        str | None, Option(help="Show the texts nearest to this one instead of writing vectors.")
    ] = None,
    top_k: Annotated[int, Option(min=1, help="How many texts to show.")] = 5,
    pooling: Annotated[
        str | None,
        Option(
            help="How to pool: mean, cls, last, max or mean_sqrt_len_tokens. Default: as the "
            "model's folder says, else mean for encoders, last for decoders."
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        Option(
            "--normalize/--no-normalize",
            help="Make every vector of length 1. Default: as the model's folder says, else yes.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        Option(
            help="Put this before every text of the data. Default: as the model's folder says, "
            "else nothing."
        ),
    ] = None,
    prompt_name: Annotated[
        str | None, Option(help="Put the prompt of this name in the model's folder before them.")
    ] = None,
    column: Annotated[
        str | None, Option(help="The column with the texts. Default: guessed.")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        Option(
            min=1,
            help="Tokens at a time; changes memory and speed only. Default: what suits the device.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        Option(
            help="Tokens to read of a text; the rest is cut. Default: as the model's folder says, "
            "else all the model can read."
        ),
    ] = None,
    precision: options.Precision = "float32",
    overwrite: Annotated[bool, Option(help="Replace an existing file.")] = False,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    device: options.Device = "auto",
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Turn each text of a file into a vector, or find the texts nearest to a query."""
    from pretune.bundle.bundle import load
    from pretune.inference.embed import (
        Embedder,
        check_output,
        read_texts,
        settings_note,
        write_vectors,
    )

    notes = to_stderr()
    # Mistakes in the command line are reported before anything is read.
    if (output is None) == (query is None):
        raise PretuneError("give either --output FILE or --query TEXT")
    if output is not None:
        check_output(output, overwrite=overwrite)
    records, texts, blank = read_texts(data, column=column, encoding=encoding, quoting=quoting)
    print_notes(records)
    # No text, no vector: the vectors have other numbers than the lines.
    if blank:
        numbers = ", ".join(map(str, blank[:SHOWN_LINES])) + ", ..." * (len(blank) > SHOWN_LINES)
        what = "rows" if records.lines is None else "lines"
        left_out = f"{what} without text left out: {len(blank):,} ({numbers})"
        notes.say(f"{left_out}; the vectors are of the others, in order")
    # The head that a task trained is of no use here.
    embedder = Embedder(
        load(run, bare=True, allow_pickle=allow_pickle),
        pooling=pooling,
        normalize=normalize,
        prompt=prompt,
        prompt_name=prompt_name,
        device=device,
        precision=precision,
        batch_tokens=batch_tokens,
        max_length=max_length,
    )
    if (note := settings_note(embedder, search=query is not None)) is not None:
        notes.say(note)
    with progress_bar("embedding", len(texts), shown=not quiet) as bar:
        if output is not None:
            write_vectors(embedder, records, texts, output, progress=bar)
        else:
            nearest = embedder.search(
                query or "", texts, top_k=top_k, where=records.where, progress=bar
            )
    if embedder.cut:
        cut = f"{embedder.cut:,} of {len(texts):,} texts"
        notes.say(f"cut to {embedder.max_length:,} tokens: {cut}")
    # Say what was written, or list the nearest texts.
    if output is not None:
        shape = {"output": str(output), "rows": len(texts), "hidden_size": embedder.size}
        line = f"{output}: {len(texts):,} vectors of {embedder.size}, pooling {embedder.pooling}"
        used = {"pooling": embedder.pooling, "normalize": embedder.normalize, "cut": embedder.cut}
        used["blank_lines"] = blank
        print_result({**shape, **used}, line, as_json=as_json, saved=True)
        return
    for item in nearest:
        place = records.where(item.row)
        if as_json:
            print_json_line({**asdict(item), "where": place})
        else:
            line = f"{item.score:.4f}  {in_line(place)}\n        {in_line(item.text)}"
            to_stdout().print(line, soft_wrap=True)
