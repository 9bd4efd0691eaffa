"""A worker process: it holds models and answers what the front passes on.

Four kinds of threads share the work, and only the first runs models:

    engine      takes what is ready; runs a packed batch, a step, and a token of each continuation;
                sends what is answered
    receiver    reads the front's messages, and makes short requests ready
    tokenizer   makes long requests ready
    loader      loads a newer model beside the one that answers, when the front asks for it
"""

from __future__ import annotations

import gc
import logging
import math
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from pretune.data.batch import FeatureSet
from pretune.errors import CheckpointError, Note, PretuneError
from pretune.inference.memory import return_memory
from pretune.serving.held_model import HeldModel, LiveWork, PackedWork, ReadyWork, StepWork, Work
from pretune.serving.jobs import (
    HEADER,
    Abandon,
    Alive,
    Ask,
    BatchRun,
    Cancel,
    Counts,
    Done,
    Failed,
    Loaded,
    Part,
    Preloaded,
    Prepare,
    Stop,
    TakeOver,
    Unloadable,
    Unusable,
    body_length,
    packed,
    unpacked,
)
from pretune.serving.options import ServeOptions
from pretune.serving.packing import Share, next_batch
from pretune.serving.refusal import Refusal

#: What only those can do who have a file of records, in hints: after something that all can.
_FILES = re.compile(r",? or remove (?:the record|it)\b| \(task\.\w+\)")

logger = logging.getLogger("pretune.serving")

#: Characters from which a request is a long one, whose tokenizing others do not wait for.
LONG = 20_000
#: Seconds that a batch waits for requests that are here already, and are being tokenized.
GATHER = 0.003
#: A text that is tokenized for so many seconds, and for longer than a request may take, will never
#: be ready.
STUCK = 60.0
#: Seconds that a thread may run Python before another one may: the model's thread asks for its turn
#: after each operation, and a request is tokenized in less.
SWITCH_SECONDS = 0.0005


def main(
    sock: socket.socket,
    options: ServeOptions,
    versions: Mapping[str, int],
    folders: Mapping[str, str],
) -> None:
    """Load models and answer until the front says stop, or is gone.

    Args:
        sock: to the front.
        options: of the service.
        versions: of each model, by its name.
        folders: where to read a model for now, of those that are no longer where they come from.
    """
    # The front decides when to end: Ctrl-C and systemd's SIGTERM reach all processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    if options.workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // options.workers))
    with suppress(OSError):  # the front is gone
        _answer_all(Link(sock), options, versions, folders, alone=True)
    # There is nothing to save: taking the interpreter apart takes long, and the front waits.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _answer_all(
    link: Link,
    options: ServeOptions,
    versions: Mapping[str, int],
    folders: Mapping[str, str],
    *,
    alone: bool = False,
) -> None:
    """Load models, or say why not, and answer until the front says stop.

    Args:
        link: to the front.
        options: as in `main`.
        versions: as in `main`.
        folders: as in `main`.
        alone: whether the process does nothing else.
    """
    try:
        models, notes = _loaded(options, versions, folders)
    except PretuneError as error:
        link.send([Unloadable(error.message, error.hint)])
        return
    except Exception as error:
        traceback.print_exc()  # no request has come yet
        link.send([Unloadable(f"{type(error).__name__}: {error}", ours=True)])
        return
    if alone:
        # What is there now stays: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
    link.send([Loaded(tuple(model.served for model in models.values()), notes)])
    BatchEngine(link, models, options).run()


def _loaded(
    options: ServeOptions, versions: Mapping[str, int], folders: Mapping[str, str]
) -> tuple[dict[str, HeldModel], tuple[str, ...]]:
    """Load all models; also return what people are told about that."""
    models = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Note)
        for name, source in options.models:
            folder = folders.get(name)
            models[name] = HeldModel(name, source, versions[name], options, folder)
            models[name].probe()
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, Note)]
    # From here on nobody reads them.
    warnings.simplefilter("ignore", Note)
    return models, tuple(dict.fromkeys(notes))


class Link:
    """The worker's end of the connection to the front."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = sock.makefile("rb")
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let the connection go."""
        self._reader.close()
        self._socket.close()

    def send(self, messages: Sequence[object]) -> None:
        """Send messages; an OSError if the front is gone."""
        data = packed(messages)
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> list[Any]:
        """Return the next messages; where the front is gone, the message to stop."""
        try:
            header = self._reader.read(HEADER)
            body = self._reader.read(body_length(header)) if len(header) == HEADER else b""
        except OSError:
            body = b""
        return unpacked(body) if body else [Stop()]


class BatchEngine:
    """Answers the requests of the front.

    Args:
        link: to the front.
        models: by name.
        options: of the service.
    """

    def __init__(self, link: Link, models: dict[str, HeldModel], options: ServeOptions) -> None:
        self._link, self._models, self._options = link, models, options
        self._beside: dict[tuple[str, int], HeldModel] = {}  # newer models, by name and attempt
        self._abandoned: set[tuple[str, int]] = set()
        # Requests that were received and not answered, and those of them that nobody wants.
        self._held: set[int] = set()
        self._cancelled: set[int] = set()
        self._long: queue.SimpleQueue[tuple[Ask, float]] = queue.SimpleQueue()
        # The long request that is being made ready: its model, and since when.
        self._tokenizing: tuple[str, float] | None = None
        # What other threads have for the engine: work, or a message of the front.
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        # Only the engine's own thread touches what follows. Packed work by what can be run
        # together, the one whose turn is next first.
        self._packed: dict[tuple[object, ...], list[PackedWork]] = {}
        self._steps: list[StepWork] = []
        self._live: dict[int, LiveWork] = {}
        self._outbox: list[object] = []
        self._stopped = self._untidy = False

    def run(self) -> None:
        """Answer until the front says stop."""
        for target in (self._receive, self._tokenize):
            threading.Thread(target=target, daemon=True).start()
        while self.turn():
            pass

    def turn(self) -> bool:
        """Take what is there, run a batch, a step and a token of each continuation, and answer.

        Returns:
            whether to go on; where there is nothing to do, it waits.
        """
        self._take()
        if self._stopped:
            return False
        self._drop_unwanted()
        # What is answered does not wait for what others asked.
        self._flush()
        for part in (self._run_batch, self._run_step, self._write_tokens):
            part()
            self._flush()
        return True

    def accept(self, ask: Ask, received: float) -> None:
        """Make a request ready and put it before the engine; a mistake in it is its own."""
        if ask.id in self._cancelled or ask.deadline < time.monotonic():
            self._held.discard(ask.id)
            self._cancelled.discard(ask.id)
            return
        try:
            self._inbox.put(self._models[ask.model].prepare(ask, received))
        except BaseException as error:  # a panic of the Rust tokenizer is no Exception
            self._inbox.put(failure(ask, error))

    def hold(self, number: int) -> None:
        """Note that a request is here, which may be cancelled from now on."""
        self._held.add(number)

    def cancel(self, number: int) -> None:
        """Note that nobody wants the answer to a request."""
        if number in self._held:
            self._cancelled.add(number)
            self._inbox.put(Cancel(number))  # wakes the engine

    # Other threads.

    def _receive(self) -> None:
        """Pass the front's messages on."""
        while self._pass_on(self._link.receive(), time.monotonic()):
            pass

    def _pass_on(self, messages: Sequence[object], received: float) -> bool:
        """Pass messages on that came together; False after the one to stop."""
        # All are held before the first is ready: the engine waits a moment for the others.
        for message in messages:
            if isinstance(message, Ask):
                self.hold(message.id)
        for message in messages:
            if isinstance(message, Ask):
                if characters(message.payload, LONG):
                    self._long.put((message, received))
                else:
                    self.accept(message, received)
            elif isinstance(message, Prepare):
                threading.Thread(target=self._prepare, args=(message,), daemon=True).start()
            elif isinstance(message, Cancel):
                self.cancel(message.id)
            elif isinstance(message, TakeOver | Abandon):
                self._settle(message)
            else:
                self._inbox.put(message)
        return not any(isinstance(message, Stop) for message in messages)

    def _tokenize(self) -> None:
        """Make long requests ready."""
        while True:
            ask, received = self._long.get()
            self._tokenizing = ask.model, time.monotonic()
            self.accept(ask, received)
            self._tokenizing = None

    def _check_tokenizing(self) -> None:
        """End the process if one text keeps the others from being tokenized.

        A tokenizer's patterns may take years for a text, and nothing else ends them.
        """
        model, began = self._tokenizing or ("", math.inf)
        seconds = time.monotonic() - began
        if seconds > max(STUCK, self._options.timeout):
            logger.error("the tokenizer of '%s' has read one text for %.0f s", model, seconds)
            os._exit(1)

    def _prepare(self, message: Prepare) -> None:
        """Load a newer model beside the one that answers."""
        key = message.model, message.attempt
        source = dict(self._options.models)[message.model]
        answer: Preloaded | Unusable
        try:
            model = HeldModel(message.model, source, message.version, self._options)
            model.probe()
        except PretuneError as error:
            answer = Unusable(*key, sentence(error))
        except Exception as error:
            answer = Unusable(*key, f"{type(error).__name__}: {error}")
        else:
            if key not in self._abandoned:
                self._beside[key] = model
            answer = Preloaded(*key, model.served)
        with suppress(OSError):  # the front is gone
            self._link.send([answer])

    def _settle(self, message: TakeOver | Abandon) -> None:
        """Let a newer model take over, or drop it.

        What comes from here on is for the newer one; the batches of before are finished by the old.
        """
        key = message.model, message.attempt
        model = self._beside.pop(key, None)
        if isinstance(message, Abandon):
            self._abandoned.add(key)
        elif model is not None:
            self._models[message.model] = model
        self._inbox.put(message)

    # The engine.

    def _take(self) -> None:
        """Take what other threads have; wait for it where there is nothing else to do."""
        idle = not (self._packed or self._steps or self._live)
        if idle and self._untidy and self._inbox.empty():
            # A model that was replaced has answered its last request.
            frozen = gc.get_freeze_count()
            gc.unfreeze()
            gc.collect()
            if frozen:
                gc.freeze()
            return_memory()
            self._untidy = False
        with suppress(queue.Empty):
            item = self._inbox.get(block=idle)
            while True:
                self._accept(item)
                item = self._inbox.get_nowait()
        if idle:
            self._await_others()

    def _await_others(self) -> None:
        """Wait a moment for requests that are being tokenized: together with the first of them.

        Clients that were answered together ask again together, and the first that comes would have
        a batch to itself.
        """
        end = time.monotonic() + GATHER
        with suppress(queue.Empty):
            while self._packed and len(self._held) > self._ready:
                self._accept(self._inbox.get(timeout=max(0.0, end - time.monotonic())))

    @property
    def _ready(self) -> int:
        """How many requests can be computed."""
        return len(self._steps) + len(self._live) + sum(map(len, self._packed.values()))

    def _accept(self, item: object) -> None:
        if isinstance(item, PackedWork):
            self._packed.setdefault(item.signature, []).append(item)
        elif isinstance(item, StepWork):
            self._steps.append(item)
        elif isinstance(item, LiveWork):
            self._join(item)
        elif isinstance(item, ReadyWork):
            self._done(item, item.value)
        elif isinstance(item, Failed):
            self._answer(item)
        elif isinstance(item, Alive):
            self._check_tokenizing()
            self._outbox.append(item)
        elif isinstance(item, TakeOver | Abandon):
            self._untidy = True
        elif isinstance(item, Stop):
            self._stopped = True

    def _join(self, work: LiveWork) -> None:
        try:
            work.model.live.add(
                work.prompt,
                work.decoding,
                work.stops,
                work.stop_texts,
                tag=work.ask.id,
                top_logprobs=work.top,
            )
        except Exception as error:
            self._answer(failure(work.ask, error))
        else:
            self._live[work.ask.id] = work

    def _drop_unwanted(self) -> None:
        """Drop requests that were cancelled, or whose time is over: nobody waits for them."""
        works: list[Work] = [*self._steps, *self._live.values()]
        works += [work for waiting in self._packed.values() for work in waiting]
        now = time.monotonic()
        late = {work.ask.id for work in works if work.ask.deadline < now}
        gone = self._cancelled | late
        if not gone:
            return
        for signature, waiting in [*self._packed.items()]:
            self._keep(signature, [work for work in waiting if work.ask.id not in gone])
        self._steps = [work for work in self._steps if work.ask.id not in gone]
        for number in gone & {*self._live}:
            self._live.pop(number).model.live.cancel(number)
        # Those that are being tokenized are dropped when they come. (The receiver adds to the same
        # set, so it is changed in place.)
        self._held -= gone & {work.ask.id for work in works}
        self._cancelled -= {number for number in gone if number not in self._held}

    def _keep(self, signature: tuple[object, ...], works: list[PackedWork]) -> None:
        if works:
            self._packed[signature] = works
        else:
            self._packed.pop(signature, None)

    def _run_batch(self) -> None:
        """Run a packed batch of those requests whose turn it is."""
        if not self._packed:
            return
        signature, works = next(iter(self._packed.items()))
        shares = next_batch(works)
        error = self._run_shares(shares)
        if error is not None and len(shares) == 1:
            self._answer(failure(shares[0].work.ask, error))
        elif error is not None:
            # One that cannot be run must not fail those it is run with.
            for share in shares:
                error = self._run_shares([share])
                if error is not None:
                    self._answer(failure(share.work.ask, error))
        # Its traceback leads to this frame, and to all that was computed: no circle of them is left
        # to the garbage collector.
        error = None
        for work in {id(share.work): share.work for share in shares}.values():
            if len(work.items) == len(work.features) and work.ask.id in self._held:
                self._finish(work)
        # The others of this kind wait until all other kinds had their turn.
        self._packed.pop(signature)
        self._keep(signature, [work for work in works if work.ask.id in self._held])

    def _run_shares(self, shares: Sequence[Share]) -> Exception | None:
        """Run some features, and give each request its items; return an error that was raised."""
        parts = [share.work.features.part(share.start, share.stop) for share in shares]
        lane, started = shares[0].work.lane, time.monotonic()
        try:
            items = lane.run(FeatureSet.joined(parts) if len(parts) > 1 else parts[0])
        except Exception as error:
            return error
        seconds, taken = time.monotonic() - started, 0
        for share, part in zip(shares, parts, strict=True):
            share.work.items += items[taken : taken + len(part)]
            share.work.attained += share.tokens
            share.work.ran(started, seconds)
            taken += len(part)
        tokens = sum(share.tokens for share in shares)
        self._outbox.append(BatchRun(lane.model, lane.kind, tokens, len(shares), seconds))
        return None

    def _finish(self, work: PackedWork) -> None:
        try:
            value = work.finish(work.items)
        except Exception as error:
            self._answer(failure(work.ask, error))
        else:
            self._done(work, value)

    def _run_step(self) -> None:
        """Run a step of the request that had its last one longest ago."""
        if not self._steps:
            return
        work, started = self._steps.pop(0), time.monotonic()
        try:
            next(work.steps)
        except StopIteration as end:
            self._done(work, end.value)
        except Exception as error:
            self._answer(failure(work.ask, error))
        else:
            seconds = time.monotonic() - started
            work.ran(started, seconds)
            self._outbox.append(BatchRun(work.ask.model, work.ask.kind, 0, 1, seconds))
            self._steps.append(work)

    def _write_tokens(self) -> None:
        """Write a token of each continuation."""
        for model in dict.fromkeys(work.model for work in self._live.values()):
            started = time.monotonic()
            try:
                chunks = model.live.step()
            except Exception as error:
                # The batch cannot go on: all that was in it is lost.
                model.reset_live()
                for number in [n for n, work in self._live.items() if work.model is model]:
                    self._answer(failure(self._live.pop(number).ask, error))
                continue
            seconds = time.monotonic() - started
            works = {tag: self._live[tag] for tag, _ in chunks}
            for work in works.values():
                work.ran(started, seconds)
            for tag, chunk in chunks:
                self._tell(works[tag], chunk)
            run = BatchRun(model.name, "generate", len(chunks), len(works), seconds)
            self._outbox.append(run)

    def _tell(self, work: LiveWork, chunk: Any) -> None:
        """Send a piece of a continuation; with the last one the request is done."""
        piece = work.model.piece(work, chunk)
        for copy in range(work.copies):
            own = replace(piece, sample=copy) if work.copies > 1 else piece
            self._outbox.append(Part(work.ask.id, own))
        if chunk.done is not None:
            work.open -= 1
            if work.open == 0:
                del self._live[work.ask.id]
                self._done(work, None)

    # Answers.

    def _done(self, work: Work, value: Any) -> None:
        started = time.monotonic() if work.started is None else work.started
        counts = Counts(
            tokens=work.tokens,
            queue=started - work.received,
            compute=work.compute,
            version=work.version,
            truncated=work.truncated,
        )
        self._answer(Done(work.ask.id, value, counts))

    def _answer(self, message: Done | Failed) -> None:
        self._held.discard(message.id)
        self._cancelled.discard(message.id)
        self._outbox.append(message)

    def _flush(self) -> None:
        if self._outbox:
            self._link.send(self._outbox)
            self._outbox = []


def failure(ask: Ask, error: BaseException) -> Failed:
    """Say why a request is refused; of our own mistakes the log gets the place, and no text."""
    if isinstance(error, Refusal):
        more = {"limit": error.limit, "param": error.param}
        return Failed(ask.id, error.status, error.kind, error.message, **more)
    if isinstance(error, CheckpointError):
        # Where the model's files lie is nobody's business but of whoever runs the server.
        logger.error("a request (%s of '%s') failed: %s", ask.kind, ask.model, sentence(error))
        message = f"The model '{ask.model}' cannot read this; the log of the server says why."
        return Failed(ask.id, 422, "unreadable", message)
    if isinstance(error, PretuneError):
        return Failed(ask.id, 422, "invalid", sentence(error, of_request=True))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        message = "There is not enough memory for this request: send less at a time."
        return Failed(ask.id, 503, "out_of_memory", message)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {frame.filename}:{frame.lineno}" for frame in place)
    kind = type(error).__name__
    logger.error("a request (%s of '%s') failed: %s%s", ask.kind, ask.model, kind, where)
    message = f"The model failed on this request ({kind}); the log of the server names the place."
    return Failed(ask.id, 500, "internal", message)


def sentence(error: PretuneError, *, of_request: bool = False) -> str:
    """The message of an error with its way out, on one line.

    Args:
        error: what went wrong.
        of_request: whether it is told to whoever sent a request: they have no files, and no
            records to remove from them.
    """
    parts = [part for part in (error.message, error.hint) if part]
    if of_request:
        parts[1:] = [_FILES.sub("", part) for part in parts[1:]]
    whole = " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts)
    return " ".join(whole.split())


def characters(value: object, enough: int) -> bool:
    """Whether the texts in a value have more characters than that."""
    left, waiting = enough, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            left -= len(item)
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, Sequence) and not isinstance(item, bytes):
            left -= len(item)
            waiting += item
        elif hasattr(item, "prompt"):
            waiting.append(item.prompt)
        if left < 0:
            return True
    return False
