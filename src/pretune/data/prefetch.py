"""Making things ahead of time, in threads, without changing their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(make: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R]:
    """Yield `make(item)` for each item, in order, whatever the number of workers.

    Items are taken only as needed, by the caller's thread, and may be endless. Each worker keeps
    two results ready; with 0 workers results are made on demand. Closing the iterator early throws
    away what was made ahead.
    """
    if workers == 0:
        yield from map(make, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            # Fill the queue, then add an item for each result that is taken from it.
            for item in islice(source, 2 * workers):
                waiting.append(pool.submit(make, item))
            while waiting:
                result = waiting.popleft().result()
                for item in islice(source, 1):
                    waiting.append(pool.submit(make, item))
                yield result
        finally:  # closed early, or an error: what has not begun is not made
            for future in waiting:
                future.cancel()
