"""A corpus made by workers alone, in stages: for corpora that one process would take weeks for.

1. Each piece of the sources becomes a part: its documents, encoded.
2. Duplicates are found among the documents of all parts (`dedupe_stages`).
3. The shards are laid out, which depends on the lengths of what is kept, and written.

Who started it only counts what the tasks return. All files lie in the folder of the unfinished
corpus, which every worker has to see.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretune.corpus.dedupe_stages import Parts, Verdicts, mark_duplicates
from pretune.corpus.documents import ReadingOptions
from pretune.corpus.encode import CLEANING_STEPS, EncodedDocument, Encoder, EncoderSettings
from pretune.corpus.parts import CorpusPart, write_part
from pretune.corpus.pieces import Piece, piece_documents
from pretune.corpus.staged import (
    Result,
    RunTasks,
    WorkSizes,
    make,
    rows_of,
    task_folder,
    write_numbers,
)
from pretune.corpus.store import ENDS, VALIDATION_SPLIT, Shard
from pretune.corpus.unfinished import ShardWriter, shard_name
from pretune.data.arrays import Array

#: What is reported: the stage, how much of it is done, how much there is, documents, tokens.
Report = Callable[[str, int, int, int, int], None]


@dataclass(frozen=True)
class Job:
    """What all tasks know."""

    work: Path  # the folder of all stages
    out: Path  # the corpus to be
    sizes: WorkSizes
    reading: ReadingOptions
    encoder: EncoderSettings
    unknown: int | None  # the id of the unknown token
    exact: bool  # whether equal documents are dropped
    near: float | None  # the similarity from which documents are dropped
    validation: float  # the share of documents that are held back
    splits: tuple[str, ...]
    shard_tokens: int

    def split_folder(self, split: str) -> Path:
        """The folder of the shards of a split."""
        return self.out if split == "train" else self.out / split


@dataclass
class Made:
    """What was made of the sources."""

    counts: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)  # documents in each split
    shards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


class _Laid(NamedTuple):
    """The tasks of the last stage: what they know, and a place in the documents that are kept."""

    job: Job
    parts: Parts


class _ShardTask(NamedTuple):
    split: str
    number: int
    # The part and the place among its documents of that split: of the first, and one past the last.
    first: tuple[int, int]
    last: tuple[int, int]


def make_corpus(job: Job, pieces: Sequence[Piece], run: RunTasks, report: Report) -> Made:
    """Make the shards of a corpus; without any where no document is left to train on.

    Args:
        job: what to make.
        pieces: of the sources.
        run: where the tasks run.
        report: called after each task.

    Raises:
        DataError: a document cannot be read, or what was written before is damaged.
    """
    # 1. Parts: how many documents each has, gives them their numbers.
    made, documents = Made(), [0] * len(pieces)
    sizes = [sum(part.size for part in piece) for piece in pieces]
    read = Counter[str]()

    def encoded(number: int, result: Result) -> None:
        documents[number] = result["documents"]
        made.counts.update(result["counts"])
        made.dropped.update(result["dropped"])
        read.update(bytes=sizes[number], documents=result["documents"], tokens=result["tokens"])
        report("reading", read["bytes"], sum(sizes), read["documents"], read["tokens"])

    run(encode_piece, job, list(enumerate(pieces)), encoded)
    if made.counts["bad_lines"]:
        made.changed["bad_lines"] = made.counts["bad_lines"]
    starts = np.concatenate([[0], np.cumsum(documents)]).astype(np.int64)
    # 2. Duplicates: counted by reason here, and told by the tasks that follow.
    seen = Counter[str]()

    def compare(
        function: Any, shared: Any, tasks: Sequence[Any], done: Callable[[int, Result], None]
    ) -> None:
        def reported(number: int, result: Result) -> None:
            done(number, result)
            seen["tasks"] += 1
            report("duplicates", seen["tasks"], 0, read["documents"], read["tokens"])

        run(function, shared, tasks, reported)

    parts, dropped = mark_duplicates(job.work, job.sizes, starts, job.exact, job.near, compare)
    made.dropped.update(dropped)
    # 3. What stays, the places where shards begin, and the shards.
    laid = _Laid(job, parts)

    def selected(number: int, result: Result) -> None:
        made.counts.update(result["counts"])
        made.changed.update(result["changed"])
        made.kept.update(result["kept"])

    run(select_documents, laid, range(len(pieces)), selected)
    if not made.kept["train"]:
        return made
    _write_shards(laid, len(pieces), made, run, report)
    return made


def _write_shards(laid: _Laid, pieces: int, made: Made, run: RunTasks, report: Report) -> None:
    """Decide where shards begin, write them, and note what they hold."""
    splits = laid.job.splits
    begins: Result = {}
    run(lay_out, laid, [0], lambda number, result: begins.update(result))
    tasks = [
        _ShardTask(split, number, tuple(first), tuple(last))
        for split in splits
        for number, (first, last) in enumerate(
            zip(begins[split], [*begins[split][1:], (pieces, 0)], strict=True)
        )
    ]
    entries: list[Result] = [{} for _ in tasks]

    def written(number: int, result: Result) -> None:
        entries[number] = result
        kept, tokens = made.counts["documents"], made.counts["tokens"]
        report("writing", sum(map(bool, entries)), len(tasks), kept, tokens)

    for split in splits:
        laid.job.split_folder(split).mkdir(parents=True, exist_ok=True)
    run(write_shard, laid, tasks, written)
    for split in splits:
        made.shards[split] = [
            entry for task, entry in zip(tasks, entries, strict=True) if task.split == split
        ]


@cache
def _encoder(settings: EncoderSettings) -> Encoder:
    return Encoder(settings)


def encode_piece(job: Job, task: tuple[int, Piece]) -> Result:
    """Read, clean and tokenize the documents of a piece into a part."""
    number, piece = task

    def write(folder: Path) -> Result:
        documents = piece_documents(piece, job.reading)
        return write_part(folder, documents, _encoder(job.encoder), job.unknown, job.sizes.run)

    return make(task_folder(job.work, "parts", number), write)


def select_documents(laid: _Laid, number: int) -> Result:
    """Write which documents of a part stay, in each split, and their lengths; count them."""
    job, parts = laid

    def select(folder: Path) -> Result:
        part = CorpusPart(parts.folder("parts", number), job.encoder.dtype)
        first, last = int(parts.starts[number]), int(parts.starts[number + 1])
        kept = Verdicts(parts).kept(first, last)
        held = part.held_back(job.validation)
        lengths = _lengths(part.shard(verify=False)) if part.documents else kept.astype(np.int64)
        documents = {}
        for split in job.splits:
            rows = np.flatnonzero(kept & (held == (split == VALIDATION_SPLIT)))
            write_numbers(folder / f"rows-{split}.bin", rows)
            write_numbers(folder / f"lengths-{split}.bin", lengths[rows])
            documents[split] = len(rows)
        details = part.details()[kept]
        changed = {
            name: int(np.count_nonzero(details["changed"] & (1 << bit)))
            for bit, name in enumerate(CLEANING_STEPS)
        }
        return {
            "kept": documents,
            "changed": {name: count for name, count in changed.items() if count},
            "counts": {
                "documents": int(kept.sum()),
                "tokens": int(lengths[kept].sum()),
                "unknown": int(details["unknown"].sum(dtype=np.int64)),
                "lost": int(details["lost"].sum(dtype=np.int64)),
            },
        }

    return make(parts.folder("kept", number), select)


def _lengths(shard: Shard) -> Array:
    return np.diff(np.append(shard.documents[:, 0], len(shard.tokens)))


def _kept_numbers(parts: Parts, number: int, name: str) -> Array:
    return rows_of(parts.folder("kept", number) / name, "<i8", 1)[:, 0]


def lay_out(laid: _Laid, number: int) -> Result:
    """Find where shards begin: a part, and the place of a document among those of it that stay."""
    job, parts = laid
    count = len(parts.starts) - 1

    def find(folder: Path) -> Result:
        return {
            split: shard_begins(
                (_kept_numbers(parts, i, f"lengths-{split}.bin") for i in range(count)),
                job.shard_tokens,
            )
            for split in job.splits
        }

    return make(parts.folder("layout", number), find)


def shard_begins(lengths: Any, limit: int) -> list[tuple[int, int]]:
    """Where `ShardWriter` begins its shards.

    Args:
        lengths: for each part `[n]` the tokens of its documents.
        limit: tokens of a full shard.

    Returns:
        The number of the part, and the document in it, that each shard begins with.
    """
    begins: list[tuple[int, int]] = []
    held = limit  # tokens of the open shard: at first there is none
    for number, part in enumerate(lengths):
        ends = np.cumsum(part)
        place = before = 0
        while place < len(ends):
            # The documents from here on that the open shard has room for.
            stop = int(np.searchsorted(ends, before + limit - held, side="right"))
            if stop <= place:
                begins.append((number, place))
                # A shard takes its first document, however long.
                held, stop = 0, place + 1
            held += int(ends[stop - 1]) - before
            place, before = stop, int(ends[stop - 1])
    return begins


def write_shard(laid: _Laid, task: _ShardTask) -> Result:
    """Write a shard into the corpus; return its entry in the manifest."""
    job, parts = laid

    def write(folder: Path) -> Result:
        made = folder / "made"
        aside = folder / "aside"
        with closing(ShardWriter(made, aside, job.encoder.dtype, sys.maxsize)) as writer:
            for number in range(task.first[0], min(task.last[0] + 1, len(parts.starts) - 1)):
                rows = _kept_numbers(parts, number, f"rows-{task.split}.bin")
                start = task.first[1] if number == task.first[0] else 0
                stop = task.last[1] if number == task.last[0] else len(rows)
                if start < stop:
                    part = CorpusPart(parts.folder("parts", number), job.encoder.dtype)
                    _copy(part.shard(verify=True), np.array(rows[start:stop]), writer)
            writer.finish()
        # First the files get their places, then the task is done: again, it writes the same.
        name = shard_name(task.number)
        for end in ENDS:
            target = job.split_folder(task.split) / (name + end)
            os.replace(made / (shard_name(0) + end), target)
        for path in (made, aside):
            shutil.rmtree(path)
        return {**writer.shards[0], "name": name}

    return make(task_folder(job.work, f"shards-{task.split}", task.number), write)


def _copy(shard: Shard, rows: Array, writer: ShardWriter) -> None:
    """Write documents of a part into a shard."""
    begins = np.append(shard.documents[:, 0], len(shard.tokens))
    firsts = np.searchsorted(shard.sentences, begins)
    for row in rows.tolist():
        start, stop = int(begins[row]), int(begins[row + 1])
        writer.add(
            EncodedDocument(
                None,
                [],
                tokens=shard.tokens[start:stop],
                sentences=shard.sentences[firsts[row] : firsts[row + 1]] - start,
                characters=int(shard.documents[row, 1]),
                bytes=int(shard.documents[row, 2]),
            )
        )
