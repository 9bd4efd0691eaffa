"""Where documents are encoded: here, in processes, or on a Ray cluster, with equal results."""

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
from functools import cache
from typing import Any, TypeVar

from pretune.corpus.encode import EncodedDocument, Encoder, EncoderSettings
from pretune.errors import PretuneError, did_you_mean

Handle = TypeVar("Handle")


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


Results = Generator[tuple[DocumentBatch, list[EncodedDocument]], None, None]


def encode_batches(
    engine: str, settings: EncoderSettings, batches: Iterable[DocumentBatch], workers: int
) -> Results:
    """Encode batches; the results come in the order of the batches.

    At any time at most two batches a worker are being encoded. One process means this process.

    Raises:
        PretuneError: there is no such engine, it is not installed, or a worker died.
    """
    if engine not in _ENGINES:
        raise PretuneError(f"no engine is called '{engine}'", did_you_mean(engine, _ENGINES))
    return _ENGINES[engine](settings, iter(batches), workers)


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
    if workers == 1:
        encoder = Encoder(settings)
        for batch in batches:
            yield batch, encoder(batch.texts)
        return
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


def _on_ray(settings: EncoderSettings, batches: Iterator[DocumentBatch], workers: int) -> Results:
    try:
        import ray
    except ImportError:
        raise PretuneError(
            "Ray is not installed", "Install it with: pip install 'pretune[cluster]'"
        ) from None
    # Join the cluster of RAY_ADDRESS, or start one here; a running one of the caller's is kept.
    started_here = not ray.is_initialized()
    if started_here:
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, **local)
    try:
        task: Any = ray.remote(_ray_task)
        shared = ray.put(settings)  # once to each machine, not with every batch
        yield from _in_order(
            batches, lambda texts: task.remote(shared, texts), ray.get, 2 * workers
        )
    except ray.exceptions.RayError as error:
        reason = str(error).strip().split("\n")[-1]
        raise PretuneError(
            f"a Ray worker failed: {reason}", "The same command goes on where it stopped."
        ) from error
    finally:
        if started_here:
            ray.shutdown()


@cache
def _encoder(settings: EncoderSettings) -> Encoder:
    return Encoder(settings)


def _ray_task(settings: EncoderSettings, texts: list[str]) -> list[EncodedDocument]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return _encoder(settings)(texts)


_ENGINES: dict[str, Callable[[EncoderSettings, Iterator[DocumentBatch], int], Results]] = {
    "processes": _in_processes,
    "ray": _on_ray,
}
