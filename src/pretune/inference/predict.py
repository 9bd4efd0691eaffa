"""Answers of a trained model, and the inputs they are for: texts, files and pipes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretune.bundle.bundle import Bundle
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.data.readers.conll import WORDS
from pretune.data.readers.files import kind_of_lines, table_kind
from pretune.data.records import MAX_CHARS, ColumnNames, Records, not_finite
from pretune.errors import DataError, NotFiniteError, RunError, describe_value
from pretune.inference.memory import keep_freed_memory
from pretune.inference.runtime import (
    check_precision,
    choose_device,
    inference_context,
    usual_batch_tokens,
)
from pretune.inference.strategies import strategy_for
from pretune.tasks.base import (
    AdaptsRecords,
    AnyTask,
    Prediction,
    Preprocessor,
    ReadsStream,
    with_answers,
)
from pretune.tasks.features import known_columns, longest_text, read_parts_for, record_features
from pretune.tasks.sentences import SentenceTask
from pretune.text.byte_stream import OnBytes, is_file, is_pipe, text_bytes
from pretune.text.decode import (
    TextDecoder,
    check_encoding,
    file_chunks,
    is_wide,
    lines_in,
    not_in,
)
from pretune.text.encoding_guess import likely_encoding
from pretune.text.terminal import names_in_line


@dataclass(frozen=True)
class TokenizedRecords:
    """Records that a model is about to answer."""

    records: Records
    blank: int  # how many of them have no text
    asked: Sequence[int]  # the places of those that the model reads; the others are blank
    task: AnyTask  # that made the features
    features: FeatureSet | None  # of the records that the model reads; None if it reads none


class Predictor:
    """A trained model that answers."""

    def __init__(
        self,
        bundle: Bundle,  # with a task
        *,
        device: str = "auto",  # `auto`, `cpu`, `cuda`, ...
        precision: str = "auto",  # `auto`, `float32`, `bf16` or `int8`
        # Tokens at a time; changes memory and speed only. Default: what suits the device.
        batch_tokens: int | None = None,
    ) -> None:
        self.task = task_of(bundle)
        self.bundle = bundle
        self.device = choose_device(device)
        check_precision(precision, self.device)
        self._precision = precision
        usual = usual_batch_tokens(self.device)
        #: The most tokens that the model reads at a time, unless one text has more.
        self.batch_tokens = usual if batch_tokens is None else batch_tokens
        keep_freed_memory()
        self._model = bundle.model.to(self.device).eval()
        #: How many records were cut, and how many were blank, so far.
        self.cut = self.blank = 0

    def records(self, rows: Sequence[Any], origin: str = "input") -> Records:
        """Turn inputs into records of the model's task; see `records_of`."""
        return records_of(self.task, rows, origin)

    def predict(
        self, records: Records, *, progress: Callable[[int, int], None] | None = None
    ) -> list[Prediction]:
        """Answer records, in their order.

        A blank record has an answer too: an empty one, where the task has such an answer, else what
        the model makes of an empty text.

        Raises:
            DataError: a record cannot be used; names its file, line and column.
        """
        return self.answer(self.tokenize(records), progress=progress)

    def tokenize(self, records: Records) -> TokenizedRecords:
        """Make records ready for `answer`.

        It changes nothing here, so that a thread may do it while the model answers other records.

        Raises:
            DataError: a record cannot be used; names its file, line and column.
        """
        rows = enumerate(records.rows)
        blank = [i for i, row in rows if self.task.without_text(row, with_targets=False)]
        asked: Sequence[int] = range(len(records))
        if blank and self.task.empty_answer() is not None:
            asked = sorted({*asked} - {*blank})
        # A record may become several sequences, and is answered without those before it.
        task = self.task.isolated() if isinstance(self.task, ReadsStream) else self.task
        features = None
        if asked:
            chosen = records if len(asked) == len(records) else records.take(asked)
            features = self._features(task, chosen)
        return TokenizedRecords(records, len(blank), asked, task, features)

    def answer(
        self, part: TokenizedRecords, *, progress: Callable[[int, int], None] | None = None
    ) -> list[Prediction]:
        """Answer what `tokenize` made of records, as `predict` does."""
        items: list[Any] = []
        if part.features is not None:
            items = self.items(part.features, part.task.predict, task=part.task, progress=progress)
        return self.assembled(part, items)

    def assembled(self, part: TokenizedRecords, items: Sequence[Any]) -> list[Prediction]:
        """Make the answers to records of what `items` gave for their features, in their order.

        The features may have been run in any number of parts, and together with others.
        """
        self.blank += part.blank
        task, rows = part.task, part.records.rows
        empty = self.task.empty_answer()
        if part.features is None:
            return [] if empty is None else [empty] * len(rows)
        self.cut += part.features.truncated
        parts = _by_record(part.features, items, len(part.asked))
        answered = [task.combine(own, rows[i]) for i, own in zip(part.asked, parts, strict=True)]
        if empty is None or len(part.asked) == len(rows):
            return answered
        # Blank records have the empty answer, at their places among the others.
        answers: list[Prediction] = [empty] * len(rows)
        for i, answer in zip(part.asked, answered, strict=True):
            answers[i] = answer
        return answers

    def outputs(
        self,
        records: Records,
        read: Callable[[Any, PackedBatch], Sequence[Any]],
        *,
        task: AnyTask | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Any]]:
        """Run the model over records.

        Args:
            records: of the model's task.
            read: takes what it wants from the outputs of a batch: an item for each sequence.
            task: the task that makes features of the records; default: the model's.
            progress: called with the number of sequences done, and of all.

        Returns:
            the items of each record's sequences, in the order of the records.

        Raises:
            DataError: a record cannot be used; names its file, line and column.
        """
        task = task or self.task
        features = self._features(task, records)
        self.cut += features.truncated
        items = self.items(features, read, task=task, progress=progress)
        return _by_record(features, items, len(records))

    def logits(self, records: Records) -> list[list[float]]:
        """Return what a classifier or regressor computes before it becomes probabilities.

        Returns:
            for each record a number for each label, in the model's order.

        Raises:
            RunError: the model is neither.
            DataError: a record cannot be used; names its file, line and column.
        """
        if not isinstance(self.task, SentenceTask):
            raise RunError(
                f"a model trained for the task {self.task.name} has no scores of labels",
                "Ask a classifier.",
            )
        rows = self.outputs(records, lambda outputs, batch: outputs.float().tolist())
        return [row for (row,) in rows]

    def _features(self, task: AnyTask, records: Records) -> FeatureSet:
        return record_features(task, records, self.bundle.tokenizer, with_targets=False)

    @torch.inference_mode()
    def items(
        self,
        features: FeatureSet,
        read: Callable[[Any, PackedBatch], Sequence[Any]],
        *,
        task: AnyTask | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Any]:
        """Run the model over features.

        Args:
            features: of any number of records.
            read: takes what it wants from the outputs of a batch: an item for each sequence.
            task: the task that made the features; default: the model's.
            progress: called with the number of sequences done, and of all.

        Returns:
            the item of each feature, in their order.

        Raises:
            NotFiniteError: the weights are broken.
        """
        # Run the model on batches of about equally long sequences, in whatever order that gives.
        task, parts = task or self.task, dict[int, Any]()
        strategy = strategy_for(task, self._model, features)
        (batches,) = strategy.batches(features.lengths, self.batch_tokens)
        for which in batches:
            batch = features.batch(which).to(self.device)
            with inference_context(self.device, self._precision):
                outputs = strategy.forward(self._model, batch)
                strategy.commit()
                outputs = with_answers(task, self._model, outputs, batch)
            refuse_nan(outputs)
            parts.update(zip(batch.index.tolist(), read(outputs, batch), strict=True))
            if progress is not None:
                progress(len(parts), len(features))
        return [parts[number] for number in range(len(features))]


def refuse_nan(outputs: Any) -> None:
    """Refuse logits that are no numbers, of which the best would be an answer like any other.

    Raises:
        NotFiniteError: some are not.
    """
    logits = outputs if isinstance(outputs, torch.Tensor) else getattr(outputs, "logits", None)
    if isinstance(logits, torch.Tensor) and not bool((logits < torch.inf).all()):  # NaN is not
        raise NotFiniteError


def _by_record(features: FeatureSet, items: Sequence[Any], count: int) -> list[list[Any]]:
    """Put the items of the features of each of `count` records together."""
    of_record: list[list[Any]] = [[] for _ in range(count)]
    for item, record in zip(items, features.records.tolist(), strict=True):
        of_record[record].append(item)
    return of_record


def shown_inputs(task: AnyTask, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is repeated of a record beside its answer; NaN, which is no JSON, as None."""
    names = [name for name in task.shown if name in row]
    return {name: None if not_finite(row[name]) else row[name] for name in names}


def task_of(bundle: Bundle) -> AnyTask:
    """Return the task that a model was trained for."""
    if bundle.task is None:
        report = bundle.report
        where = report.source if report else "this model"
        source = report.source if report and not report.random else "..."
        raise RunError(
            f"{where}: a bare {bundle.family.model_type} model, not trained for a task",
            f"Fine-tune it first: pretune train RECIPE model.from={source}",
        )
    return bundle.task


def records_of(task: Preprocessor, rows: Sequence[Any], origin: str = "input") -> Records:
    """Turn inputs into records of a task.

    Args:
        task: the task that reads them.
        rows: for each record a text (for tasks that read one text), a sequence of texts, or a
            mapping with the task's column names.
        origin: where the inputs come from, for errors.

    Raises:
        DataError: a row does not have the form that the task reads.
    """
    columns = list(task.inputs)
    records = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            missing = [name for name in columns if name not in row]
            if missing:
                raise DataError(
                    f"{origin}, row {number}: no '{missing[0]}'; it has {names_in_line(row)}",
                    f"Give {' and '.join(columns)}.",
                )
            records.append({name: row[name] for name in columns})
            continue
        if not isinstance(row, Iterable) or isinstance(row, bytes | bytearray):
            raise DataError(
                f"{origin}, row {number}: expected a text, found {describe_value(row)}",
                f"Give {' and '.join(columns)}: a text each.",
            )
        values = [row] if isinstance(row, str) else list(row)
        if len(values) != len(columns):
            raise DataError(
                f"{origin}, row {number}: {_texts(len(values))}, but the model reads "
                f"{_texts(len(columns))} ({', '.join(columns)})",
                "Separate the texts of a pair by a tab on one line."
                if len(columns) > 1
                else "Give one text a row.",
            )
        records.append(dict(zip(columns, values, strict=True)))
    return Records(
        records, origin, range(1, len(records) + 1), tuple(columns), max_chars=longest_text(task)
    )


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"{count} texts"


def column_names(bundle: Bundle, given: Mapping[str, str] | None) -> ColumnNames:
    """Return the data's names for the columns of a model's task."""
    return ColumnNames(bundle.columns, given or {}, known_columns(task_of(bundle)))


def read_inputs(
    bundle: Bundle,
    source: Path,
    *,
    # Our names of columns -> the data's names, for tables only.
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8",  # of text files
    quoting: str = "auto",  # of CSV and TSV files
) -> Records:
    """Read a file to predict on as a whole; see `input_parts`."""
    how: dict[str, Any] = {"columns": columns, "encoding": encoding, "quoting": quoting}
    return Records.joined(input_parts(bundle, source, **how))


def input_parts(
    bundle: Bundle,
    source: Path,
    *,
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8",
    quoting: str = "auto",
    size: int = 4096,
    on_bytes: OnBytes | None = None,
) -> Iterator[Records]:
    """Read a file to predict on in parts: a table, or plain text with one input a line.

    A pipe, and a file whose name does not tell which, is a table where it begins as such: its first
    line names the columns that the model reads, or for a model of tags every line has a word and
    its tag.

    Args:
        bundle: the model.
        source: the file.
        columns: our names of columns -> the data's names, for tables only.
        encoding: of text files.
        quoting: of CSV and TSV files.
        size: records at a time; see `read_parts` for the formats that memory does not grow with.
        on_bytes: called with the number of bytes read since the last call.

    Raises:
        DataError: the file is missing, empty or broken, or lacks a column.
    """
    task = task_of(bundle)
    names = column_names(bundle, columns)
    kind = _kind(task, source, names, encoding) if is_file(source) else None
    # A table, or a Hub dataset; its targets are not needed, and not renamed unless that is asked.
    if kind is not None or not is_file(source) or (names.given and is_pipe(source)):
        for target in {*task.targets} - {*names.given}:
            names.pop(target, None)
        yield from read_parts_for(
            *(task, source, size),
            columns=names,
            encoding=encoding,
            quoting=quoting,
            kind=kind,
            on_bytes=on_bytes,
        )
        return
    if names.given:
        raise DataError(
            f"{source}: plain text with one input a line has no columns",
            "Leave the names of columns out, or give a table, such as a .csv file.",
        )
    for number, lines in enumerate(_line_parts(source, encoding, size, on_bytes)):
        records = lines_to_records(task, lines, str(source))
        # A table of one column looks like lines of text; only its name could tell.
        first = lines[0][1].strip()
        if number == 0 and _names_inputs(task, names)([first]):
            records = records.noting(
                f"{source}: line 1, {first!r}, is taken for an input; if it names a column, let "
                "the name of the file end in .csv"
            )
        yield records


def file_lines(source: Path, encoding: str = "utf-8") -> list[tuple[int, str]]:
    """Return the numbered lines of a text file with one input a line."""
    return [line for part in _line_parts(source, encoding) for line in part]


def _line_parts(
    source: Path, encoding: str, size: int = 4096, on_bytes: OnBytes | None = None
) -> Iterator[list[tuple[int, str]]]:
    """The numbered lines of a text file, some at a time; a DataError where all are blank."""
    chunks = file_chunks(source, encoding, in_memory=False, on_bytes=on_bytes)
    lines = enumerate(lines_in(chunks), start=1)
    blank: list[tuple[int, str]] = []
    filled = False
    while part := list(itertools.islice(lines, size)):
        # Blank lines have answers too, but a file of nothing else is a mistake.
        filled = filled or any(line.strip() for _, line in part)
        if filled:
            yield [*blank, *part]
            blank = []
        else:
            blank += part
    if not filled:
        raise DataError(f"{source}: no text in it", "Give a file with one input a line.")


def _kind(task: AnyTask, source: Path, names: ColumnNames, encoding: str) -> str | None:
    """The kind of a table; None for lines of text."""
    wanted, tags = _names_inputs(task, names), WORDS in task.inputs
    return table_kind(source, wanted, encoding=encoding, tags=tags)


def _names_inputs(task: AnyTask, names: ColumnNames) -> Callable[[Collection[str]], bool]:
    """Tell whether columns hold what a task reads, or makes its inputs of."""

    def wanted(columns: Collection[str]) -> bool:
        named = [{name, names.get(name, name)} & {*columns} for name in task.inputs]
        sources = task.sources if isinstance(task, AdaptsRecords) else ()
        return all(named) or any(names.get(name, name) in columns for name in sources)

    return wanted


def refuse_table(bundle: Bundle, lines: Sequence[tuple[int, str]]) -> None:
    """Raise a DataError if the first lines of a stream are a table, which is read as a whole."""
    task, names = task_of(bundle), column_names(bundle, None)
    text = "\n".join(line for _, line in lines)
    kind = kind_of_lines(text, _names_inputs(task, names), tags=WORDS in task.inputs)
    if kind is not None:
        what = {".jsonl": "JSON", ".conll": "CoNLL columns"}.get(kind, "a table")
        raise DataError(
            f"input, line 1: begins {what}, but standard input is read as one text a line",
            "Read it as a file: --file /dev/stdin",
        )


def lines_to_records(task: AnyTask, lines: Iterable[tuple[int, str]], origin: str) -> Records:
    """Turn each line into a record; a tab separates the texts of a pair, of a blank one nothing."""
    lines, width = list(lines), len(task.inputs)
    rows = []
    for number, line in lines:
        fields = line.split("\t") if width > 1 else [line]
        if width > 1 and not line.strip():
            fields = [""] * width
        if len(fields) != width:
            raise DataError(
                f"{origin}, line {number}: {_texts(len(fields))}, but the model reads "
                f"{_texts(width)} ({', '.join(task.inputs)})",
                "Separate them by one tab.",
            )
        rows.append(dict(zip(task.inputs, fields, strict=True)))
    numbers = [number for number, _ in lines]
    return Records(rows, origin, numbers, tuple(task.inputs), max_chars=longest_text(task))


def stream_lines(
    descriptor: int,
    encoding: str = "utf-8",
    *,
    chunk_bytes: int = 1 << 20,  # to read at a time
    # Characters in a line; 8 times as many without a line end are an error.
    longest: int = MAX_CHARS,
) -> Iterator[list[tuple[int, str]]]:
    """Yield numbered lines from a pipe as soon as they arrive, without a byte order mark.

    Raises:
        DataError: the text is not in that encoding, or a line has no end; names the line.
    """
    decoder = TextDecoder(encoding)
    raw = iter(lambda: os.read(descriptor, chunk_bytes), b"")
    chunks = text_bytes(raw, "input", wide=is_wide(check_encoding(encoding)))
    start = b""
    # The unfinished line, in pieces: joining it anew for each chunk would be quadratic.
    unfinished: list[str] = []
    held = number = 0
    for chunk in itertools.chain(chunks, [b""]):
        start = start or chunk
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            raise not_in("input", encoding, error, number + 1, start, "data.encoding=") from None
        # The first part ends the unfinished line, the last part begins the next one.
        first, *others = text.split("\n")
        unfinished.append(first)
        held += len(first)
        whole: list[str] = []
        if others:
            whole, unfinished = ["".join(unfinished), *others[:-1]], others[-1:]
            held = len(others[-1])
        # At the end of the pipe the last line needs no line end.
        if not chunk and held:
            whole.append("".join(unfinished))
        elif held > 8 * longest:
            line = number + len(whole) + 1
            raise DataError(
                f"input, line {line}: over {8 * longest:,} characters without a line end",
                "Give one text a line.",
            )
        if whole:
            yield [(number + i, line.removesuffix("\r")) for i, line in enumerate(whole, 1)]
        number += len(whole)


def decode_line(raw: bytes, number: int) -> str:
    """Decode a line of standard input, without its carriage return and any byte order mark."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        encoding, _ = likely_encoding(raw, error.start) or ("NAME", "")
        raise DataError(
            f"input, line {number}: not valid UTF-8 (byte 0x{error.object[error.start]:02x})",
            f"Convert it first, e.g. with iconv -f {encoding} -t utf-8.",
        ) from None
