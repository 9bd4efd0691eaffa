"""Tasks on a Ray cluster: that of `RAY_ADDRESS`, or one on this machine.

Plain tasks over files, and not Ray's object store or Ray Data: what a task made is on the disk when
it ends, so that a dead worker, a dead machine or a killed program costs the tasks under way.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pretune.corpus.staged import Result, RunTasks
from pretune.errors import DataError, PretuneError
from pretune.host import usable_cores

#: Times that a task is done again whose worker died.
_MORE_TRIES = 2
#: A folder of a network may show a new file late: how often, and after how many seconds, to look.
_LOOKS, _BETWEEN = 5, 1.0


class _Stage(NamedTuple):
    """What all tasks of a stage share; it is sent once to each machine."""

    function: Callable[[Any, Any], Result]
    shared: Any
    sign: Path  # a file in the folder that all workers have to see
    content: str  # of that file


def cluster_size() -> int:
    """Processors of the cluster that this process has joined, else of this machine."""
    ray = _installed()
    if not ray.is_initialized():
        return usable_cores()
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


@contextmanager
def tasks_on_ray(workers: int | None, folder: Path) -> Iterator[RunTasks]:
    """Run tasks on Ray, `workers` at a time (default: as many as there are processors).

    Args:
        workers: how many tasks run at a time.
        folder: all workers have to see it.

    Raises:
        PretuneError: Ray is not installed or cannot be started; a worker died more than once at the
            same task, or does not see the folder.
    """
    ray = _installed()
    # Join the cluster of RAY_ADDRESS, or start one here; a running one of the caller's is kept.
    started_here = not ray.is_initialized()
    if started_here:
        _start(ray, workers)
    sign, content = folder / "seen-by-workers", uuid.uuid4().hex
    sign.write_text(content, "utf-8")
    count = workers or cluster_size()

    def run(
        function: Callable[[Any, Any], Result],
        shared: Any,
        tasks: Sequence[Any],
        done: Callable[[int, Result], None],
    ) -> None:
        stage = ray.put(_Stage(function, shared, sign, content))
        _run(ray, stage, tasks, done, count)

    try:
        yield run
    finally:
        sign.unlink(missing_ok=True)
        if started_here:
            ray.shutdown()


def _installed() -> Any:
    try:
        import ray
    except ImportError:
        raise PretuneError(
            "Ray is not installed", "Install it with: pip install 'pretune[cluster]'"
        ) from None
    return ray


def _start(ray: Any, workers: int | None) -> None:
    where = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {} if where else {"num_cpus": workers or usable_cores()}
    try:
        ray.init(include_dashboard=False, log_to_driver=False, **local)
    except Exception as error:  # Ray has no kind of its own for this
        reason = str(error).strip().split("\n")[0]
        raise PretuneError(
            f"Ray cannot be {'reached at ' + where if where else 'started'}: {reason}",
            "Check RAY_ADDRESS." if where else "Try it again when the machine has less to do.",
        ) from error


def _run(
    ray: Any, stage: Any, tasks: Sequence[Any], done: Callable[[int, Result], None], count: int
) -> None:
    # Ray does nothing again by itself: it would forever where memory is short.
    remote = ray.remote(_task).options(max_retries=0)
    running: dict[Any, int] = {}
    deaths = Counter[int]()
    failed: dict[int, Exception] = {}
    waiting = iter(range(len(tasks)))
    try:
        while True:
            # Keep the workers busy, unless a task failed: then those before it are waited for, as
            # the first one is told, whoever was faster.
            while len(running) < count and not failed:
                if (number := next(waiting, None)) is None:
                    break
                running[remote.remote(stage, tasks[number])] = number
            if failed:
                _cancel(ray, [ref for ref, number in running.items() if number > min(failed)])
                running = {ref: number for ref, number in running.items() if number < min(failed)}
            if not running:
                break
            ready, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(ready[0])
            outcome = _outcome(ray, ready[0])
            if isinstance(outcome, dict):
                done(number, outcome)
            elif isinstance(outcome, _WorkerError) and deaths[number] < _MORE_TRIES:
                deaths[number] += 1
                running[remote.remote(stage, tasks[number])] = number
            else:
                failed[number] = outcome
    finally:
        _cancel(ray, list(running))
    if failed:
        raise failed[min(failed)]


class _WorkerError(PretuneError):
    """The worker of a task died."""


def _outcome(ray: Any, ref: Any) -> Result | Exception:
    try:
        outcome: Result | Exception = ray.get(ref)
        return outcome
    except ray.exceptions.RayTaskError:
        raise  # our own mistake, with its traceback
    except ray.exceptions.RayError as error:
        reason = str(error).strip().split("\n")[0]
        return _WorkerError(
            f"Ray workers died at the same task, perhaps for lack of memory: {reason}",
            "The same command goes on where it stopped; use fewer --workers, or machines with more "
            "memory.",
        )


def _cancel(ray: Any, refs: list[Any]) -> None:
    for ref in refs:
        with suppress(Exception):  # it may be over
            ray.cancel(ref, force=True)


def _task(stage: _Stage, task: Any) -> Result | Exception:
    """Do a task in a worker; return an error that a person can mend."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each core
    try:
        check_folder(stage.sign, stage.content)
        return stage.function(stage.shared, task)
    except PretuneError as error:
        return error
    except OSError as error:  # sources have errors of their own: this is about the folder
        return OSError(error.errno, error.strerror or str(error))


def check_folder(sign: Path, content: str) -> None:
    """Check that this process sees the folder in which a file was made.

    Raises:
        DataError: it does not.
    """
    for look in range(_LOOKS):
        with suppress(OSError):
            if sign.read_text("utf-8") == content:
                return
        if look + 1 < _LOOKS:
            time.sleep(_BETWEEN)
    raise DataError(
        f"{sign.parent}: a worker on {socket.gethostname()} does not see this folder",
        "Give --output in a folder that all machines have under the same path.",
    )
