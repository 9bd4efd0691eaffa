"""`pretune predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import (
    command,
    print_json_line,
    print_notes,
    progress_bar,
    to_stderr,
    to_stdout,
)
from pretune.errors import PretuneError

if TYPE_CHECKING:
    from pretune.data.records import Records
    from pretune.inference.predict import Predictor

#: Rows of a file that are predicted before any answer is printed.
ROWS_AT_A_TIME = 4096


@command(
    "predict",
    "pretune predict runs/tickets 'Where is my parcel?' 'I want my money back'",
    "pretune predict runs/tickets --file inbox.csv --column text=body --json > answers.jsonl",
    "pretune predict runs/translate 'Guten Morgen!' --set candidates=3",
    "pretune predict runs/squad --question 'Who was it?' --context-file book.txt --top-k 3",
    "tail -f messages.txt | pretune predict runs/tickets --json",
)
def predict(
    run: options.Run,
    texts: Annotated[
        list[str] | None,
        Argument(metavar="[TEXT]...", help="The texts; for pairs: first, second, first, ..."),
    ] = None,
    file: Annotated[
        Path | None,
        Option(help="A table with the task's columns, or plain text with one input a line."),
    ] = None,
    questions: Annotated[
        list[str] | None,
        Option("--question", help="A question about the passage; may be repeated."),
    ] = None,
    context: Annotated[str | None, Option(help="The passage that the questions are about.")] = None,
    context_file: Annotated[
        Path | None, Option(help="A text file of any length with the passage.")
    ] = None,
    top_k: Annotated[
        int | None, Option(min=1, help="Number of answers to show, with their probabilities.")
    ] = None,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    task_options: options.TaskSet = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Ask a trained model. Without TEXT and --file, it reads lines from standard input.

    Answers come in the order of the input. For models of pairs, the two texts of a line are
    separated by a tab.
    """
    # Mistakes in the command line are reported before the model is loaded.
    asked = bool(questions) or context is not None or context_file is not None
    if (texts is not None) + (file is not None) + asked > 1:
        raise PretuneError("give either TEXT or --file or --question, not several of them")
    if columns and file is None:
        raise PretuneError("--column is about the columns of --file FILE, and there is none")
    if not texts and file is None and not asked and sys.stdin.isatty():
        raise PretuneError("nothing to predict: give TEXT, --file FILE, or lines through a pipe")
    options.check_utf8("TEXT", texts or [])
    options.check_utf8("--question", questions or [])
    options.check_utf8("--context", [] if context is None else [context])
    from pretune.bundle.bundle import load
    from pretune.data.prefetch import prefetched
    from pretune.inference.predict import Predictor, read_inputs, shown_inputs
    from pretune.render.result_views import answer_view

    bundle = load(run, options=options.option_pairs(task_options), allow_pickle=allow_pickle)
    predictor = Predictor(bundle, device=device, precision=precision)
    # The inputs come in batches, so that answers appear before the end of a long file or pipe.
    if texts:
        batches: Iterable[Records] = [_texts_as_records(predictor, texts)]
    elif asked:
        passage = _passage(context, context_file, encoding)
        batches = [_questions(predictor, questions or [], passage)]
    elif file is not None:
        names = options.column_pairs(columns)
        records = read_inputs(bundle, file, columns=names, encoding=encoding, quoting=quoting)
        print_notes(records)
        starts = range(0, len(records), ROWS_AT_A_TIME)
        batches = (records.take(range(i, min(i + ROWS_AT_A_TIME, len(records)))) for i in starts)
    else:
        batches = _piped(predictor, encoding, max_chars)
    # The limit on texts is the model's own, unless the person gives another.
    if max_chars is not None:
        batches = (replace(batch, max_chars=max_chars) for batch in batches)
    # The next rows of a file are tokenized while the model answers. Of a pipe nothing is read
    # ahead: who writes there may wait for the answers.
    out, workers = to_stdout(), 0 if file is None else 1
    for part in prefetched(predictor.tokenize, batches, workers):
        with progress_bar("reading", shown=asked or file is not None) as bar:
            answers = predictor.answer(part, progress=bar)
        # Each answer is printed beside what it answers.
        for row, answer in zip(part.records.rows, answers, strict=True):
            inputs, shown = shown_inputs(predictor.task, row), answer.top(top_k)
            if as_json:
                print_json_line({**inputs, **shown.to_dict()})
            else:
                out.print(answer_view(inputs, shown), soft_wrap=True)
    _say_what_was_odd(predictor)


def _say_what_was_odd(predictor: Predictor) -> None:
    """Say how many inputs had no text, and how many more than the model reads."""
    notes = to_stderr()
    if predictor.blank:
        lines = "line or text" if predictor.blank == 1 else "lines or texts"
        notes.say(f"{predictor.blank:,} blank {lines}: answered too, so that answers stay in line")
    if predictor.cut:
        notes.say(f"{predictor.cut:,} {predictor.task.truncation_note}")


def _texts_as_records(predictor: Predictor, texts: list[str]) -> Records:
    width = len(predictor.task.inputs)
    if len(texts) % width:
        raise PretuneError(
            f"the model reads {width} texts at a time ({', '.join(predictor.task.inputs)}), "
            f"but there are {len(texts)}",
            "Put each text in quotes.",
        )
    return predictor.records([texts[i : i + width] for i in range(0, len(texts), width)], "TEXT")


def _passage(context: str | None, file: Path | None, encoding: str) -> str:
    from pretune.text.decode import decode_file

    if (context is None) == (file is None):
        raise PretuneError("a question needs a passage: give either --context or --context-file")
    return decode_file(file, encoding) if file is not None else str(context)


def _questions(predictor: Predictor, questions: list[str], passage: str) -> Records:
    """One record for each question, all with the same passage, which may be a book."""
    if set(predictor.task.inputs) != {"question", "context"}:
        raise PretuneError(
            f"--question is for models that find answers; this one reads "
            f"{' and '.join(predictor.task.inputs)}",
            "Give TEXT or --file FILE.",
        )
    if not questions:
        raise PretuneError("there is a passage, but no question", "Ask with --question 'TEXT'.")
    # A passage is as long as it is: the limit on texts is for mistakes in files.
    records = predictor.records([{"question": q, "context": passage} for q in questions], "input")
    return replace(records, max_chars=max(records.max_chars, len(passage)))


def _piped(predictor: Predictor, encoding: str, max_chars: int | None) -> Iterator[Records]:
    from pretune.inference.predict import lines_to_records, refuse_table, stream_lines
    from pretune.tasks.features import longest_text

    longest = longest_text(predictor.task) if max_chars is None else max_chars
    # A line holds all the texts of a record.
    longest *= len(predictor.task.inputs)
    for lines in stream_lines(sys.stdin.fileno(), encoding, longest=longest):
        if lines[0][0] == 1:
            refuse_table(predictor.bundle, lines)
        yield lines_to_records(predictor.task, lines, "input")
