"""Sources in pieces, which are read apart from each other; one after the other they are the whole.

A piece is some small sources, or a part of a large one. A large text is cut where a document ends
for certain, wherever the reading began: after a line feed where each line is a document, as in
JSON lines, and after two of them where blank lines separate documents. That can be seen only in
bytes that are the text: not in gzip, and not in encodings where a line feed may be half a character
or something else after a shift. A Parquet file is cut between row groups.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO

from pretune.corpus.documents import (
    CorpusSource,
    Document,
    Meter,
    ReadingOptions,
    Span,
    read_documents,
)
from pretune.data.readers.parquet import opened_parquet
from pretune.errors import DataError
from pretune.storage.object_store import is_url
from pretune.text.byte_stream import is_passing, opened_bytes, spooled
from pretune.text.decode import check_encoding, decoded
from pretune.text.file_kinds import is_gzip

#: Encodings (Python's names) in which the byte 10 is always a line feed, and no character before it
#: changes what follows.
_LINE_FEEDS = ("utf-8", "ascii")
#: After these a document begins. The lookahead finds those that overlap.
_LINE_END = re.compile(rb"(?=(\n))")
_BLANK_LINE = re.compile(rb"(?=(\n\r?\n))")
_LONGEST_MARK = 3
#: Bytes in which the end of a document is looked for at a time.
_LOOK = 1 << 16


@dataclass(frozen=True)
class SourcePart:
    """A source, or a part of it, that a piece reads."""

    source: CorpusSource
    #: Row groups of a table. Of a text, where about it is cut: at the first place there where a
    #: document begins, or after. None: all of the source.
    span: Span | None = None
    #: Bytes, about.
    size: int = 0


Piece = tuple[SourcePart, ...]


def plan_pieces(
    sources: Sequence[CorpusSource], options: ReadingOptions, piece_bytes: int
) -> list[Piece]:
    """Cut sources into pieces of about so many bytes, in the order of their documents.

    Of large files the heads are read (of Parquet the footers), to see whether they can be cut.
    """
    pieces: list[Piece] = []
    small: list[SourcePart] = []
    for source in map(_found_anywhere, sources):
        parts = _parts(source, options, piece_bytes)
        # Small sources that follow each other are read together; Hub datasets have no known size.
        together = len(parts) == 1 and source.kind != "hub"
        full = sum(part.size for part in small) + source.size > piece_bytes
        if small and (full or not together):
            pieces.append(tuple(small))
            small = []
        if together:
            small += parts
        else:
            pieces += [(part,) for part in parts]
    return [*pieces, tuple(small)] if small else pieces


def _found_anywhere(source: CorpusSource) -> CorpusSource:
    """A source by a name that other processes find, whatever folder they work in."""
    if source.kind == "hub" or is_url(source.name):
        return source
    # A pipe can be read only once and here: others read its copy.
    passing = is_passing(source.name)
    name = os.path.realpath(spooled(source.name)) if passing else os.path.abspath(source.name)
    return replace(source, name=name)


def _parts(source: CorpusSource, options: ReadingOptions, piece_bytes: int) -> list[SourcePart]:
    count = -(-source.size // piece_bytes)
    spans: list[Span] = []
    if count > 1:
        try:
            if source.kind == "parquet":
                spans = _row_groups(source, count)
            elif source.kind != "hub" and _mark(source, options) and not _is_packed(source):
                spans = [Span(*edges) for edges in pairwise(_even_edges(source.size, count))]
        except (DataError, OSError):
            spans = []  # whoever reads it says what is wrong, when its turn comes
    if len(spans) < 2:
        return [SourcePart(source, None, source.size)]
    edges = pairwise(_even_edges(source.size, len(spans)))
    sizes = [after - before for before, after in edges]
    return [SourcePart(source, *part) for part in zip(spans, sizes, strict=True)]


def _even_edges(size: int, count: int) -> list[int]:
    """Where `count` parts begin that together are `size`, and the end."""
    return [size * i // count for i in range(count + 1)]


def _mark(source: CorpusSource, options: ReadingOptions) -> re.Pattern[bytes] | None:
    """What stands before a new document in a text; None where that cannot be told."""
    if check_encoding(options.encoding) not in _LINE_FEEDS:
        return None
    marks = {"line": _LINE_END, "blank-line": _BLANK_LINE}
    return _LINE_END if source.kind == "json" else marks.get(options.documents)


def _is_packed(source: CorpusSource) -> bool:
    with opened_bytes(source.name) as handle:
        return is_gzip(handle.read(16))


def _row_groups(source: CorpusSource, count: int) -> list[Span]:
    """Spans of row groups, at most `count`, with about the same number of bytes each."""
    spans: list[Span] = []
    with opened_parquet(source.name) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    share = sum(group.total_byte_size for group in groups) / count
    first = size = rows = before = 0
    for number, group in enumerate(groups):
        size += group.total_byte_size
        rows += group.num_rows
        if size >= share or number + 1 == len(groups):
            spans.append(Span(first, number + 1, before))
            first, size, before = number + 1, 0, rows
    return spans


def piece_documents(piece: Piece, options: ReadingOptions) -> Iterator[Document]:
    """Read all documents of a piece, in order.

    Raises:
        DataError: as `read_documents`, with the line of the whole file.
    """
    for part in piece:
        span = part.span
        if span is None or part.source.kind == "parquet":
            yield from read_documents(part.source, options, Meter(), span)
        elif (exact := exact_span(part.source, options, span)) is not None:
            yield from _span_documents(part.source, options, exact)


def _span_documents(
    source: CorpusSource, options: ReadingOptions, span: Span
) -> Iterator[Document]:
    try:
        yield from read_documents(source, options, Meter(), span)
    except DataError:
        # Lines were counted from the beginning of the span. Now it is worth counting those before.
        if span.start == 0:
            raise
        text = decoded(source.name, options.encoding, marks=True, span=(0, span.start))
        lines = sum(chunk.count("\n") for chunk in text)
        for _ in read_documents(source, options, Meter(), span._replace(before=lines)):
            pass
        raise


def exact_span(source: CorpusSource, options: ReadingOptions, span: Span) -> Span | None:
    """The span from the first document that begins in it to the first one after; None if none."""
    mark = _mark(source, options)
    if mark is None:
        raise ValueError(source, options)  # nothing like this is cut
    with opened_bytes(source.name) as handle:
        start = _begin(handle, mark, span.start, span.stop) if span.start else 0
        if start is None:
            return None
        if span.stop >= source.size:
            return Span(start, source.size)
        stop = _begin(handle, mark, span.stop, source.size)
    return Span(start, source.size if stop is None else stop)


def _begin(handle: BinaryIO, mark: re.Pattern[bytes], start: int, limit: int) -> int | None:
    """The first place from `start` on, and before `limit`, at which a document begins."""
    place = max(start - _LONGEST_MARK, 0)
    handle.seek(place)
    held = b""
    while place < limit and (chunk := handle.read(_LOOK)):
        held += chunk
        for match in mark.finditer(held):
            end = place + match.end(1)
            if end >= limit:
                return None
            if end >= start:
                return end
        # A mark may go on in the next chunk.
        kept = min(len(held), _LONGEST_MARK - 1)
        place += len(held) - kept
        held = held[-kept:]
    return None
