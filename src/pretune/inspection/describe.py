"""Describe data files before training: labels, lengths, repeats, leaks, unknown tokens."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any

from typing_extensions import override

from pretune.corpus.dedupe import Duplicates, signature, text_key
from pretune.data.columns import as_text, label_column, text_columns
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.inspection.describe_counts import (
    Lengths,
    TokenCounter,
    UnknownTokens,
    count_types,
    count_words,
    script_shares,
)
from pretune.inspection.describe_labels import FileLabels, label_names, read_labels
from pretune.tasks.labels import label_key
from pretune.text.notebook import Displayed
from pretune.text.terminal import in_line
from pretune.tokenizers.tokenizer import Tokenizer

#: Rows whose texts are tokenized at a time.
CHUNK = 256
#: Characters from which a chunk has fewer rows.
_CHUNK_CHARS = 1 << 22
#: Texts whose figures are kept for further rows that share them.
_SHARED_TEXTS = 16
#: Examples kept of each problem, and characters of each text shown.
EXAMPLES, TEXT_LENGTH = 3, 160
#: Unknown pieces whose first place is kept.
UNKNOWN_PLACES = 15
#: Values of `max_length` for which truncation is counted.
LIMITS = (64, 128, 256, 512)
#: Name of the group of all rows, beside the groups by label.
ALL = "all"
#: How an empty set of labels is shown.
NO_LABEL = "no label"


@dataclass(frozen=True, order=True)
class TextExample:
    """An example text: its number of words, its place in the file, its beginning."""

    words: int
    where: str
    text: str


@dataclass
class Repeats:
    """Texts that occur more than once in a file, whatever their case and spaces."""

    rows: int = 0
    groups: int = 0  # texts that occur more than once
    conflicts: int = 0  # texts with different labels; a missing label is no label
    examples: list[str] = field(default_factory=list)  # those with different labels first


@dataclass
class Leak:
    """Rows of one file whose text is in an earlier file too."""

    source: str
    target: str
    rows: int = 0  # rows of the target with a text of the source, whatever its case and spaces
    conflicts: int = 0  # rows of these with another label; a missing label is no label
    near: int | None = None  # further rows that are nearly the same; None: not searched for
    examples: list[str] = field(default_factory=list)


@dataclass
class Facts:
    """The description of one file."""

    origin: str
    rows: int
    columns: dict[str, Counter[str]]  # how often each type of value occurs, by column
    text: tuple[str, ...]
    label: str | None
    labels: Counter[str] = field(default_factory=Counter)  # most frequent first
    label_remarks: list[str] = field(default_factory=list)  # what looks wrong with the labels
    words: dict[str, Lengths] = field(default_factory=dict)  # by label and of `ALL`
    tokens: dict[str, Lengths] = field(default_factory=dict)  # the same; empty without a tokenizer
    longest: list[TextExample] = field(default_factory=list)
    shortest: list[TextExample] = field(default_factory=list)
    empty: int = 0
    empty_places: list[str] = field(default_factory=list)
    unlabelled: int = 0  # rows without a label, where there is a column of labels
    unlabelled_places: list[str] = field(default_factory=list)
    unreadable: int = 0  # lines that are no rows
    unreadable_places: list[str] = field(default_factory=list)  # with the reasons
    repeats: Repeats = field(default_factory=Repeats)
    scripts: dict[str, float] = field(default_factory=dict)
    unknown: UnknownTokens | None = None  # what becomes [UNK]; None without a tokenizer
    unknown_places: dict[str, str] = field(default_factory=dict)  # first places of frequent ones

    def truncated(self) -> dict[int, float]:
        """Return the share of rows that each `max_length` would truncate."""
        lengths = self.tokens.get(ALL)
        return {} if lengths is None else {limit: lengths.share_over(limit) for limit in LIMITS}

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        kept = ("origin", "rows", "columns", "text", "label", "labels", "label_remarks")
        return {
            **{name: getattr(self, name) for name in (*kept, "empty", "unlabelled", "unreadable")},
            "scripts": self.scripts,
            "words": {name: lengths.to_dict() for name, lengths in self.words.items()},
            "tokens": {name: lengths.to_dict() for name, lengths in self.tokens.items()},
            "truncated": self.truncated(),
            "longest": [asdict(item) for item in self.longest],
            "shortest": [asdict(item) for item in self.shortest],
            "duplicates": asdict(self.repeats),
            "unknown": None if self.unknown is None else self.unknown.to_dict(),
        }


@dataclass
class Description(Displayed):
    """The description of some files, and the leaks between them.

    Attributes:
        files: of each file its rows, columns, labels, lengths and repeats.
        leaks: texts of a later file that an earlier one has.
    """

    files: list[Facts]
    leaks: list[Leak]

    @override
    def table_rows(self) -> list[dict[str, Any]]:
        """List the labels of all files, each with its rows and its mean number of words."""
        return [
            {
                "file": facts.origin,
                "label": label,
                "rows": lengths.rows,
                "mean_words": lengths.mean,
            }
            for facts in self.files
            for label, lengths in facts.words.items()
        ]

    def __repr__(self) -> str:
        files = ", ".join(f"{in_line(own.origin)} ({own.rows:,} rows)" for own in self.files)
        return f"<Description of {files}>"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "files": [facts.to_dict() for facts in self.files],
            "leaks": [asdict(leak) for leak in self.leaks],
        }


#: The texts of a file by their digest: the first row with the text, and the counts of its labels
#: ("" for rows without one).
Seen = dict[bytes, tuple[int, dict[str, int]]]


def describe(
    files: Sequence[Records],
    *,
    text: Sequence[str] | None = None,
    label: str | None = None,
    tokenizer: Tokenizer | None = None,
    near: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Description:
    """Describe some files, and what each later file shares with those before it.

    Memory grows by about 300 bytes a row, with `near` by about 5 kB.

    Args:
        files: the files; the first is the training data.
        text: columns that hold the texts; default: those that look like text.
        label: column that holds the labels; default: a column with a usual name for labels. They
            are read as training reads them (see `read_labels`).
        tokenizer: a tokenizer, to count tokens and what becomes [UNK].
        near: also count rows whose estimated similarity (Jaccard, of runs of five words) to a row
            of an earlier file is at least this.
        progress: called with the number of rows done, over all files.

    Raises:
        DataError: a file has no such column, or none that looks like text.
        PretuneError: `near` is given, and datasketch is not installed.
    """
    # Labels first: a spelling of each is chosen for all files together.
    described = [_begun(records, text, label) for records in files]
    labels = [
        read_labels(records, facts.label, facts.text)
        for records, facts in zip(files, described, strict=True)
    ]
    names = label_names(own.rows for own in labels)
    # Then the texts, file by file.
    earlier: list[tuple[Records, Seen, Duplicates | None]] = []
    leaks: list[Leak] = []
    done = 0
    for records, facts, own in zip(files, described, labels, strict=True):
        shown = None if progress is None else _starting_at(done, progress)
        seen = _describe_file(records, facts, _Labels(own, names), tokenizer, shown)
        leaks += [_leak(records, facts, seen, *file) for file in earlier]
        # Nothing comes after the last file, so it needs no signatures.
        last = records is files[-1]
        signatures = None if near is None or last else _signatures(records, facts, near)
        earlier.append((records, seen, signatures))
        done += len(records)
    return Description(described, leaks)


def _starting_at(before: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda done: progress(before + done)


def _begun(records: Records, text: Sequence[str] | None, label: str | None) -> Facts:
    """Say which columns of a file hold texts and labels."""
    where_label, bad = label_column(records, label), records.bad
    return Facts(
        unreadable=0 if bad is None else bad.count,
        unreadable_places=[] if bad is None else bad.lines(),
        origin=records.origin,
        rows=len(records),
        columns={c: count_types(row.get(c) for row in records.rows) for c in records.columns},
        text=text_columns(records, text, where_label),
        label=where_label,
    )


@dataclass(frozen=True)
class _Labels:
    """The labels of a file under the names that all files share, by `label_key`."""

    read: FileLabels
    names: Mapping[str, str]

    def of(self, row: int) -> list[str]:
        """Return the labels of a record."""
        return [self.names[label_key(raw)] for raw in self.read.rows[row] or ()]

    def together(self, row: int) -> str:
        """Return all labels of a record as a name; "" where it says nothing about them."""
        labels = self.of(row)
        if self.read.kind != "several":
            return " ".join(labels)
        # The order of a set means nothing, and an empty one is a statement too.
        return ", ".join(sorted(labels)) or ("" if self.read.rows[row] is None else NO_LABEL)


def _describe_file(
    records: Records,
    facts: Facts,
    labels: _Labels,
    tokenizer: Tokenizer | None,
    progress: Callable[[int], None] | None,
) -> Seen:
    """Look at all records of a file, and complete its description."""
    facts.label_remarks = [*labels.read.remarks]
    if facts.label is not None:
        without = [row for row, own in enumerate(labels.read.rows) if own is None]
        facts.unlabelled = len(without)
        facts.unlabelled_places = [place(records, row) for row in without[:EXAMPLES]]
    counter = None if tokenizer is None else TokenCounter(tokenizer)
    # One pass over the rows; texts are tokenized in chunks. A text that many rows share is looked
    # at once.
    seen: Seen = {}
    characters: Counter[str] = Counter()
    figures_of = lru_cache(_SHARED_TEXTS)(_figures)
    for rows, texts in _chunks(records, facts):
        tokens: Sequence[int | None] = [None] * len(rows)
        if counter is not None:
            tokens = _count_tokens(counter, records, rows, texts)
        for row, parts, length in zip(rows, texts, tokens, strict=True):
            figures = figures_of("\n".join(parts))
            characters.update(figures.characters)
            _note(facts, seen, records, row, labels, figures, length)
        if progress is not None:
            progress(rows.stop)
    # What can only be told of the whole file.
    facts.labels = Counter(dict(facts.labels.most_common()))
    facts.scripts = script_shares(characters)
    facts.repeats = _repeats(records, seen)
    if counter is not None:
        facts.unknown = counter.unknown
        top = (piece for piece, _ in counter.unknown.pieces.most_common(UNKNOWN_PLACES))
        facts.unknown_places = {p: place(records, counter.unknown.places[p]) for p in top}
    return seen


def _chunks(records: Records, facts: Facts) -> Iterator[tuple[range, list[list[str]]]]:
    """Rows with their texts, which are not many, nor long together."""
    start, size = 0, 0
    texts: list[list[str]] = []
    for row in range(len(records)):
        texts.append(row_texts(records, facts, row))
        size += sum(map(len, texts[-1]))
        if len(texts) == CHUNK or size > _CHUNK_CHARS or row == len(records) - 1:
            yield range(start, row + 1), texts
            start, size, texts = row + 1, 0, []


def _count_tokens(
    counter: TokenCounter, records: Records, rows: range, texts: Sequence[Sequence[str]]
) -> list[int]:
    """Count the tokens of rows; of texts that cannot be encoded, the error names the first row."""
    try:
        return counter.count(rows, texts)
    except DataError:
        for row, parts in zip(rows, texts, strict=True):
            try:
                counter.count([row], [parts])
            except DataError as error:
                raise DataError(f"{records.where(row)}: {error.message}", error.hint) from None
        raise


def row_texts(records: Records, facts: Facts, row: int) -> list[str]:
    """Return the texts of a record, one for each text column, empty if missing."""
    return [as_text(records.rows[row].get(column)) or "" for column in facts.text]


@dataclass(frozen=True)
class _Figures:
    """What is counted of a text."""

    text: str
    words: int
    key: bytes
    characters: Mapping[str, int]


def _figures(text: str) -> _Figures:
    return _Figures(text, count_words(text), text_key(text), Counter(text))


def _note(
    facts: Facts,
    seen: Seen,
    records: Records,
    row: int,
    labels: _Labels,
    figures: _Figures,
    tokens: int | None,
) -> None:
    """Add a row to the description: labels, lengths, extremes, and the text as seen."""
    facts.labels.update(labels.of(row))
    text, words = figures.text, figures.words
    if not text.strip():
        facts.empty += 1
        if len(facts.empty_places) < EXAMPLES:
            facts.empty_places.append(place(records, row))
        return
    # Lengths are grouped by label, unless each word has its own.
    groups = [ALL, *(labels.of(row) if labels.read.kind != "words" else [])]
    for group in groups:
        facts.words.setdefault(group, Lengths()).counts[words] += 1
        if tokens is not None:
            facts.tokens.setdefault(group, Lengths()).counts[tokens] += 1
    beginning = text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
    example = TextExample(words, place(records, row), beginning)
    by_words = attrgetter("words")
    facts.longest = heapq.nlargest(EXAMPLES, [*facts.longest, example], key=by_words)
    facts.shortest = heapq.nsmallest(EXAMPLES, [*facts.shortest, example], key=by_words)
    # Remember the text by its digest, with the labels it occurs with.
    _, counts = seen.setdefault(figures.key, (row, {}))
    name = labels.together(row)
    counts[name] = counts.get(name, 0) + 1


def place(records: Records, row: int) -> str:
    """Return the place of a row without the name of its file, such as `line 7`."""
    return records.where(row).removeprefix(f"{records.origin}, ")


def _known(labels: Iterable[str]) -> set[str]:
    """Return the labels without "": a row without a label says nothing about its text."""
    return {name for name in labels if name}


def _repeats(records: Records, seen: Seen) -> Repeats:
    """Count the texts of a file that occur more than once."""
    repeats = Repeats()
    plain: list[str] = []
    conflicting: list[str] = []
    for row, counts in seen.values():
        times = sum(counts.values())
        if times == 1:
            continue
        # The first row with a text repeats nothing.
        repeats.rows += times - 1
        repeats.groups += 1
        differ = len(_known(counts)) > 1
        repeats.conflicts += differ
        # Examples with different labels matter most, so they are kept apart.
        examples = conflicting if differ else plain
        if len(examples) < EXAMPLES:
            labels = ", ".join(f"{name} {n}x" for name, n in counts.items() if name)
            shown = f"{place(records, row)}: {times} times"
            examples.append(shown + (f" ({labels})" if labels else ""))
    repeats.examples = [*conflicting, *plain][:EXAMPLES]
    return repeats


def _leak(
    records: Records,
    facts: Facts,
    seen: Seen,
    source: Records,
    before: Seen,
    signatures: Duplicates | None,
) -> Leak:
    """Compare a file with an earlier one, by that file's texts `before` and its `signatures`."""
    leak = Leak(source.origin, facts.origin, near=None if signatures is None else 0)
    # The same texts, by their digests.
    for key, (row, counts) in seen.items():
        if key in before:
            first, labels = before[key]
            leak.rows += sum(counts.values())
            if theirs := _known(labels):
                leak.conflicts += sum(n for name, n in counts.items() if name and {name} != theirs)
            if len(leak.examples) < EXAMPLES:
                leak.examples.append(f"{place(source, first)} = {place(records, row)}")
    if signatures is None or leak.near is None:
        return leak
    # Nearly the same texts, by their signatures, among the rest.
    for row, text in _unseen(records, facts, before):
        other = signatures.similar(signature(text))
        if other is not None:
            leak.near += 1
            if leak.near <= EXAMPLES:
                leak.examples.append(f"{place(source, other)} ~ {place(records, row)}")
    return leak


def _unseen(records: Records, facts: Facts, before: Seen) -> Iterator[tuple[int, str]]:
    """Yield the rows, with their texts, whose text is not in an earlier file."""
    for row in range(len(records)):
        text = "\n".join(row_texts(records, facts, row))
        if text.strip() and text_key(text) not in before:
            yield row, text


def _signatures(records: Records, facts: Facts, near: float) -> Duplicates:
    """Take the signatures of all rows, so that the number of a signature is its row's number."""
    signatures = Duplicates(exact=False, near=near)
    for row in range(len(records)):
        signatures.remember(b"", signature("\n".join(row_texts(records, facts, row))))
    return signatures
