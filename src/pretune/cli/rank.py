"""`pretune rank`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_notes, print_result, progress_bar, to_stderr
from pretune.errors import DataError


class Measure(StrEnum):
    """What makes an answer uncertain."""

    ENTROPY = "entropy"
    MARGIN = "margin"
    CONFIDENCE = "confidence"


class Wanted(StrEnum):
    """What is looked for in texts."""

    BOTH = "both"
    UNCERTAIN = "uncertain"
    DIVERSE = "diverse"


@command(
    "rank",
    "pretune rank runs/tickets inbox.csv --output to-label.csv",
    "pretune rank runs/tickets inbox.csv --column text=body --count 50 --known train.tsv",
    "pretune rank runs/tickets inbox.csv --by margin --choose uncertain --json",
)
def rank(
    run: options.Run,
    file: Annotated[
        Path, Argument(help="A table with the task's columns, or plain text with one input a line.")
    ],
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="Write all rows in their order, with the answers beside them: a .csv, .tsv, "
            ".jsonl or .parquet file.",
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier --output.")] = False,
    count: Annotated[
        int,
        Option(min=1, help="How many texts to choose so that they differ, and to show."),
    ] = 100,
    by: Annotated[
        Measure,
        Option(
            help="Uncertainty: the entropy of the answer, the margin of the best two, or the "
            "confidence in the best."
        ),
    ] = Measure.ENTROPY,
    choose: Annotated[
        Wanted,
        Option(help="uncertain texts, diverse ones (k-center on their embeddings), or both."),
    ] = Wanted.BOTH,
    known: Annotated[
        Path | None, Option(help="Texts that already have labels; texts like them come late.")
    ] = None,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Order unlabelled texts by what their labels would teach the model (active learning).

    The first are those that the model is least sure of and that differ from one another.
    """
    from pretune.bundle.bundle import load
    from pretune.evaluation.ranking import rank_texts
    from pretune.inference.answer_table import AnswerTable, check_table
    from pretune.inference.predict import read_inputs
    from pretune.render.result_views import ranked_view

    # Mistakes in the command line are reported before the model is loaded.
    if output is not None:
        check_table(output, file, overwrite=overwrite)
    bundle, names = load(run, allow_pickle=allow_pickle), options.column_pairs(columns)
    records = read_inputs(bundle, file, columns=names, encoding=encoding, quoting=quoting)
    print_notes(records)
    labelled = None
    if known is not None:
        try:
            labelled = read_inputs(bundle, known, columns=names, encoding=encoding, quoting=quoting)
        except DataError:  # it may have other names of columns, those of the training data
            labelled = read_inputs(bundle, known, encoding=encoding, quoting=quoting)
    with progress_bar("answering") as bar:
        ranked = rank_texts(
            bundle,
            records,
            by=by.value,
            choose=choose.value,
            count=count,
            known=labelled,
            device=device,
            precision=precision,
            progress=bar,
        )
    if ranked.blank:
        have = "record has" if ranked.blank == 1 else "records have"
        to_stderr().say(f"{ranked.blank:,} {have} no text to label: last in the order")
    rows = ranked.rows()
    if output is not None:
        # What an interrupted command left is of nothing that can be told from this.
        output.with_name(f"{output.name}.part").unlink(missing_ok=True)
        table = AnswerTable(output, {})
        table.add(rows)
        table.finish()
        to_stderr().say(f"wrote {output}: {len(rows):,} rows, the first to label first")
        return
    result = {"count": len(rows), "rows": rows[:count]}
    print_result(result, ranked_view(ranked, rows[:count]), as_json=as_json)
