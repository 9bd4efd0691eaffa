"""Threads change when things are made, never what comes out."""

from __future__ import annotations

import threading
import time
from itertools import count, islice

import pytest

from pretune.data.prefetch import prefetched


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_everything_comes_once_and_in_order(workers: int) -> None:
    def slow_for_some(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(prefetched(slow_for_some, range(40), workers)) == [n * n for n in range(40)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_source_is_asked_only_for_a_little_more_than_was_taken(workers: int) -> None:
    asked = []

    def source():
        for n in count():
            asked.append(n)
            yield n

    stream = prefetched(lambda n: n, source(), workers)
    assert list(islice(stream, 3)) == [0, 1, 2]
    stream.close()
    assert len(asked) <= 3 + 2 * workers + 1


def test_workers_are_other_threads() -> None:
    names = set(prefetched(lambda n: threading.current_thread().name, range(8), 2))
    assert threading.main_thread().name not in names


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_out_where_its_item_would(workers: int) -> None:
    def make(n: int) -> int:
        if n == 2:
            raise ZeroDivisionError
        return n

    stream = prefetched(make, range(5), workers)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
