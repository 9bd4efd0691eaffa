"""Documents in batches, encoded here or in processes, with equal results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TypeVar

from pretune.corpus.documents import Document
from pretune.corpus.encode import EncodedDocument, Encoder, EncoderSettings
from pretune.errors import PretuneError

Handle = TypeVar("Handle")
#: A batch is full with so many documents, or characters.
BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 500_000


@dataclass
class DocumentBatch:
    """Documents that are encoded together."""

    texts: list[str] = field(default_factory=list)  # of the documents
    characters: int = 0  # in all texts
    read: int = 0  # documents read, including those that could not be
    cut: int = 0  # documents that are later parts of a document that was too long
    # The number of documents that could not be read, by reason.
    problems: dict[str, int] = field(default_factory=dict)
    bad_lines: int = 0  # documents from which lines with bytes that are not valid were left out
    # Where the next batch begins: the source, and the documents before it in that source.
    after: tuple[int, int] = (0, 0)
    position: int = 0  # bytes read

    def add(self, document: Document) -> None:
        """Add a document; count one that could not be read."""
        self.read += 1
        self.cut += document.cut
        self.bad_lines += document.bad_lines
        if document.problem is not None:
            self.problems[document.problem] = self.problems.get(document.problem, 0) + 1
        else:
            self.texts.append(document.text)
            self.characters += len(document.text)

    def full(self) -> bool:
        """Whether it is time to encode it; where batches end has no influence on the result."""
        return self.read >= BATCH_DOCUMENTS or self.characters >= BATCH_CHARACTERS


def batches_of(documents: Iterable[Document]) -> Iterator[DocumentBatch]:
    """Documents in batches, for those who need not know where in a source a batch ends."""
    batch = DocumentBatch()
    for document in documents:
        batch.add(document)
        if batch.full():
            yield batch
            batch = DocumentBatch()
    yield batch


Results = Generator[tuple[DocumentBatch, list[EncodedDocument]], None, None]


def encode_batches(
    settings: EncoderSettings, batches: Iterable[DocumentBatch], workers: int
) -> Results:
    """Encode batches; the results come in the order of the batches.

    At any time at most two batches a worker are being encoded. One process means this process.

    Raises:
        PretuneError: a worker died.
    """
    if workers > 1:
        yield from _in_processes(settings, iter(batches), workers)
        return
    encoder = Encoder(settings)
    for batch in batches:
        yield batch, encoder(batch.texts)


def _in_order(
    batches: Iterator[DocumentBatch],
    start: Callable[[list[str]], Handle],
    wait: Callable[[Handle], list[EncodedDocument]],
    limit: int,
) -> Results:
    """Keep up to `limit` batches going, and yield their results first in, first out."""
    running: deque[tuple[DocumentBatch, Handle]] = deque()
    for batch in batches:
        running.append((batch, start(batch.texts)))
        if len(running) >= limit:
            batch, handle = running.popleft()
            yield batch, wait(handle)
    while running:
        batch, handle = running.popleft()
        yield batch, wait(handle)


def _in_processes(
    settings: EncoderSettings, batches: Iterator[DocumentBatch], workers: int
) -> Results:
    # Not by fork: the tokenizer has threads, and a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(settings,)
    )
    try:
        yield from _in_order(
            batches, lambda texts: pool.submit(_work, texts), lambda f: f.result(), 2 * workers
        )
    except BrokenProcessPool:  # a worker was killed; the journal is intact
        raise PretuneError(
            "a process that tokenizes died, perhaps for lack of memory",
            "The same command goes on where it stopped; use fewer --workers.",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


#: The encoder of a worker process.
_worker: list[Encoder] = []


def _start(settings: EncoderSettings) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(Encoder(settings))


def _end_with_parent() -> None:
    # A parent that was killed cannot stop its workers, and they would wait for it forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(texts: list[str]) -> list[EncodedDocument]:
    return _worker[0](texts)
