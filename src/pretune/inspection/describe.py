"""What is in a data set, and what is wrong with it, before anybody trains on it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pretune.corpus.dedupe import Duplicates, digest, signature
from pretune.data.columns import as_text, label_column, text_columns
from pretune.data.records import Records, is_missing
from pretune.inspection.describe_counts import (
    Lengths,
    TokenCounter,
    UnknownTokens,
    count_types,
    count_words,
    script_shares,
)
from pretune.tokenizers.tokenizer import Tokenizer

#: Rows whose texts are tokenized at a time, extremes that are shown, and characters of each.
CHUNK, SHOWN, CUT = 256, 3, 160
#: `max_length` that recipes choose among.
LIMITS = (64, 128, 256, 512)
#: The name of all rows together, where lengths are by label.
ALL = "all"


@dataclass(frozen=True, order=True)
class Shown:
    """A text that is shown: where it is, its words, its beginning."""

    words: int
    where: str
    text: str


@dataclass
class Repeats:
    """The same text more than once in a file; case and spaces make no difference.

    Attributes:
        rows: how many rows repeat an earlier one.
        groups: how many texts are there more than once.
        conflicts: how many of these have different labels; no label is none.
        examples: places of such texts with their labels, those in conflict first.
    """

    rows: int = 0
    groups: int = 0
    conflicts: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Leak:
    """Rows of one file whose text is in another.

    Attributes:
        source: the file that has them first.
        target: the file they are looked for in.
        rows: of the target that have a text of the source; case and spaces make no difference.
        conflicts: how many of them have another label there; rows without one are none.
        near: more rows that are nearly the same; None where nobody looked.
        examples: places.
    """

    source: str
    target: str
    rows: int = 0
    conflicts: int = 0
    near: int | None = None
    examples: list[str] = field(default_factory=list)


@dataclass
class Facts:
    """What is known of one file.

    Attributes:
        origin: the file.
        rows: how many.
        columns: of each column, how often each type of value occurs.
        text: the columns that hold the texts.
        label: the column that holds the labels, if any.
        labels: how often each occurs, most frequent first.
        words: lengths in words, by label and of `ALL`.
        tokens: lengths in tokens; empty without a tokenizer.
        longest: texts, longest first.
        shortest: texts, shortest first; empty ones are not among them.
        empty: how many rows have no text, and places of some.
        repeats: the same texts within the file.
        scripts: shares among the letters.
        unknown: what becomes [UNK]; None without a tokenizer.
        unknown_places: where the most frequent of these are first.
    """

    origin: str
    rows: int
    columns: dict[str, Counter[str]]
    text: tuple[str, ...]
    label: str | None
    labels: Counter[str] = field(default_factory=Counter)
    words: dict[str, Lengths] = field(default_factory=dict)
    tokens: dict[str, Lengths] = field(default_factory=dict)
    longest: list[Shown] = field(default_factory=list)
    shortest: list[Shown] = field(default_factory=list)
    empty: int = 0
    empty_places: list[str] = field(default_factory=list)
    repeats: Repeats = field(default_factory=Repeats)
    scripts: dict[str, float] = field(default_factory=dict)
    unknown: UnknownTokens | None = None
    unknown_places: dict[str, str] = field(default_factory=dict)

    def truncated(self) -> dict[int, float]:
        """The share of the rows that a `max_length` would cut."""
        lengths = self.tokens.get(ALL)
        return {} if lengths is None else {limit: lengths.share_over(limit) for limit in LIMITS}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        kept = ("origin", "rows", "columns", "text", "label", "labels", "empty", "scripts")
        return {
            **{name: getattr(self, name) for name in kept},
            "words": {name: lengths.to_dict() for name, lengths in self.words.items()},
            "tokens": {name: lengths.to_dict() for name, lengths in self.tokens.items()},
            "truncated": self.truncated(),
            "longest": [asdict(item) for item in self.longest],
            "shortest": [asdict(item) for item in self.shortest],
            "duplicates": asdict(self.repeats),
            "unknown": None if self.unknown is None else self.unknown.to_dict(),
        }


@dataclass
class Description:
    """Some files, and what they share."""

    files: list[Facts]
    leaks: list[Leak]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "files": [facts.to_dict() for facts in self.files],
            "leaks": [asdict(leak) for leak in self.leaks],
        }


#: What is remembered of the texts of a file: by digest, the row of the first and all labels ("" of
#: rows that have none).
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
    """Look at some files, and at what each later one shares with those before it.

    About 200 bytes a row are remembered, with `near` about 5 kB.

    Args:
        files: the first is what one trains on.
        text: the columns that hold the texts; default: those that look like it.
        label: the column that holds the labels; default: what is usually called so, if there.
        tokenizer: for lengths in tokens and what becomes [UNK].
        near: also count rows whose estimated similarity (Jaccard, of runs of five words) to one of
            the file before is at least this.
        progress: called with the number of rows done, of all files.

    Raises:
        DataError: a file has no such column, or none that looks like text.
        PretuneError: `near` without datasketch.
    """
    found: list[Facts] = []
    known: list[tuple[Records, Seen, Duplicates | None]] = []
    leaks = []
    done = 0
    for records in files:
        shown = None if progress is None else _after(progress, done)
        facts, seen = _look(records, text, label, tokenizer, shown)
        others = [_leak(records, facts, seen, *earlier) for earlier in known]
        leaks += others
        last = records is files[-1]
        kept = None if near is None or last else _signatures(records, facts, near)
        known.append((records, seen, kept))
        found.append(facts)
        done += len(records)
    return Description(found, leaks)


def _after(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    """`progress`, told of so many more that were done before."""
    return lambda done: progress(before + done)


def _look(
    records: Records,
    text: Sequence[str] | None,
    label: str | None,
    tokenizer: Tokenizer | None,
    progress: Callable[[int], None] | None,
) -> tuple[Facts, Seen]:
    where_label = label_column(records, label)
    facts = Facts(
        origin=records.origin,
        rows=len(records),
        columns={c: count_types(row.get(c) for row in records.rows) for c in records.columns},
        text=text_columns(records, text, where_label),
        label=where_label,
    )
    counter = None if tokenizer is None else TokenCounter(tokenizer)
    seen: Seen = {}
    characters: Counter[str] = Counter()
    for start in range(0, len(records), CHUNK):
        rows = range(start, min(start + CHUNK, len(records)))
        texts = [row_texts(records, facts, row) for row in rows]
        tokens: Sequence[int | None] = [None] * len(rows)
        if counter is not None:
            tokens = counter.count(rows, texts)
        for row, parts, length in zip(rows, texts, tokens, strict=True):
            joined = "\n".join(parts)
            characters.update(joined)
            _note(facts, seen, records, row, joined, length)
        if progress is not None:
            progress(rows.stop)
    facts.labels = Counter(dict(facts.labels.most_common()))
    facts.scripts = script_shares(characters)
    facts.repeats = _repeats(records, seen)
    if counter is not None:
        facts.unknown = counter.unknown
        top = (piece for piece, _ in counter.unknown.pieces.most_common(SHOWN * 5))
        facts.unknown_places = {p: place(records, counter.unknown.places[p]) for p in top}
    return facts, seen


def row_texts(records: Records, facts: Facts, row: int) -> list[str]:
    """The texts of a record, empty where there is none."""
    return [as_text(records.rows[row].get(column)) or "" for column in facts.text]


def row_labels(records: Records, facts: Facts, row: int) -> list[str]:
    """The labels of a record: none, one, or one a word."""
    if facts.label is None:
        return []
    value = records.rows[row].get(facts.label)
    names = records.categories.get(facts.label)
    cells = value if isinstance(value, list) else [value]
    values = [one for one in cells if not is_missing(one)]
    if names is None:
        return [str(one) for one in values]
    return [
        str(names[one]) if isinstance(one, int) and 0 <= one < len(names) else str(one)
        for one in values
    ]


def _note(
    facts: Facts, seen: Seen, records: Records, row: int, text: str, tokens: int | None
) -> None:
    labels = row_labels(records, facts, row)
    facts.labels.update(labels)
    if not text.strip():
        facts.empty += 1
        if len(facts.empty_places) < SHOWN:
            facts.empty_places.append(place(records, row))
        return
    words = count_words(text)
    single = not isinstance(records.rows[row].get(facts.label or ""), list)
    groups = [ALL, *(labels if single else [])]
    for group in groups:
        facts.words.setdefault(group, Lengths()).counts[words] += 1
        if tokens is not None:
            facts.tokens.setdefault(group, Lengths()).counts[tokens] += 1
    shown = Shown(words, place(records, row), text if len(text) <= CUT else text[: CUT - 1] + "…")
    facts.longest = heapq.nlargest(SHOWN, [*facts.longest, shown], key=lambda item: item.words)
    facts.shortest = heapq.nsmallest(SHOWN, [*facts.shortest, shown], key=lambda item: item.words)
    _, counts = seen.setdefault(text_key(text), (row, {}))
    name = " ".join(labels)
    counts[name] = counts.get(name, 0) + 1


def place(records: Records, row: int) -> str:
    """Where a row is in its file, which the table names: `line 7`."""
    return records.where(row).removeprefix(f"{records.origin}, ")


def text_key(text: str) -> bytes:
    """The same for texts that differ in nothing but case and spaces."""
    return digest(text.casefold())


def _known(labels: Iterable[str]) -> set[str]:
    """Those that are labels: a row without one says nothing about its text."""
    return {name for name in labels if name}


def _repeats(records: Records, seen: Seen) -> Repeats:
    found = Repeats()
    plain: list[str] = []
    conflicting: list[str] = []
    for row, counts in seen.values():
        times = sum(counts.values())
        if times == 1:
            continue
        found.rows += times - 1
        found.groups += 1
        differ = len(_known(counts)) > 1
        found.conflicts += differ
        examples = conflicting if differ else plain
        if len(examples) < SHOWN:
            labels = ", ".join(f"{name} {n}x" for name, n in counts.items() if name)
            shown = f"{place(records, row)}: {times} times"
            examples.append(shown + (f" ({labels})" if labels else ""))
    found.examples = [*conflicting, *plain][:SHOWN]
    return found


def _leak(
    records: Records,
    facts: Facts,
    seen: Seen,
    source: Records,
    before: Seen,
    kept: Duplicates | None,
) -> Leak:
    leak = Leak(source.origin, facts.origin, near=None if kept is None else 0)
    for key, (row, counts) in seen.items():
        if key in before:
            first, labels = before[key]
            leak.rows += sum(counts.values())
            if theirs := _known(labels):
                leak.conflicts += sum(n for name, n in counts.items() if name and {name} != theirs)
            if len(leak.examples) < SHOWN:
                leak.examples.append(f"{place(source, first)} = {place(records, row)}")
    if kept is None or leak.near is None:
        return leak
    for row, text in _unseen(records, facts, before):
        other = kept.similar(signature(text))
        if other is not None:
            leak.near += 1
            if leak.near <= SHOWN:
                leak.examples.append(f"{place(source, other)} ~ {place(records, row)}")
    return leak


def _unseen(records: Records, facts: Facts, before: Seen) -> Iterator[tuple[int, str]]:
    for row in range(len(records)):
        text = "\n".join(row_texts(records, facts, row))
        if text.strip() and text_key(text) not in before:
            yield row, text


def _signatures(records: Records, facts: Facts, near: float) -> Duplicates:
    """Of every row, so that the number of a signature is that of its row."""
    kept = Duplicates(exact=False, near=near)
    for row in range(len(records)):
        kept.remember(b"", signature("\n".join(row_texts(records, facts, row))))
    return kept
