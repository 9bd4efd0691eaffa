"""`pretune predict`."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import (
    ProgressBar,
    command,
    print_json_line,
    print_notes,
    progress_bar,
    to_stderr,
    to_stdout,
)
from pretune.errors import PretuneError, not_writable
from pretune.text.spoken_language import tr

if TYPE_CHECKING:
    from pretune.bundle.bundle import Bundle
    from pretune.data.records import Records
    from pretune.inference.answer_table import AnswerTable
    from pretune.inference.predict import Predictor, TokenizedRecords
    from pretune.tasks.base import Prediction

#: Rows of a file that are predicted before any answer is printed.
ROWS_AT_A_TIME = 4096
#: Of a file with more rows than these, each answer is one line in the terminal.
FEW = 10


@command(
    "predict",
    "pretune predict runs/tickets 'Where is my parcel?' 'I want my money back'",
    "pretune predict runs/tickets --file inbox.csv --column text=body --output answers.csv",
    "pretune predict runs/tickets --file inbox.jsonl --json > answers.jsonl",
    "pretune predict runs/tickets 'Where is my parcel?' --explain --page why.html",
    "pretune predict runs/translate 'Guten Morgen!' --set candidates=3",
    "pretune predict runs/squad --question 'Who was it?' --context-file book.txt --top-k 3",
    "pretune predict models/base --adapter runs/en/best/adapter 'Where is my parcel?'",
    "tail -f messages.txt | pretune predict runs/tickets --json",
)
def predict(
    run: options.Run,
    texts: Annotated[
        list[str] | None,
        Argument(metavar="TEXT", help="The texts; for pairs: first, second, first, ..."),
    ] = None,
    file: Annotated[
        Path | None,
        Option(help="A table with the task's columns, or plain text with one input a line."),
    ] = None,
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="Write the rows of --file with all their columns, and the answers beside them: a "
            ".csv, .tsv, .jsonl or .parquet file. The same command goes on after an interruption.",
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier --output.")] = False,
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
    explain: Annotated[
        bool, Option("--explain", help="Show which tokens speak for each answer, and against it.")
    ] = False,
    page: Annotated[
        Path | None, Option(help="With --explain: write it to this HTML file as well.")
    ] = None,
    lang: options.Lang = None,
    adapters: Annotated[
        list[Path] | None,
        Option(
            "--adapter",
            help="The folder of a LoRA adapter to put beside the model RUN; may be repeated: each "
            "answers, and the model is loaded once.",
        ),
    ] = None,
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
    _refuse_file_as_text(texts or [])
    _check_output(output, file, as_json=as_json, overwrite=overwrite)
    _check_explain(explain, page, alone=output is None and len(adapters or []) <= 1)
    options.check_utf8("TEXT", texts or [])
    options.check_utf8("--question", questions or [])
    options.check_utf8("--context", [] if context is None else [context])
    from pretune.inference.predict import Predictor, input_parts

    changed = options.option_pairs(task_options)
    bundles = _bundles(run, adapters or [], changed, allow_pickle)
    predictors = [Predictor(bundle, device=device, precision=precision) for bundle in bundles]
    predictor, shown = predictors[0], _Shown(predictors, adapters or [], top_k, as_json)
    total, read = None, _BytesRead(file)
    # The inputs come in batches, so that answers appear before the end of a long file or pipe.
    if texts:
        batches: Iterable[Records] = [_texts_as_records(predictor, texts)]
    elif asked:
        passage = _passage(context, context_file, encoding)
        batches = [_questions(predictor, questions or [], passage)]
        total = len(questions or [])
    elif file is not None:
        names = options.column_pairs(columns)
        parts = input_parts(
            *(predictor.bundle, file),
            columns=names,
            encoding=encoding,
            quoting=quoting,
            size=ROWS_AT_A_TIME,
            on_bytes=read,
        )
        # The first part is read now: a file that cannot be read writes no table.
        first = next(parts)
        total, shown.brief = first.whole, len(first) > FEW
        if output is not None:
            # What the answers depend on, beside the rows: a run that was killed goes on only there.
            depends = {"set": changed, "columns": names, "precision": precision, "top_k": top_k}
            # Of a run the model alone: a report may be written into its folder meanwhile.
            sources = [file, predictor.bundle.folder or run, *(adapters or [])]
            shown.collect_in(output, sources, depends)
        batches = _after(itertools.chain([first], parts), shown.done)
    else:
        batches = _piped(predictor, encoding, max_chars)
    # The limit on texts is the model's own, unless the person gives another.
    if max_chars is not None:
        batches = (replace(batch, max_chars=max_chars) for batch in batches)
    if explain:
        _explain(predictor, batches, page, lang, as_json=as_json)
    else:
        with shown.kept():
            _answer(predictors, batches, shown, total, read=read if file is not None else None)
    shown.finish()
    for own in predictors:
        _say_what_was_odd(own)


class _BytesRead:
    """How much of a file was read, in bytes: its number of rows is known only at its end."""

    def __init__(self, file: Path | None) -> None:
        self.size = os.path.getsize(file) if file is not None and file.is_file() else 0
        self.done = 0

    def __call__(self, count: int) -> None:
        self.done += count


def _after(parts: Iterable[Records], done: int) -> Iterator[Records]:
    """The records after the first `done`, which are answered; notes are told on the way."""
    for records in parts:
        print_notes(records)
        if done < len(records):
            yield records.take(range(done, len(records)))
        done = max(0, done - len(records))


def _answer(
    predictors: Sequence[Predictor],
    batches: Iterable[Records],
    shown: _Shown,
    total: int | None,
    *,
    read: _BytesRead | None,
) -> None:
    """Answer batches of records; of a file, which is `read`, the next one is tokenized meanwhile.

    Of a pipe nothing is read ahead: who writes there may wait for the answers.
    """
    from pretune.data.prefetch import prefetched

    def tokenize(batch: Records) -> tuple[list[TokenizedRecords], int]:
        reached = 0 if read is None else read.done
        return [predictor.tokenize(batch) for predictor in predictors], reached

    # How far a file is: in rows where their number is known, else in bytes.
    by_bytes = total is None and read is not None and read.size > 0
    size = read.size if by_bytes and read is not None else total
    before = 0.0 if by_bytes else float(shown.done)
    with progress_bar("answering", size, shown=size is not None) as bar:
        for parts, reached in prefetched(tokenize, batches, int(read is not None)):
            records, answers = parts[0].records, []
            after = float(reached) if by_bytes else before + len(records)
            # A share of the way for each model.
            share = (after - before) / len(parts)
            for number, (own, part) in enumerate(zip(predictors, parts, strict=True)):
                answers.append(own.answer(part, progress=_moved(bar, before, number, share)))
            with nullcontext() if bar is None else bar.hidden():
                shown.show(records, answers)
            before = after


def _moved(
    bar: ProgressBar | None, done: float, number: int, share: float
) -> Callable[[int, int], None] | None:
    """Let a model move the bar from its first row to its last, of `share` rows after `done`."""
    if bar is None:
        return None
    return lambda part, whole: bar(done + share * (number + part / max(whole, 1)))


def _explain(
    predictor: Predictor,
    batches: Iterable[Records],
    page: Path | None,
    lang: str | None,
    *,
    as_json: bool,
) -> None:
    """Answer records, and show what speaks for each answer."""
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.evaluation.explain import explain_records, finished
    from pretune.inference.predict import shown_inputs
    from pretune.render.explained_views import explained_page, explained_view
    from pretune.render.result_views import answer_view
    from pretune.tasks.certainty import HasCertainty

    if not isinstance(predictor.task, HasCertainty):
        raise PretuneError(
            f"the answers of the task {predictor.task.name} cannot be explained",
            "Leave out --explain. Those of classifiers, taggers and the like can be.",
        )
    out, told = to_stdout(), []
    for records in batches:
        part = predictor.tokenize(records)
        answers = predictor.answer(part)
        explained = finished(explain_records(predictor.bundle, part))
        for row, answer, own in zip(records.rows, answers, explained, strict=True):
            inputs = shown_inputs(predictor.task, row)
            shown = answer_view(inputs, answer)
            told.append((shown.plain, own))
            if as_json:
                print_json_line({**inputs, **answer.to_dict(), "explained": own.to_dict()})
            else:
                out.print(shown.append(explained_view(own)), soft_wrap=True)
    if page is not None:
        try:
            with options.page_language(lang):
                atomic_text(page, explained_page(tr("Why these answers"), told))
        except OSError as error:
            raise not_writable(page, "file", error) from None
        to_stderr().say(f"wrote {page}")


class _Shown:
    """Where answers go: to the terminal, or into a table beside the rows they answer.

    Args:
        predictors: the models that answer each row, one for each of several adapters.
        adapters: their folders.
        top_k: how many of the possible answers are shown.
        as_json: whether each answer is printed as a line of JSON.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        adapters: Sequence[Path],
        top_k: int | None,
        as_json: bool,
    ) -> None:
        self._predictors, self._top_k, self._as_json = predictors, top_k, as_json
        several = len(predictors) > 1
        self._named = [str(folder) for folder in adapters] if several else [None]
        self._table: AnswerTable | None = None
        #: Whether answers are many, and one line each is enough.
        self.brief = False
        #: The rows that have their answers.
        self.done = 0

    def collect_in(
        self, output: Path, sources: Sequence[str | Path], depends: Mapping[str, Any]
    ) -> None:
        """Put the answers into a table, which may have some of another run of the same command."""
        from pretune.inference.answer_table import AnswerTable, stamps

        identity = {"files": [stamps(source) for source in sources], **depends}
        self._table = AnswerTable(output, identity)
        self.done = self._table.keep_groups(len(self._named))
        if self.done:
            to_stderr().say(f"{self._table.part}: {self.done:,} rows are answered; going on there")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context that says where the answers are, if Ctrl-C ends it."""
        try:
            yield
        except KeyboardInterrupt:
            if self._table is not None and self.done:
                part, done = self._table.part, self.done
                to_stderr().say(
                    f"{part}: {done:,} rows are answered; the same command goes on there"
                )
            raise

    def show(self, records: Records, answers: Sequence[Sequence[Prediction]]) -> None:
        """Show the answers that each model gives to records."""
        rows = zip(records.rows, *answers, strict=True)
        if self._table is None:
            for row, *own in rows:
                self._print(row, own)
        else:
            from pretune.inference.answer_table import answered_row

            self._table.add(
                answered_row(
                    row if name is None else {**row, "adapter": name},
                    records.renamed,
                    answer.top(self._top_k),
                    everything=self._top_k is not None,
                )
                for row, *own in rows
                for name, answer in zip(self._named, own, strict=True)
            )
        self.done += len(records)

    def finish(self) -> None:
        """Give the table its name, if there is one."""
        if self._table is not None:
            self._table.finish()
            to_stderr().say(f"wrote {self._table.target}: {self.done:,} rows with their answers")

    def _print(self, row: Mapping[str, Any], answers: Sequence[Prediction]) -> None:
        from pretune.inference.predict import shown_inputs
        from pretune.render.result_views import answer_line, answer_view

        out = to_stdout()
        for predictor, name, answer in zip(self._predictors, self._named, answers, strict=True):
            inputs, top = shown_inputs(predictor.task, row), answer.top(self._top_k)
            whose = {} if name is None else {"adapter": name}
            if self._as_json:
                print_json_line({**inputs, **whose, **top.to_dict()})
                continue
            line = None
            if self.brief and self._top_k is None:
                line = answer_line({**inputs, **whose}, top)
            out.print(line or answer_view({**inputs, **whose}, top), soft_wrap=True)


def _bundles(
    run: str, adapters: Sequence[Path], task_options: Mapping[str, Any], allow_pickle: bool
) -> list[Bundle]:
    """Load the model, and put each adapter beside it."""
    from pretune.bundle.bundle import load

    if not adapters:
        return [load(run, options=task_options, allow_pickle=allow_pickle)]
    from pretune.bundle.adapted import with_adapter

    base = load(run, allow_pickle=allow_pickle)
    bundles = [with_adapter(base, folder, options=task_options) for folder in adapters]
    # One line of input is read by all of them.
    inputs = [list(bundle.task.inputs) for bundle in bundles if bundle.task is not None]
    for folder, own in zip(adapters, inputs, strict=True):
        if own != inputs[0]:
            raise PretuneError(
                f"--adapter {folder}: reads {' and '.join(own)}, but {adapters[0]} reads "
                f"{' and '.join(inputs[0])}",
                "Ask them one after the other.",
            )
    return bundles


def _refuse_file_as_text(texts: Sequence[str]) -> None:
    """Refuse a text that is the name of a file: its rows are meant, and not its name."""
    for text in texts:
        if os.path.isfile(text):  # False for a name that no file can have
            raise PretuneError(
                f"TEXT '{text}': is a file, and its name would be answered",
                f"Its rows: --file {text}. The name itself, as a line of a pipe: "
                "echo NAME | pretune predict RUN",
            )


def _check_explain(explain: bool, page: Path | None, *, alone: bool) -> None:
    """Check that --explain is about one model's answers, and --page about --explain."""
    if explain and not alone:
        raise PretuneError("--explain shows answers of one model: no --output, one --adapter")
    if page is not None and not explain:
        raise PretuneError("--page is about --explain")


def _check_output(
    output: Path | None, file: Path | None, *, as_json: bool, overwrite: bool
) -> None:
    """Check what --output needs and refuses."""
    if output is None:
        if overwrite:
            raise PretuneError("--overwrite is about --output FILE, and there is none")
        return
    from pretune.inference.answer_table import check_table

    if file is None:
        raise PretuneError(
            "--output keeps the rows of --file FILE, and there is none",
            "Give a file, or redirect what is printed: --json > answers.jsonl",
        )
    if as_json:
        raise PretuneError("give either --json, which prints answers, or --output")
    check_table(output, file, overwrite=overwrite)


def _say_what_was_odd(predictor: Predictor) -> None:
    """Say how many inputs had no text, and how many more than the model reads."""
    notes = to_stderr()
    if predictor.blank:
        lines = "line or text" if predictor.blank == 1 else "lines or texts"
        notes.say(f"{predictor.blank:,} blank {lines}: answered too, so that answers stay in line")
    if predictor.cut:
        notes.say(f"{predictor.cut:,} of them {predictor.task.truncation_note}")


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
