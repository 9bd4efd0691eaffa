"""Duplicates of a corpus that no memory holds: `Duplicates.reason`, in tasks over files.

The rule is sequential: a document is dropped if it is alike an earlier one that was *kept*. Two
documents are alike if their digests are equal, or if they share a band of LSH and the estimated
similarity of their signatures reaches the threshold. Whoever is alike no earlier document stays;
what is alike one that stays is dropped; what is left after that is the same problem again, smaller.
So it is solved in rounds (Blelloch, Fineman and Shun 2012 show that in a random order a few are
enough), and in each round a part of the rest, from the front, is also decided one by one, so that
the number of rounds is bounded in any order.

Documents have numbers in the order of the corpus. Those that may be alike are brought together by
sorting: every part has its keys (of digests, of bands) in sorted runs, and each task takes one
range of the keys from all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pretune.corpus.dedupe import PERMUTATIONS, Duplicates, lsh_bands
from pretune.corpus.parts import EXACT, PartRows, band_keys
from pretune.corpus.staged import (
    Result,
    RunTasks,
    WorkSizes,
    make,
    numbers_between,
    read_partition,
    rows_of,
    task_folder,
    write_numbers,
    write_runs,
)
from pretune.data.arrays import Array, ranges

#: The states of a document.
UNKNOWN, NEW, KEPT, DROPPED = range(4)  # NEW: kept, and not compared yet with the unknown ones
#: A document in a bucket of LSH: the key of the bucket, and the document's row in its part.
_BAND = np.dtype([("key", "<u8"), ("row", "<u4")])
#: Pairs whose signatures are compared at a time.
_PAIRS = 1 << 13


@dataclass(frozen=True)
class Parts:
    """What all tasks know."""

    work: Path  # the folder of all stages
    sizes: WorkSizes
    starts: Array  # `[parts + 1]` the number of the first document of each part, and of all
    exact: bool  # whether equal documents are dropped
    near: float | None  # the threshold of similarity
    bands: tuple[int, int]  # of LSH: how many, of how many values; none where nothing is near
    buckets: int = 0  # partitions of the bands
    rounds: int = 0  # the round that tasks are of, or the last

    @property
    def total(self) -> int:
        """Documents."""
        return int(self.starts[-1])

    @property
    def digests(self) -> int:
        """Partitions of the digests."""
        return max(-(-self.total // self.sizes.partition), 1) if self.exact else 0

    @property
    def ranges(self) -> int:
        """Files of states."""
        return -(-self.total // self.sizes.states)

    def folder(self, stage: str, number: int) -> Path:
        """The folder of a task's result."""
        return task_folder(self.work, stage, number)

    def rows(self) -> PartRows:
        """Digests and signatures by number."""
        return PartRows([self.folder("parts", i) for i in range(len(self.starts) - 1)], self.starts)

    def read(self, stage: str, name: str, dtype: np.dtype[Any], number: int, of: int) -> Array:
        """The records of one partition of the keys, from all parts: `key`s and `number`s."""
        fields = [(name, "<u8") for name in dtype.names or () if name != "row"]
        found = [np.zeros(0, [*fields, ("number", "<i8")])]
        for part in range(len(self.starts) - 1):
            records = read_partition(self.folder(stage, part), name, dtype, number, of)
            if len(records):
                found.append(np.zeros(len(records), found[0].dtype))
                for field, _ in fields:
                    found[-1][field] = records[field]
                found[-1]["number"] = records["row"] + self.starts[part]
        return np.concatenate(found)


def mark_duplicates(
    work: Path, sizes: WorkSizes, starts: Array, exact: bool, near: float | None, run: RunTasks
) -> tuple[Parts, dict[str, int]]:
    """Decide which documents stay; `Verdicts` then tells them.

    Args:
        work: the folder of all stages, in which the parts are.
        sizes: of the parts of the work.
        starts: `[parts + 1]` the number of the first document of each part, and of all.
        exact: whether equal documents are dropped.
        near: the estimated similarity from which documents are dropped; None: they are not.
        run: where the tasks run.

    Returns:
        What `Verdicts` needs, and the number of documents dropped for each reason.
    """
    parts = Parts(work, sizes, starts, exact, near, (0, 0) if near is None else lsh_bands(near))
    equal = _run(run, mark_equal, parts, parts.digests)
    count = sum(result["dropped"] for result in equal)
    if near is None or not parts.total:
        return parts, {"duplicate": count} if count else {}
    # All documents that are not copies of an earlier one, in the buckets of LSH.
    entries = _run(run, sort_bands, parts, len(starts) - 1)
    total = sum(result["entries"] for result in entries)
    buckets = max(-(-total // sizes.partition), 1)
    while True:
        parts = Parts(
            work, sizes, starts, exact, near, parts.bands, buckets, rounds=parts.rounds + 1
        )
        _run(run, compare_buckets, parts, buckets)
        left = sum(result["unknown"] for result in _run(run, decide, parts, parts.ranges))
        if left and parts.rounds > 1:
            left -= _run(run, decide_rest, parts, 1)[0]["decided"]
        if not left:
            break
    # Of two reasons the first counts: that the document equals one that was kept.
    equal = _run(run, count_equal, parts, parts.digests)
    count = sum(result["equal"] for result in equal)
    dropped = sum(result["dropped"] for result in _run(run, count_dropped, parts, parts.ranges))
    counts = {"duplicate": count, "near-duplicate": dropped - count}
    return parts, {reason: count for reason, count in counts.items() if count}


def _run(
    run: RunTasks, function: Callable[[Parts, int], Result], parts: Parts, count: int
) -> list[Result]:
    results: list[Result] = [{} for _ in range(count)]
    run(function, parts, range(count), results.__setitem__)
    return results


# ------------------------------------------------------------------------------ equal documents


def mark_equal(parts: Parts, number: int) -> Result:
    """Find the copies in a partition of the digests: equal in digest and in signature.

    A copy is alike whatever its first is alike, so it is dropped whatever becomes of that. Equal
    digests with other signatures (texts that are equal but for Unicode's normal form) are not
    settled here.
    """

    def task(folder: Path) -> Result:
        found = parts.read("parts", "exact", EXACT, number, parts.digests)
        order = np.lexsort((found["number"], found["signature"], found["more"], found["key"]))
        copies = order[1:][_same(found, order, ("key", "more", "signature"))]
        dropped = np.sort(found["number"][copies])
        write_numbers(folder / "dropped.bin", dropped)
        if parts.near is not None:
            # To count reasons in the end: all documents of each digest that there is twice.
            order = np.lexsort((found["number"], found["more"], found["key"]))
            groups = _groups(np.concatenate([[False], _same(found, order, ("key", "more"))]))
            write_numbers(folder / "members.bin", found["number"][order[groups.members]])
            write_numbers(folder / "starts.bin", groups.starts)
        return {"dropped": len(dropped)}

    return make(parts.folder("equal", number), task)


def _same(found: Array, order: Array, fields: tuple[str, ...]) -> Array:
    """`[n - 1]`: whether each record but the first, in this order, equals the one before."""
    same = np.ones(max(len(order) - 1, 0), bool)
    for name in fields:
        values = found[name][order]
        same &= values[1:] == values[:-1]
    return same


@dataclass(frozen=True)
class _Groups:
    members: Array  # places, group after group
    starts: Array  # of each group in `members`

    def lengths(self) -> Array:
        return np.diff(np.append(self.starts, len(self.members)))


def _groups(same: Array) -> _Groups:
    """The groups of at least two, where `same` tells whether a place belongs to the one before."""
    starts = np.flatnonzero(~same)
    lengths = np.diff(np.append(starts, len(same)))
    several = lengths > 1
    members = ranges(starts[several], lengths[several])
    return _Groups(members, np.cumsum(lengths[several]) - lengths[several])


def _copies(parts: Parts, first: int, last: int) -> Array:
    """`[last - first]`: whether each document is a copy."""
    copies = np.zeros(last - first, bool)
    for number in range(parts.digests):
        path = parts.folder("equal", number) / "dropped.bin"
        copies[numbers_between(path, first, last) - first] = True
    return copies


# --------------------------------------------------------------------------------- near ones


def sort_bands(parts: Parts, number: int) -> Result:
    """Write the keys of the buckets of a part's documents, without copies."""

    def records() -> Iterator[Array]:
        first, last = int(parts.starts[number]), int(parts.starts[number + 1])
        rows = np.flatnonzero(~_copies(parts, first, last))
        source = parts.rows()
        count, values = parts.bands
        step = max(parts.sizes.run // (count + 1), 1)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            keys = [band_keys(source.signatures(first + some), count, values)]
            if parts.exact:  # equal digests are a bucket, too
                halves = source.digests(first + some)[:, :8].copy().view("<u4")
                keys.append(band_keys(halves, 1, 2))
            joined = np.concatenate(keys, axis=1)
            found = np.zeros(joined.size, _BAND)
            found["key"] = joined.reshape(-1)
            found["row"] = np.repeat(some, joined.shape[1])
            yield found

    return make(
        parts.folder("bands", number),
        lambda folder: {"entries": write_runs(folder, "bands", records())},
    )


def compare_buckets(parts: Parts, number: int) -> Result:
    """Compare the documents in a partition of the buckets, as far as a round needs it.

    What is alike one that was kept in the round before is dropped. Else, what is alike an earlier
    unknown document is blocked: it has to wait.
    """

    def task(folder: Path) -> Result:
        if parts.rounds == 1:
            found = parts.read("bands", "bands", _BAND, number, parts.buckets)
            order = np.lexsort((found["number"], found["key"]))
            groups = _groups(np.concatenate([[False], _same(found, order, ("key",))]))
            groups = _Groups(found["number"][order[groups.members]], groups.starts)
            del found, order
            write_numbers(folder / "members.bin", groups.members)
            write_numbers(folder / "starts.bin", groups.starts)
            new, unknown = np.zeros_like(groups.members, bool), np.ones_like(groups.members, bool)
        else:
            groups = _read_groups(parts.folder("buckets-1", number))
            state = States(parts, parts.rounds - 1).at(groups.members)
            new, unknown = state == NEW, state == UNKNOWN
        alike = _Alike(parts)
        hits = first_hits(groups.members, groups.starts, new, unknown, alike)
        dropped = np.unique(groups.members[hits])
        unknown &= ~np.isin(groups.members, dropped)
        hits = first_hits(groups.members, groups.starts, unknown, unknown, alike)
        write_numbers(folder / "dropped.bin", dropped)
        write_numbers(folder / "blocked.bin", np.unique(groups.members[hits]))
        return {}

    return make(parts.folder(f"buckets-{parts.rounds}", number), task)


def _read_groups(folder: Path) -> _Groups:
    members, starts = (rows_of(folder / name, "<i8", 1)[:, 0] for name in _GROUP_FILES)
    return _Groups(np.array(members), np.array(starts))


_GROUP_FILES = ("members.bin", "starts.bin")


class _Alike:
    """Whether documents are alike, by their numbers `[n]` and `[n]`."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.rows = parts, parts.rows()

    def __call__(self, one: Array, other: Array) -> Array:
        alike = np.zeros(len(one), bool)
        for start in range(0, len(one), _PAIRS):
            some = slice(start, start + _PAIRS)
            alike[some] = self._compare(one[some], other[some])
        return alike

    def _compare(self, one: Array, other: Array) -> Array:
        # Each document is read once; a bucket's key is a hash, so bands are compared themselves.
        numbers, places = np.unique(np.concatenate([one, other]), return_inverse=True)
        left, right = places[: len(one)], places[len(one) :]
        count, values = self.parts.bands
        signatures = self.rows.signatures(numbers)
        equal = signatures[left] == signatures[right]
        banded = equal[:, : count * values].reshape(len(one), count, values)
        alike: Array = banded.all(2).any(1)
        alike &= equal.sum(1) / PERMUTATIONS >= (self.parts.near or 0.0)
        if self.parts.exact:
            digests = self.rows.digests(numbers)
            alike |= (digests[left] == digests[right]).all(1)
        return alike


def first_hits(
    members: Array,
    starts: Array,
    sources: Array,
    targets: Array,
    alike: Callable[[Array, Array], Array],
) -> Array:
    """`[n]`: which targets are alike an earlier source of their group.

    A target is compared with the sources of its group one after the other, up to the first that it
    is alike: in a bucket of documents that are all alike, once.

    Args:
        members: `[n]` numbers of documents, group after group, ascending in each.
        starts: `[groups]` where groups begin.
        sources: `[n]` whether a member is one.
        targets: `[n]` whether a member is one.
        alike: tells which documents of two arrays are alike.
    """
    hits = np.zeros(len(members), bool)
    if not len(members):
        return hits
    lengths = np.diff(np.append(starts, len(members)))
    group = np.repeat(np.arange(len(starts)), lengths)
    # The sources, group after group: which are the first of their group, the second, and so on.
    places = np.flatnonzero(sources)
    counts = np.bincount(group[places], minlength=len(starts))
    begins = np.cumsum(counts) - counts
    waiting = np.flatnonzero(targets)
    rank = 0
    while True:
        waiting = waiting[counts[group[waiting]] > rank]
        if not len(waiting):
            return hits
        source = places[begins[group[waiting]] + rank]
        later = (source < waiting) & (members[source] != members[waiting])
        found = waiting[later][alike(members[source[later]], members[waiting[later]])]
        hits[found] = True
        # All later sources of a group come after this one: who is before it, has no more to fear.
        waiting = waiting[(source < waiting) & ~hits[waiting]]
        rank += 1


# --------------------------------------------------------------------------------- states


def decide(parts: Parts, number: int) -> Result:
    """Write the states of a range of documents after a round."""

    def task(folder: Path) -> Result:
        first = number * parts.sizes.states
        last = min(first + parts.sizes.states, parts.total)
        if parts.rounds == 1:
            state = np.where(_copies(parts, first, last), DROPPED, UNKNOWN).astype(np.uint8)
        else:
            state = States(parts, parts.rounds - 1).between(first, last)
            state[state == NEW] = KEPT
        blocked = np.zeros(last - first, bool)
        for bucket in range(parts.buckets):
            compared = parts.folder(f"buckets-{parts.rounds}", bucket)
            state[numbers_between(compared / "dropped.bin", first, last) - first] = DROPPED
            blocked[numbers_between(compared / "blocked.bin", first, last) - first] = True
        state[(state == UNKNOWN) & ~blocked] = NEW
        (folder / "states.bin").write_bytes(state.tobytes())
        return {"unknown": int(np.count_nonzero(state == UNKNOWN))}

    return make(parts.folder(f"states-{parts.rounds}", number), task)


def decide_rest(parts: Parts, number: int) -> Result:
    """Decide the first documents that have been unknown up to this round, one by one.

    They were compared with all that were kept before the round, and nothing unknown comes before
    them, so that they only depend on each other.
    """

    def task(folder: Path) -> Result:
        states = States(parts, parts.rounds, rest=False)
        numbers, left = [np.zeros(0, np.int64)], parts.sizes.rest
        decided = 0
        for first in range(0, parts.total, parts.sizes.states):
            state = states.between(first, min(first + parts.sizes.states, parts.total))
            places = np.flatnonzero((state == UNKNOWN) | (state == NEW))[:left]
            decided += int(np.count_nonzero(state[places] == UNKNOWN))
            numbers.append(first + places)
            left -= len(places)
            if not left:
                break
        chunk = np.concatenate(numbers)
        duplicates = Duplicates(exact=parts.exact, near=parts.near)
        rows = parts.rows()
        kept = []
        for start in range(0, len(chunk), 4096):
            some = chunk[start : start + 4096]
            texts = zip(rows.digests(some), rows.signatures(some), strict=True)
            kept += [duplicates.reason(key.tobytes(), values) is None for key, values in texts]
        write_numbers(folder / "numbers.bin", chunk)
        (folder / "kept.bin").write_bytes(np.array(kept, np.uint8).tobytes())
        return {"decided": decided}

    return make(parts.folder(f"rest-{parts.rounds}", number), task)


class States:
    """The states of documents after a round; with what was decided one by one, if `rest`."""

    def __init__(self, parts: Parts, rounds: int, *, rest: bool = True) -> None:
        self.parts, self.rounds = parts, rounds
        self._file = cache(self._map)
        self._numbers = np.zeros(0, np.int64)
        folder = parts.folder(f"rest-{rounds}", 0)
        if rest and folder.exists():
            self._numbers = np.array(rows_of(folder / "numbers.bin", "<i8", 1)[:, 0])
            kept = rows_of(folder / "kept.bin", "u1", 1)[:, 0]
            self._decided = np.where(kept, NEW, DROPPED).astype(np.uint8)

    def _map(self, number: int) -> Array:
        folder = self.parts.folder(f"states-{self.rounds}", number)
        return rows_of(folder / "states.bin", "u1", 1)[:, 0]

    def between(self, first: int, last: int) -> Array:
        """`[last - first]` uint8: the states of documents that follow each other."""
        size = self.parts.sizes.states
        pieces = [np.zeros(0, np.uint8)]
        for number in range(first // size, -(-last // size)):
            before = number * size
            pieces.append(self._file(number)[max(first - before, 0) : last - before])
        state = np.concatenate(pieces)
        start, stop = np.searchsorted(self._numbers, [first, last])
        if start < stop:
            state[self._numbers[start:stop] - first] = self._decided[start:stop]
        return state

    def at(self, numbers: Array) -> Array:
        """`[n]` uint8: the states of documents."""
        state = np.zeros(len(numbers), np.uint8)
        files = numbers // self.parts.sizes.states
        for number in np.unique(files).tolist():
            which = files == number
            state[which] = self._file(number)[numbers[which] - number * self.parts.sizes.states]
        if len(self._numbers) and len(numbers):
            places = np.searchsorted(self._numbers, numbers)
            places[places == len(self._numbers)] = 0
            known = self._numbers[places] == numbers
            state[known] = self._decided[places[known]]
        return state


class Verdicts:
    """Which documents stay."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._states = States(parts, parts.rounds) if parts.rounds else None

    def kept(self, first: int, last: int) -> Array:
        """`[last - first]`: whether each of the documents from `first` to before `last` stays."""
        if self._states is None:
            return ~_copies(self.parts, first, last)
        state = self._states.between(first, last)
        kept: Array = (state == KEPT) | (state == NEW)
        return kept


def count_dropped(parts: Parts, number: int) -> Result:
    """Count the documents of a range that were dropped."""
    first = number * parts.sizes.states
    last = min(first + parts.sizes.states, parts.total)
    return {"dropped": int(np.count_nonzero(~Verdicts(parts).kept(first, last)))}


def count_equal(parts: Parts, number: int) -> Result:
    """Count the documents in a partition of the digests that equal an earlier one that stays."""
    groups = _read_groups(parts.folder("equal", number))
    state = States(parts, parts.rounds).at(groups.members)
    # Of equal documents at most one stays; those before it were dropped for another reason.
    kept = np.flatnonzero((state == KEPT) | (state == NEW))
    ends = np.append(groups.starts, len(groups.members))
    after = ends[np.searchsorted(ends, kept, side="right")] - kept - 1
    return {"equal": int(after.sum())}
