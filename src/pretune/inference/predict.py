"""Answers for texts: many at once, no padding, in the order they came."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pretune.bundle.bundle import Bundle
from pretune.data.readers.conversations import ALPACA, CONVERSATIONS, MESSAGES
from pretune.data.readers.files import TABLE_SUFFIXES
from pretune.data.records import (
    MAX_CHARS,
    ColumnNames,
    Records,
)
from pretune.errors import DataError, RunError
from pretune.inference.runtime import choose_device, precision_context
from pretune.inference.strategies import strategy_for
from pretune.tasks.base import AnyTask, Prediction, Preprocessor, ReadsStream, with_answers
from pretune.tasks.features import record_features
from pretune.tasks.reading import longest_text, read_for
from pretune.text.decode import TextDecoder, encoding_hint, lines_of


class Predictor:
    """A model that answers.

    Args:
        bundle: from `pretune.bundle.bundle.load`; must have a task.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `float32` or `bf16`.
        batch_tokens: tokens at a time; changes memory and speed only.

    Attributes:
        cut: how many of the texts that were asked about so far were too long and lost their ends.

    Raises:
        RunError: the model was not trained for a task, or there is no such device.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_tokens: int = 8192,
    ) -> None:
        self.task = the_task(bundle)
        self.bundle = bundle
        self.device = choose_device(device)
        self._precision = precision
        self._batch_tokens = batch_tokens
        self._model = bundle.model.to(self.device).eval()
        self.cut = 0

    def records(self, rows: Sequence[Any], origin: str = "input") -> Records:
        """What a person hands over as records of the task.

        Args:
            rows: of each one a text (for tasks that read one), a sequence of texts, or a mapping
                with the task's column names.
            origin: where they come from, for errors.

        Raises:
            DataError: a row has another form than the task reads.
        """
        return records_of(self.task, rows, origin)

    @torch.inference_mode()
    def predict(
        self, records: Records, *, progress: Callable[[int, int], None] | None = None
    ) -> list[Prediction]:
        """One answer a record, in their order.

        Args:
            records: to answer.
            progress: called with the number of sequences done, and of all.

        Raises:
            DataError: a record cannot be used; names its file, line and column.
        """
        task = self.task.isolated() if isinstance(self.task, ReadsStream) else self.task
        features = record_features(task, records, self.bundle.tokenizer, with_targets=False)
        self.cut += features.truncated
        parts: dict[int, Any] = {}
        strategy = strategy_for(task, self._model, features)
        (batches,) = strategy.batches(features.lengths, self._batch_tokens)
        for which in batches:
            batch = features.batch(which).to(self.device)
            with precision_context(self.device, self._precision):
                outputs = strategy.forward(self._model, batch)
                strategy.commit()
                outputs = with_answers(task, self._model, outputs, batch)
            found = task.predict(outputs, batch)
            parts.update(zip(batch.index.tolist(), found, strict=True))
            if progress is not None:
                progress(len(parts), len(features))
        of_record: list[list[Any]] = [[] for _ in range(len(records))]
        for index, record in enumerate(features.records.tolist()):
            of_record[record].append(parts[index])
        return [task.combine(own, row) for own, row in zip(of_record, records.rows, strict=True)]


def the_task(bundle: Bundle) -> AnyTask:
    """The task of a model.

    Raises:
        RunError: it has none.
    """
    if bundle.task is None:
        where = bundle.report.source if bundle.report else "this model"
        raise RunError(
            f"{where}: a bare {bundle.family.model_type} model, not trained for a task",
            "Fine-tune it first: pretune train RECIPE model.from=...",
        )
    return bundle.task


def records_of(task: Preprocessor, rows: Sequence[Any], origin: str = "input") -> Records:
    """See `Predictor.records`."""
    columns = list(task.inputs)
    made = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            missing = [name for name in columns if name not in row]
            if missing:
                raise DataError(
                    f"{origin}, row {number}: no '{missing[0]}'; it has {', '.join(map(str, row))}",
                    f"Give {' and '.join(columns)}.",
                )
            made.append({name: row[name] for name in columns})
            continue
        values = [row] if isinstance(row, str) else list(row)
        if len(values) != len(columns):
            raise DataError(
                f"{origin}, row {number}: {_texts(len(values))}, but the model reads "
                f"{_texts(len(columns))} ({', '.join(columns)})",
                "Separate the texts of a pair by a tab on one line."
                if len(columns) > 1
                else "Give one text a row.",
            )
        made.append(dict(zip(columns, values, strict=True)))
    return Records(
        made, origin, range(1, len(made) + 1), tuple(columns), max_chars=longest_text(task)
    )


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"{count} texts"


#: Columns that tasks read besides, by the one they stand for or go with.
_BESIDE = {MESSAGES: (CONVERSATIONS, *ALPACA), "answers": ("id", "is_impossible")}


def column_names(bundle: Bundle, given: Mapping[str, str] | None) -> ColumnNames:
    """What data call the columns of a model's task: as given for them, else as in its training.

    Raises:
        DataError: one is given for a column that the task does not know.
        RunError: the model has no task.
    """
    task = the_task(bundle)
    known = [*task.inputs, *task.targets]
    known += [name for column in known for name in _BESIDE.get(column, ())]
    return ColumnNames(bundle.columns, given or {}, known)


def read_inputs(
    bundle: Bundle,
    source: Path,
    *,
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8",
    quoting: str = "auto",
) -> Records:
    """The records of a file to predict on: a table, or plain text with one input a line.

    Raises:
        DataError: missing, empty or broken, or without the task's columns or those given.
    """
    task = the_task(bundle)
    names = column_names(bundle, columns)
    if source.suffix.lower() in TABLE_SUFFIXES or not source.is_file():
        for target in task.targets:
            if target not in names.given:  # the data may have a column of that name for other use
                names.pop(target, None)
        return read_for(
            task,
            source,
            columns=names,
            encoding=encoding,
            quoting=quoting,
            with_targets=False,
        )
    if names.given:
        raise DataError(
            f"{source}: plain text with one input a line has no columns",
            "Leave the names of columns out, or give a table, such as a .csv file.",
        )
    return lines_to_records(task, file_lines(source, encoding), str(source))


def file_lines(source: Path, encoding: str = "utf-8") -> list[tuple[int, str]]:
    """The numbered lines of a text file with one input a line.

    Raises:
        DataError: not to be read, not in that encoding, or without any text.
    """
    from pretune.text.decode import decode_file

    lines = lines_of(decode_file(source, encoding))
    if not any(line.strip() for line in lines):
        raise DataError(f"{source}: no text in it", "Give a file with one input a line.")
    return list(enumerate(lines, start=1))


def lines_to_records(task: Preprocessor, lines: Iterable[tuple[int, str]], origin: str) -> Records:
    """One record a line that is not blank; the texts of a pair are separated by a tab."""
    kept = [(number, line) for number, line in lines if line.strip()]
    several = len(task.inputs) > 1
    rows = []
    for number, line in kept:
        fields = line.split("\t") if several else [line]
        if len(fields) != len(task.inputs):
            raise DataError(
                f"{origin}, line {number}: {_texts(len(fields))}, but the model reads "
                f"{_texts(len(task.inputs))} ({', '.join(task.inputs)})",
                "Separate them by one tab.",
            )
        rows.append(dict(zip(task.inputs, fields, strict=True)))
    return Records(
        rows,
        origin,
        [number for number, _ in kept],
        tuple(task.inputs),
        max_chars=longest_text(task),
    )


def stream_lines(
    descriptor: int,
    encoding: str = "utf-8",
    *,
    most: int = 1 << 20,
    longest: int = MAX_CHARS,
) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines from a pipe, handed over as soon as they are there.

    A byte order mark before the first of them is dropped.

    Args:
        descriptor: of the open pipe.
        encoding: of the text.
        most: bytes to read at a time.
        longest: the characters that a line may be expected to have; with 8 times as many and still
            no end, it is no line.

    Raises:
        DataError: not in that encoding, or a line without end; names the line.
    """
    decoder = TextDecoder(encoding)
    # Of a line that has not ended, in pieces: joined anew for each, a long one would take for ever.
    rest: list[str] = []
    held = number = 0
    while True:
        chunk = os.read(descriptor, most)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            raise _not_in(encoding, error, number + 1, chunk) from None
        first, *others = text.split("\n")
        rest.append(first)
        held += len(first)
        whole: list[str] = []
        if others:
            whole, rest = ["".join(rest), *others[:-1]], others[-1:]
            held = len(others[-1])
        if not chunk and held:
            whole.append("".join(rest))
        elif held > 8 * longest:
            line = number + len(whole) + 1
            raise DataError(
                f"input, line {line}: over {8 * longest:,} characters without a line end",
                "Give one text a line.",
            )
        if whole:
            yield [(number + i, line.removesuffix("\r")) for i, line in enumerate(whole, 1)]
        number += len(whole)
        if not chunk:
            return


def _not_in(encoding: str, error: UnicodeError, line: int, chunk: bytes) -> DataError:
    """The error about bytes of standard input, of which a chunk begins in some line."""
    byte = ""
    if isinstance(error, UnicodeDecodeError):
        line += error.object[: error.start].decode(error.encoding, "ignore").count("\n")
        byte = "".join(f" (byte 0x{b:02x})" for b in error.object[error.start :][:1])
    message = f"input, line {line}: not valid {encoding.upper()}{byte}"
    return DataError(message, encoding_hint(chunk, "data.encoding="))


def decode_line(raw: bytes, number: int) -> str:
    """A line of standard input, without a carriage return at its end; a mark of UTF-8 before the
    first is dropped.

    Raises:
        DataError: not UTF-8; names the line.
    """
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"input, line {number}: not valid UTF-8 (byte 0x{error.object[error.start]:02x})",
            "Convert it first, e.g. with iconv -f gb18030 -t utf-8.",
        ) from None
