"""The front's side of the workers: it starts, asks, watches and replaces them.

Nothing here computes or waits for a worker in the front's thread: what a client asks is passed on,
and refused at once where too much waits already.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from typing_extensions import override

from pretune.errors import CheckpointError, RunError
from pretune.serving.jobs import (
    HEADER,
    Abandon,
    Alive,
    Ask,
    BatchRun,
    Cancel,
    Done,
    Failed,
    Kind,
    Loaded,
    Part,
    Preloaded,
    Prepare,
    Served,
    Stop,
    TakeOver,
    Unloadable,
    Unusable,
    body_length,
    packed,
    unpacked,
)
from pretune.serving.kept_files import KeptFiles
from pretune.serving.observer import Observer
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, over_limit

logger = logging.getLogger("pretune.serving")

#: Seconds before a worker that died is started again: at first, and at most.
SOONEST, LATEST = 0.2, 30.0
#: A worker that lived for so many seconds did not die of its start.
LIVED = 60.0
#: Seconds that a worker has to end by itself.
LAST_SECONDS = 5.0
#: A worker that says nothing for so many seconds while it is asked is taken for stuck; no batch
#: takes that long.
STUCK = 60.0


def _work(
    sock: socket.socket,
    options: ServeOptions,
    versions: Mapping[str, int],
    folders: Mapping[str, str],
) -> None:
    """Be a worker: what computes is imported in its process, and never in the front."""
    from pretune.serving.worker import main

    main(sock, options, versions, folders)


@dataclass(eq=False)
class Call:
    """A request that a worker holds."""

    id: int
    worker: WorkerLink
    deadline: float  # of `time.monotonic`
    weight: int  # places in the queue
    messages: asyncio.Queue[Part | Done | Failed] = field(default_factory=asyncio.Queue)
    ended: bool = False


class WorkerLink(asyncio.Protocol):
    """A worker process as the front sees it, and the front's end of the connection to it.

    Attributes:
        calls: the requests that it holds, by number.
        loaded: what it told after loading its models; None before.
        gone: is set when it has ended.
        silent_since: when it last said something, or was first asked after having nothing to do.
        doubted: whether it was asked if it is alive, and has said nothing since.
    """

    def __init__(self, number: int, pool: Pool) -> None:
        self.number, self._pool = number, pool
        self.calls: dict[int, Call] = {}
        self.loaded: Loaded | None = None
        self.started = self.silent_since = time.monotonic()
        self.first: asyncio.Future[Loaded | Unloadable] = asyncio.get_running_loop().create_future()
        self.gone, self.doubted = asyncio.Event(), False
        self._outbox: list[object] = []
        self._unread = bytearray()  # the beginning of a message that is not whole
        self._process: BaseProcess | None = None
        self._transport: asyncio.Transport | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None  # of files that are held

    async def start(
        self,
        options: ServeOptions,
        versions: Mapping[str, int],
        kept: Mapping[str, KeptFiles],
    ) -> None:
        """Start the process; `first` has what it tells of its models.

        Args:
            options: of the service.
            versions: of each model.
            kept: the files of models that are no longer where they come from.
        """
        folders = self._shown(kept)
        # A process of its own, with nothing of ours but its end of the connection: it sees when
        # the front is gone, and the front when it is.
        ours, theirs = socket.socketpair()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(
            target=_work,
            args=(theirs, options, dict(versions), folders),
            name=f"pretune-worker-{self.number}",
            daemon=True,
        )
        with theirs:
            await asyncio.to_thread(self._process.start)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)

    def _shown(self, kept: Mapping[str, KeptFiles]) -> dict[str, str]:
        """Make folders of files that are held; they last as long as the worker."""
        if not kept:
            return {}
        self._place = tempfile.TemporaryDirectory(prefix="pretune-", ignore_cleanup_errors=True)
        folders = {}
        for number, (name, files) in enumerate(kept.items()):
            folder = Path(self._place.name, str(number))
            folder.mkdir()
            files.show(folder)
            folders[name] = str(folder)
        return folders

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return None if self._process is None else self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it has its models and lives."""
        return self.loaded is not None and not self.gone.is_set()

    def send(self, message: object, *, at_once: bool = False) -> None:
        """Pass a message on, together with others of this turn of the loop.

        Args:
            message: of `jobs`.
            at_once: rather by itself: the worker has nothing else to do.
        """
        self._outbox.append(message)
        if at_once:
            self._flush()
        elif len(self._outbox) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if messages and self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed(messages))

    # The connection.

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of a socket: uvloop's, which Ray brings, are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self.silent_since, self.doubted = time.monotonic(), False
        self._unread += data
        begin = 0
        while len(self._unread) >= begin + HEADER:
            start = begin + HEADER
            end = start + body_length(self._unread[begin:start])
            if len(self._unread) < end:
                break
            messages, begin = unpacked(self._unread[start:end]), end
            for message in messages:
                self._receive(message)
        del self._unread[:begin]

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        if self._place is not None:
            self._place.cleanup()
        if not self.first.done():
            self.first.set_result(Unloadable("a worker ended while it loaded", ours=True))

    def _receive(self, message: object) -> None:
        if isinstance(message, Part | Done | Failed):
            call = self.calls.get(message.id)
            if call is not None:
                call.messages.put_nowait(message)
                if not isinstance(message, Part):
                    self._pool.end(call)
        elif isinstance(message, Loaded | Unloadable):
            if isinstance(message, Loaded):
                self.loaded = message
            if not self.first.done():
                self.first.set_result(message)
        elif not isinstance(message, Alive):
            # Who waits for an answer goes on first.
            asyncio.get_running_loop().call_soon(self._pool.receive, self, message)

    async def stop(self, seconds: float = LAST_SECONDS) -> None:
        """Let the process end; after some seconds it is killed."""
        self.send(Stop())
        if self._process is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        except TimeoutError:
            self.kill()
        await asyncio.to_thread(self.reap)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    def reap(self) -> int | None:
        """Wait for the process, which has ended or is about to, and return its exit code."""
        if self._process is None:
            return None
        self._process.join(LAST_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        return self._process.exitcode


class _Swap:
    """A newer version of a model that all workers prepare, and then take over together."""

    def __init__(self, model: str, attempt: int, workers: list[WorkerLink]) -> None:
        self.model, self.attempt = model, attempt
        self.waiting = {*workers}
        self.served: Served | None = None
        self.outcome: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def settle(self, worker: WorkerLink, refused: str | None) -> None:
        """Note that a worker is ready, or why it cannot use the new version."""
        self.waiting.discard(worker)
        if not self.outcome.done() and (refused is not None or not self.waiting):
            self.outcome.set_result(refused)


class Pool:
    """The workers of a service.

    Args:
        options: of the service.
        observer: is told what happens.

    Attributes:
        served: what is known of each model, by name.
        notes: what people are told about how models were read.
        draining: whether no more requests are taken.
    """

    def __init__(self, options: ServeOptions, observer: Observer) -> None:
        self._options, self._observer = options, observer
        self._workers: list[WorkerLink] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._versions = {name: 1 for name, _ in options.models}
        self._kept: dict[str, KeptFiles] = {}
        self._numbers = self._held = self._attempts = 0
        self._swap: _Swap | None = None
        self._pace = 0.05  # seconds between two answers, lately
        self._last_answer = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self.served: dict[str, Served] = {}
        self.notes: tuple[str, ...] = ()
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether requests are taken and a worker can answer them."""
        return not self.draining and any(worker.usable for worker in self._workers)

    @property
    def held(self) -> int:
        """Requests that wait or are computed."""
        return self._held

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that can answer."""
        return [worker.pid for worker in self._workers if worker.usable and worker.pid is not None]

    async def start(self) -> None:
        """Start all workers, and wait until they have their models.

        Raises:
            PretuneError: a model cannot be loaded.
        """
        count = self._options.workers
        self._kept = {name: KeptFiles(source) for name, source in self._options.models}
        self._workers = [WorkerLink(number, self) for number in range(count)]
        try:
            for worker in self._workers:
                await worker.start(self._options, self._versions, {})
            for worker in self._workers:
                first = await worker.first
                if isinstance(first, Unloadable):
                    kind = RunError if first.ours else CheckpointError
                    raise kind(first.message, first.hint)
                self.notes = first.notes
                self.served = {model.name: model for model in first.models}
        except BaseException:
            await self._stop_all()
            raise
        for name, files in self._kept.items():
            self._keep_if_current(name, files)
        for model in self.served.values():
            self._observer.version(model)
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(count)]

    async def close(self, drain: float) -> None:
        """Take no more requests, wait for those that are held, and end the workers.

        Args:
            drain: seconds that they may take; what is left then is refused.
        """
        self.draining = True
        try:
            async with asyncio.timeout(drain):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d requests were not finished in %g s", self._held, drain)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for worker in self._workers:
            self._refuse_all(worker, "draining", "The server is being stopped.")
        await self._stop_all()
        for files in self._kept.values():
            files.close()

    async def _stop_all(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers), return_exceptions=True)

    # Requests.

    def submit(
        self,
        model: str,
        kind: Kind,
        payload: Any,
        options: Mapping[str, Any],
        *,
        weight: int = 1,
    ) -> Call:
        """Pass a request on.

        Args:
            model: its name.
            kind: what is asked.
            payload: the inputs.
            options: of that kind.
            weight: how many places in the queue it takes.

        Raises:
            Refusal: the queue is full (429), or there is no worker (503).
        """
        if self.draining:
            raise Refusal(503, "draining", "The server is being stopped.", retry_after=5)
        if self._held and self._held + weight > self._options.max_queue:
            raise over_limit(
                429,
                "max_queue",
                f"{self._held:,} requests wait already, and the limit is "
                f"{self._options.max_queue:,}: try again later.",
                kind="queue_full",
                retry_after=min(60, max(1, math.ceil(self._held * self._pace))),
            )
        usable = [worker for worker in self._workers if worker.usable]
        if not usable:
            message = "No worker is ready to answer: try again in a moment."
            raise Refusal(503, "unavailable", message, retry_after=2)
        # The worker that holds the fewest requests, of those that answer.
        worker = min(usable, key=lambda own: (own.doubted, len(own.calls)))
        self._numbers += 1
        deadline = time.monotonic() + self._options.timeout
        call = Call(self._numbers, worker, deadline, weight)
        idle = not worker.calls
        # What it held was given up, which does not make one that is stuck answer.
        if idle and not worker.doubted:
            worker.silent_since = time.monotonic()
        worker.calls[call.id] = call
        self._count(weight)
        worker.send(Ask(call.id, model, kind, payload, dict(options), deadline), at_once=idle)
        return call

    async def receive_next(self, call: Call) -> Part | Done:
        """Wait for the next message about a request.

        Raises:
            Refusal: the request is refused, or its time is over (504).
        """
        try:
            async with asyncio.timeout(call.deadline - time.monotonic()):
                message = await call.messages.get()
        except TimeoutError:
            self._kill_if_stuck(call.worker)
            message_text = f"The answer took longer than {self._options.timeout:g} seconds."
            raise over_limit(504, "timeout", message_text, kind="timeout") from None
        if isinstance(message, Failed):
            again = 1 if message.status == 503 else None
            raise Refusal(
                message.status,
                message.kind,
                message.message,
                limit=message.limit,
                retry_after=again,
                param=message.param,
            )
        return message

    def _kill_if_stuck(self, worker: WorkerLink) -> None:
        """End a worker that has said nothing for so long that it will never answer.

        Of any other it is asked whether it is alive.
        """
        silent = time.monotonic() - worker.silent_since
        if silent > max(STUCK, 0.9 * self._options.timeout) and not worker.gone.is_set():
            logger.error(
                "worker %d has not answered for %.0f s: it is ended", worker.number, silent
            )
            worker.kill()
        elif not worker.doubted:
            worker.doubted = True
            worker.send(Alive())

    def release(self, call: Call) -> None:
        """Give a request up; a worker that still holds it drops it."""
        if not call.ended:
            if not call.worker.gone.is_set():
                call.worker.send(Cancel(call.id))
            self.end(call)

    def end(self, call: Call) -> None:
        """Note that a request is no longer held."""
        if call.ended:
            return
        call.ended = True
        call.worker.calls.pop(call.id, None)
        self._count(-call.weight)
        # How fast requests are answered, for who asks when to come again.
        now = time.monotonic()
        if self._last_answer and not self._idle.is_set():
            self._pace = 0.95 * self._pace + 0.05 * min(5.0, now - self._last_answer)
        self._last_answer = now

    def _count(self, weight: int) -> None:
        self._held += weight
        if self._held:
            self._idle.clear()
        else:
            self._idle.set()
        self._observer.queue(self._held)

    # Workers.

    async def _keep(self, number: int) -> None:
        """Replace a worker whenever it dies."""
        wait = SOONEST
        while True:
            worker = self._workers[number]
            await worker.gone.wait()
            held = len(worker.calls)
            code = await asyncio.to_thread(worker.reap)
            self._lost(worker, code, held)
            # One that dies at once is not started again at once.
            wait = SOONEST if time.monotonic() - worker.started > LIVED else min(2 * wait, LATEST)
            await asyncio.sleep(wait)
            await self._replace(number)

    def _lost(self, worker: WorkerLink, code: int | None, held: int) -> None:
        """Refuse what a worker held that died, and say so."""
        self._refuse_all(worker, "worker_died", "The worker that computed this answer died.")
        if self._swap is not None:
            self._swap.settle(worker, None)
        if worker.loaded is not None:
            self._observer.worker_died()
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            logger.error(
                "worker %d died (%s): %d requests got 503; another one is started",
                *(worker.number, how, held),
            )

    def _refuse_all(self, worker: WorkerLink, kind: str, message: str) -> None:
        for call in [*worker.calls.values()]:
            call.messages.put_nowait(Failed(call.id, 503, kind, message))
            self.end(call)

    async def _replace(self, number: int) -> None:
        """Start a worker in the place of one that died."""
        worker = WorkerLink(number, self)
        versions = dict(self._versions)
        try:
            await worker.start(self._options, versions, self._moved_on())
            first = await worker.first
        except asyncio.CancelledError:
            await worker.stop(0)
            raise
        self._workers[number] = worker
        if isinstance(first, Unloadable):
            logger.error("worker %d cannot load its models: %s", number, first.message)
            await worker.stop(LAST_SECONDS)
        elif versions != self._versions:
            # A newer model took over meanwhile: it loads that one.
            worker.loaded = None
            await worker.stop()

    def _moved_on(self) -> dict[str, KeptFiles]:
        """The files of those models whose folders have something else by now."""
        return {
            name: files for name, files in self._kept.items() if files.intact and not files.current
        }

    def _keep_if_current(self, name: str, files: KeptFiles) -> None:
        """Hold the files of a model that was just read, unless it may have been others."""
        before = self._kept.get(name)
        if before is not None and before is not files:
            before.close()
        if not files.current:
            files.close()
        self._kept[name] = files

    def receive(self, worker: WorkerLink, message: object) -> None:
        """Take a message of a worker that is not about one request."""
        if isinstance(message, BatchRun):
            sizes = message.tokens, message.requests, message.seconds
            self._observer.batch_done(message.model, message.kind, *sizes)
        elif isinstance(message, Preloaded | Unusable):
            swap = self._swap
            if swap is None or (message.model, message.attempt) != (swap.model, swap.attempt):
                return  # of a swap that another worker's refusal ended
            if isinstance(message, Preloaded):
                swap.served = message.served
            swap.settle(worker, message.message if isinstance(message, Unusable) else None)

    async def swap(self, model: str) -> str | None:
        """Let a newer version of a model take over in all workers.

        It is loaded beside the old one, which goes on answering, and takes over between batches.

        Returns:
            None if it did; else why not: the old one stays.
        """
        workers = [worker for worker in self._workers if worker.usable]
        if not workers:
            return "no worker is ready"
        version = self._versions[model] + 1
        self._attempts += 1
        key = model, self._attempts
        self._swap = swap = _Swap(*key, workers)
        files = KeptFiles(dict(self._options.models)[model])
        try:
            for worker in workers:
                worker.send(Prepare(*key, version))
            refused = await swap.outcome
            usable = [worker for worker in workers if worker.usable]
            if refused is not None or swap.served is None or not usable:
                for worker in usable:
                    worker.send(Abandon(*key))
                return refused or "the workers died of it"
            for worker in usable:
                worker.send(TakeOver(*key))
            # A worker that came meanwhile has loaded what was there: as good as the new one.
            self._versions[model] = version
            self._keep_if_current(model, files)
            self.served[model] = swap.served
            self._observer.version(swap.served)
            return None
        finally:
            self._swap = None
            if self._kept.get(model) is not files:
                files.close()
