"""Stages of work in tasks whose results are folders: each is there whole or not at all.

A task that is done again, because its process or the whole program was killed, finds its folder and
does nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretune.data.arrays import Array
from pretune.errors import DataError
from pretune.host import sync_path

_META = "task.json"
Result = dict[str, Any]


@dataclass(frozen=True)
class WorkSizes:
    """How large the parts of the work are; no size changes the corpus."""

    piece: int = 128 * 2**20  # bytes of the sources in a piece
    run: int = 2**22  # records that are sorted in memory
    partition: int = 2**22  # records, about, that are compared with each other in memory
    rest: int = 50_000  # documents that are decided one by one in a single process
    states: int = 2**24  # documents whose states are in one file


class RunTasks(Protocol):
    """Runs tasks somewhere, in any order."""

    def __call__(
        self,
        function: Callable[[Any, Any], Result],
        shared: Any,
        tasks: Sequence[Any],
        done: Callable[[int, Result], None],
    ) -> None:
        """Call `function(shared, task)` for each task, and `done` with its number and its result.

        Raises:
            PretuneError: of the first task, by number, that raised one; no more tasks begin then.
        """


def task_folder(work: Path, stage: str, number: int) -> Path:
    """The folder of the result of a task."""
    return work / stage / f"{number:05}"


def make(folder: Path, task: Callable[[Path], Result]) -> Result:
    """Do a task in a folder of its own, which then gets its name; or return what it returned.

    Raises:
        DataError: it was done before, and its files are damaged.
    """
    there = finished(folder)
    if there is not None:
        return there
    # Nobody else has that name: on another machine the same task may be under way, given up.
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    aside.mkdir(parents=True)
    try:
        result = task(aside)
        files = {path.name: path.stat().st_size for path in aside.iterdir()}
        (aside / _META).write_text(json.dumps({"files": files, "result": result}), "utf-8")
        for path in [*aside.iterdir(), aside]:
            sync_path(path)
        try:
            os.rename(aside, folder)
        except OSError:
            there = finished(folder)
            if there is None:
                raise
            return there
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_path(folder.parent)
    return result


def finished(folder: Path) -> Result | None:
    """What a finished task returned, None if it is not finished; its files have to be whole.

    Raises:
        DataError: they are not.
    """
    try:
        meta = json.loads((folder / _META).read_text("utf-8"))
        files, result = dict(meta["files"]), dict(meta["result"])
    except FileNotFoundError:
        if folder.exists():
            raise damaged(folder, f"no {_META}") from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{_META}: {error}") from None
    for name, size in files.items():
        path = folder / name
        actual = path.stat().st_size if path.exists() else 0
        if actual != size:
            raise damaged(folder, f"{name}: {actual:,} bytes, written were {size:,}")
    return result


def damaged(folder: Path, what: str) -> DataError:
    """The error about a finished task whose files are not what was written."""
    return DataError(
        f"{folder}: damaged ({what})",
        "Remove that folder: the same command then does this part again, and goes on.",
    )


def clean_up(work: Path) -> None:
    """Remove what killed tasks left half-written."""
    for path in work.glob("*/.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------- records that are sorted by a key of 64 bits

#: Places in a run are noted for this many bits of a key.
_TABLE_BITS = 12


def write_runs(folder: Path, name: str, runs: Iterator[Array]) -> int:
    """Write records, each run in the order of its keys; return how many.

    Args:
        folder: where two files are made.
        name: of the files.
        runs: `[n]` structured arrays with a field `key`, uint64; each has to fit into memory.
    """
    edges = np.arange(1, 2**_TABLE_BITS, dtype=np.uint64) << np.uint64(64 - _TABLE_BITS)
    tables = []
    with (folder / f"{name}.bin").open("wb") as handle:
        for run in runs:
            run = run[np.argsort(run["key"], kind="stable")]
            places = np.searchsorted(run["key"], edges)
            tables.append(np.concatenate([[0], places, [len(run)]]))
            handle.write(run.tobytes())
    table = np.array(tables, dtype="<i8").reshape(-1, 2**_TABLE_BITS + 1)
    (folder / f"{name}.table").write_bytes(table.tobytes())
    return int(table[:, -1].sum())


def read_partition(
    folder: Path, name: str, dtype: np.dtype[Any], number: int, partitions: int
) -> Array:
    """The records of all runs whose keys are in one of so many equal parts of all keys."""
    low, high = (2**64 * i // partitions for i in (number, number + 1))
    table = rows_of(folder / f"{name}.table", "<i8", 2**_TABLE_BITS + 1)
    shift = 64 - _TABLE_BITS
    parts, before = [np.zeros(0, dtype)], 0
    with (folder / f"{name}.bin").open("rb") as handle:
        for places in table:
            # The table leads to a stretch that may begin before the part and end after it.
            first, last = int(places[low >> shift]), int(places[((high - 1) >> shift) + 1])
            handle.seek((before + first) * dtype.itemsize)
            records = np.frombuffer(handle.read((last - first) * dtype.itemsize), dtype)
            keys = np.ascontiguousarray(records["key"])
            start = int(np.searchsorted(keys, np.uint64(low)))
            stop = int(np.searchsorted(keys, np.uint64(high - 1), side="right"))
            parts.append(records[start:stop])
            before += int(places[-1])
    return np.concatenate(parts)


def rows_of(path: Path, dtype: str, width: int) -> Array:
    """`[n, width]`: a file of numbers, mapped into memory."""
    if path.stat().st_size == 0:
        return np.zeros((0, width), dtype)
    return np.memmap(path, dtype, "r").reshape(-1, width)


def write_numbers(path: Path, numbers: Array) -> None:
    """Write numbers of documents."""
    path.write_bytes(numbers.astype("<i8").tobytes())


def numbers_between(path: Path, first: int, last: int) -> Array:
    """`[n]` int64: the numbers from `first` to before `last` in a file of ascending ones."""
    numbers = rows_of(path, "<i8", 1)[:, 0]
    start, stop = np.searchsorted(numbers, [first, last])
    return np.array(numbers[start:stop])
