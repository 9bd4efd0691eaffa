"""`read`: records from any source. The name of the source decides which reader is asked."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeGuard, TypeVar

from pretune.data.readers.conll import CONLL_SUFFIXES, WORDS, looks_like_conll, read_conll
from pretune.data.readers.delimited import fitting_headers, read_table, table_parts
from pretune.data.readers.in_memory import Table, from_memory, is_from_memory, recalled
from pretune.data.readers.plain_text import (
    TextUnit,
    is_plain,
    parallel_files,
    read_parallel,
    read_plain,
)
from pretune.data.records import MAX_CHARS, Records
from pretune.errors import DataError, did_you_mean, similar_file
from pretune.storage.object_store import is_url, local_copy
from pretune.text.byte_stream import OnBytes, first_bytes, is_file, is_pipe
from pretune.text.decode import LONGEST_RECORD, check_encoding, file_chunks, lines_of
from pretune.text.file_kinds import kind_by_name, page_kind, suffix_of

#: How quotes in a CSV or TSV file may be read.
QUOTINGS = ("auto", "standard", "none")

Source = TypeVar("Source")
#: The task's names of columns -> those in the data.
Columns = Mapping[str, str]


# Imported by the first file of their kind: a text on the command line needs none of them.


def _json(path: Path, encoding: str, quoting: str, columns: Columns, keep_bad: bool) -> Records:
    from pretune.data.readers.json_files import read_json

    return read_json(path, encoding, columns, keep_bad=keep_bad)


def _csv(path: Path, encoding: str, quoting: str, columns: Columns, keep_bad: bool) -> Records:
    return read_table(path, encoding, ",", quoting, columns, keep_bad=keep_bad)


def _tsv(path: Path, encoding: str, quoting: str, columns: Columns, keep_bad: bool) -> Records:
    return read_table(path, encoding, "\t", quoting, columns, keep_bad=keep_bad)


def _conll(path: Path, encoding: str, quoting: str, columns: Columns, keep_bad: bool) -> Records:
    return read_conll(path, encoding, columns)


def _parquet(path: Path, encoding: str, quoting: str, columns: Columns, keep_bad: bool) -> Records:
    from pretune.data.readers.parquet import read_parquet

    return read_parquet(path)


def _hub(source: str) -> Records | None:
    from pretune.data.readers.hub import HUB_DATASET, read_hub

    return read_hub(source) if HUB_DATASET.fullmatch(source) else None


#: From the end of a file's name to its reader, which takes the path, the encoding, the quoting, the
#: names of columns, and whether records that cannot be read are left out.
_READERS: dict[str, Callable[[Path, str, str, Columns, bool], Records]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json),
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    **dict.fromkeys(CONLL_SUFFIXES, _conll),
}

#: Files whose names end like this hold rows with columns.
TABLE_SUFFIXES = tuple(_READERS)
#: The delimiters of tables by the end of their name, and all files that are read in parts.
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
IN_PARTS = (*_DELIMITERS, ".jsonl", ".ndjson", ".parquet")
_JSON = (".jsonl", ".ndjson", ".json")
_OBJECTS = re.compile(r"\s*(?:\{\s*\"|\[\s*\{)")
#: How much is read to tell what a file without a telling name is.
_PROBE_BYTES = 1 << 16
#: What people are told about a file that is not what its name says, by the end of that kind's name.
_TOLD = {
    ".jsonl": "JSON",
    ".csv": "a table",
    ".tsv": "a table",
    ".conll": "CoNLL columns: a word and its tag on a line, blank lines between sentences",
}
_CELLS = re.compile(rb"\s*[a-z_][^\n]*?[,\t]", re.IGNORECASE)


def read(
    source: str | Path | Table,
    *,
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int = MAX_CHARS,
    text_unit: TextUnit = "blank-line",
    columns: Columns = MappingProxyType({}),
    kind: str | None = None,
    keep_bad: bool = False,
) -> Records:
    """Read records.

    Args:
        source: a local `.jsonl`/`.ndjson`/`.json` (SQuAD's nested layout too), `.csv`, `.tsv` or
            `.parquet` file; CoNLL columns (`.conll`, `.bio`, or a `.txt` file that has them);
            another `.txt` file or a folder of such; two files of parallel text,
            `train.de,train.en`, whose lines become `source` and `target`; or a dataset on the
            Hugging Face Hub as `owner/name[:config]:split`, e.g. `nyu-mll/glue:mrpc:train`; or such
            a file in object storage, `s3://bucket/train.csv`, which is copied to the cache; or a
            table in memory (see `from_memory`), or the name that a recipe has for one.
        encoding: of a text file, e.g. `gb18030`.
        quoting: of a CSV or TSV file: `standard` (fields may be in double quotes), `none` (a quote
            is a character like any other), or `auto`: standard for CSV, none for TSV, as the public
            datasets do it.
        max_chars: a longer text is refused as a mistake (see `Records.text`).
        text_unit: what one record of a `.txt` file is: `blank-line`, a document, where blank lines
            separate documents, as `pretune prepare` reads them; or `file`, the whole file.
        columns: the task's names of columns -> those in the data, which keep theirs here. Numbers
            are for tables whose first line is a record, and for CoNLL columns: from 1, or from -1
            backwards.
        kind: the suffix of a kind of file to read a file as, such as `.csv` (see `table_kind`);
            default: that of its name, or what a pipe without one begins as.
        keep_bad: whether lines of a table, or of JSON, that cannot be read are left out and counted
            (`Records.bad`) instead of being an error.

    Raises:
        DataError: missing, empty, broken or unknown, with the line where there is one; no such
            encoding or quoting.
    """
    _check_quoting(quoting)
    source = _at_hand(source)
    if not _is_place(source):
        held = recalled(source) if isinstance(source, str) else from_memory(source)
        return replace(held, max_chars=max_chars)
    # Two files, and plain text; then the other files by their names.
    path, suffix = Path(source), kind or _kind(source, encoding, tags=WORDS in columns)
    reader = _READERS.get(suffix)
    if (both := parallel_files(source)) is not None:
        records = read_parallel(*both, encoding)
    elif (suffix == ".txt" and is_file(path)) or (reader is None and is_plain(path)):
        records = read_plain(path, encoding, text_unit)
    elif is_file(path):
        if reader is None:
            raise _unknown_format(path)
        if suffix != ".parquet":
            _check_content(path, suffix)
        records = reader(path, encoding, quoting, columns, keep_bad)
        if suffix in _TOLD and suffix != suffix_of(path):
            records = replace(records, notes=(f"{path}: read as {_TOLD[suffix]}", *records.notes))
    # Nothing to read under that name: a folder, a Hub dataset, or a mistake.
    elif os.path.isdir(path):
        raise DataError(
            f"{path}: is a folder, expected a file",
            "Name a file in it; only folders with .txt files are read as a whole.",
        )
    elif reader is None and (of_hub := _hub(str(source))) is not None:
        records = of_hub
    elif os.path.exists(path):
        raise DataError(f"{path}: is neither a file nor a pipe", "Give a file.")
    else:
        raise DataError(
            f"{path}: no such file.{similar_file(path)}",
            "Check the path; relative paths start at the current folder.",
        )
    if not records.rows:
        raise _empty(records)
    return replace(records, max_chars=max_chars)


def _at_hand(source: Source) -> Source | Path:
    """The copy of an object in storage; any other source as it is."""
    return local_copy(str(source)) if is_url(source) else source


def _check_quoting(quoting: str) -> None:
    if quoting not in QUOTINGS:
        raise DataError(f"no quoting is called '{quoting}'", did_you_mean(quoting, QUOTINGS))


def _is_place(source: object) -> TypeGuard[str | Path]:
    """Whether a source is somewhere outside of this program, and no data from memory."""
    return isinstance(source, str | Path) and not is_from_memory(source)


def _empty(records: Records) -> DataError:
    header = ", ".join(records.columns)
    return DataError(
        f"{records.origin}: no records in it",
        f"It has a header ({header}) and nothing below it."
        if header
        else "Give a file with at least one record.",
    )


def read_parts(
    source: str | Path,
    size: int,
    *,
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int = MAX_CHARS,
    text_unit: TextUnit = "blank-line",
    columns: Columns = MappingProxyType({}),
    kind: str | None = None,
    keep_bad: bool = False,
    on_bytes: OnBytes | None = None,
) -> Iterator[Records]:
    """Read records as `read` does, `size` at a time.

    CSV, TSV, JSON lines and Parquet files are read as far as they are asked for, so that memory
    does not grow with the file; what is in another format is read as a whole first. A mistake in a
    line is an error when that line is reached.

    Args:
        source: see `read`.
        size: records at a time.
        encoding: see `read`.
        quoting: see `read`.
        max_chars: see `read`.
        text_unit: see `read`.
        columns: see `read`.
        kind: see `read`.
        keep_bad: see `read`.
        on_bytes: called with the number of bytes read from the disk since the last call, where the
            file is read in parts.
    """
    source = _at_hand(source)
    path, suffix = Path(source), kind or _kind(source, encoding, tags=WORDS in columns)
    parts = None
    if is_file(path) and suffix in IN_PARTS and quoting in QUOTINGS:
        if suffix != ".parquet":
            _check_content(path, suffix)
        chunks = file_chunks(
            path, encoding, longest_line=LONGEST_RECORD, in_memory=False, on_bytes=on_bytes
        )
        parts = _in_parts(*(path, suffix, chunks, quoting, columns), size=size, keep_bad=keep_bad)
    streamed = parts is not None
    if parts is None:
        whole = read(
            source,
            encoding=encoding,
            quoting=quoting,
            max_chars=max_chars,
            text_unit=text_unit,
            columns=columns,
            kind=kind,
            keep_bad=keep_bad,
        )
        parts = whole.parts(size)
    read_as = f"{path}: read as {_TOLD[suffix]}" if suffix in _TOLD else ""
    for number, part in enumerate(parts):
        if not part.rows:
            raise _empty(part)
        told = streamed and number == 0 and read_as and suffix != suffix_of(path)
        notes = (read_as, *part.notes) if told else part.notes
        yield replace(part, max_chars=max_chars, notes=notes)


def _in_parts(
    path: Path,
    suffix: str,
    chunks: Iterator[str],
    quoting: str,
    columns: Columns,
    *,
    size: int,
    keep_bad: bool,
) -> Iterator[Records] | None:
    """The records of a file in parts; None where it has to be read as a whole."""
    if suffix in _DELIMITERS:
        how = (_DELIMITERS[suffix], quoting, columns)
        return table_parts(path, chunks, *how, size=size, keep_bad=keep_bad)
    if suffix == ".parquet":
        from pretune.data.readers.parquet import parquet_parts

        return parquet_parts(path, size)
    from pretune.data.readers.json_files import json_parts

    return json_parts(path, chunks, size, keep_bad=keep_bad)


def table_kind(
    source: str | Path,
    wanted: Callable[[Collection[str]], bool],
    *,
    encoding: str = "utf-8",
    tags: bool = False,
) -> str | None:
    """The kind of a file that holds rows with columns, as `read` takes it; None for lines of text.

    A name that tells the kind is believed. A pipe, a `.txt` file and one with another name have to
    begin as that kind: see `kind_of_lines`.

    Args:
        source: a file or a pipe.
        wanted: whether those are the names of columns that somebody looks for.
        encoding: of a text file.
        tags: whether words with their tags are looked for.
    """
    suffix = suffix_of(source)
    if suffix in TABLE_SUFFIXES:
        return suffix
    text = _beginning(source, encoding)
    if is_pipe(source) and _OBJECTS.match(text):
        return ".jsonl"
    return kind_of_lines(text, wanted, tags=tags)


def kind_of_lines(
    text: str, wanted: Callable[[Collection[str]], bool], *, tags: bool = False
) -> str | None:
    """The kind of a table that some lines are the beginning of; None for plain text.

    The first line is an object of JSON with columns that are wanted, or names such, and at least
    one line follows that has as many fields; or all lines are words with tags.
    """
    first, *others = lines_of(text.strip()) or [""]
    with suppress(ValueError, RecursionError):
        value = json.loads(first)
        return ".jsonl" if isinstance(value, dict) and wanted(value) else None
    if tags and looks_like_conll(text, any_tags=True):
        return ".conll"
    for delimiter, names in fitting_headers(text) if others else ():
        if wanted(names):
            return ".tsv" if delimiter == "\t" else ".csv"
    return None


def _beginning(source: str | Path, encoding: str) -> str:
    """The first lines of a text, without half a line at the end."""
    raw = first_bytes(str(source), _PROBE_BYTES)
    text = raw.decode(check_encoding(encoding), "replace").lstrip("\ufeff")
    return text if len(raw) < _PROBE_BYTES else text[: text.rfind("\n") + 1] or text


def _kind(source: str | Path, encoding: str, *, tags: bool) -> str:
    """The end of the name; of plain text and a nameless pipe the end that fits its content."""
    suffix, pipe = suffix_of(source), is_pipe(source)
    if suffix in TABLE_SUFFIXES or not (pipe or (suffix == ".txt" and is_file(source))):
        return suffix
    text = _beginning(source, encoding)
    if looks_like_conll(text, any_tags=tags):
        return ".conll"
    if suffix == ".txt":
        return suffix
    # A pipe: labelled data have tabs or commas in their first line, or a header that fits.
    line = text.partition("\n")[0]
    if line[:1] in ("{", "["):
        return ".jsonl"
    if "\t" in line:
        return ".tsv"
    fits = any(all(names) for _, names in fitting_headers(text))
    return ".csv" if fits or "," in line else ".txt"


def _unknown_format(path: Path) -> DataError:
    kind = kind_by_name(str(path))
    if kind is not None:
        return DataError(f"{path}: is {kind.what}", kind.way_out.replace("FILE", str(path)))
    first_bytes(str(path), 1)  # what is no text is refused by its name
    return DataError(
        f"{path}: cannot tell the format from the name",
        f"Name it with one of {', '.join(_READERS)}, .txt; .gz may follow.",
    )


def _check_content(path: Path, suffix: str) -> None:
    """Refuse what begins as another format than the name says."""
    head = first_bytes(str(path), 1 << 12).removeprefix(codecs.BOM_UTF8)
    if not head.strip() and len(head) < 1 << 12:
        raise DataError(f"{path}: no records in it", "The file is empty or blank.")
    if (page := page_kind(head)) is not None:
        raise DataError(f"{path}: is {page.what}, not {suffix}", page.way_out)
    if suffix in (".csv", ".tsv") and _OBJECTS.match(head.decode("latin-1")):
        raise DataError(
            f"{path}: is JSON, not a table", "Let its name end in .jsonl, or .json for one array."
        )
    if suffix in _JSON and _CELLS.match(head):
        raise DataError(
            f"{path}: is not JSON; it looks like a table", "Let its name end in .csv or .tsv."
        )
