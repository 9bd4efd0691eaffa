"""The clients of `bench/serve.py`, in a process of their own: one thread, nothing but sockets.

    python bench/serve_load.py < plan.json

The plan (see `Plan`) comes as JSON on standard input, and what was seen goes as JSON to standard
output. All servers are asked by this same program, so that what it costs falls on all of them. It
costs little: requests are made beforehand, answers are only counted, and one `epoll` waits for all.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import json
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

#: How servers write the name of the header.
_LENGTHS = (b"\ncontent-length: ", b"\nContent-Length: ")
#: Seconds after which a run that does not end is given up.
_STUCK = 120.0
#: Bodies that are kept, to compare the answers of engines.
_KEPT = 24
#: Bytes that are read at a time: more than an answer has.
_READ = 1 << 18


@dataclass
class Plan:
    """What the clients do.

    Attributes:
        port: of the server, on 127.0.0.1.
        requests: whole requests of HTTP, asked in their order, again and again.
        clients: how many ask at a time, each for the next one as soon as it is answered.
        warm: seconds at the beginning that are not counted.
        seconds: how long it goes on after them.
        rate: requests a second, at random moments, whether or not others were answered; None: the
            clients wait for answers.
        own_order: every client asks requests of its own, so that what it asks does not depend on
            how fast others are answered; and goes on until what was asked in time is answered.
        pause: mean seconds between an answer and the next request of a client.
        after_refusal: seconds that a client waits after an answer of 429.
        seed: of what is random.
    """

    port: int
    requests: list[str]
    clients: int = 1
    warm: float = 0.0
    seconds: float = 0.0
    rate: float | None = None
    own_order: bool = False
    pause: float = 0.0
    after_refusal: float = 0.2
    seed: int = 0


@dataclass
class Seen:
    """What came of it.

    Attributes:
        seconds: that were counted.
        times: seconds until each answer, by status.
        spans: with requests of their own: for each answer the number of its request, and when it
            was asked and answered, in seconds since the counting began.
        bodies: some answers, by the number of the request.
        lost: requests that were never answered.
        cpu: seconds that this program computed while it counted.
    """

    seconds: float = 0.0
    times: dict[int, list[float]] = field(default_factory=dict)
    spans: list[tuple[int, float, float]] = field(default_factory=list)
    bodies: dict[int, str] = field(default_factory=dict)
    lost: int = 0
    cpu: float = 0.0


class Client:
    """A kept connection, on which one request at a time is asked."""

    __slots__ = ("asked", "began", "buffer", "need", "number", "request", "socket")

    def __init__(self, number: int, port: int) -> None:
        self.number, self.asked = number, 0
        self.request: int | None = None  # that is asked
        self.began = 0.0
        self.buffer = b""  # what there is of an answer that is not whole
        self.need = 0  # bytes of the answer; 0: its head is not here yet
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def receive(self) -> bytes | None:
        """Return the whole answer; empty: it is not all here; None: the connection has ended."""
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            return None
        if self.buffer:
            data = self.buffer + data
        if not self.need:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                self.need = end + 4 + _length(data, end)
        if not self.need or len(data) < self.need:
            self.buffer = data
            return b""
        self.buffer, self.need = b"", 0
        return data


def _length(data: bytes, end: int) -> int:
    """The bytes of a body, by the head that ends at `end`."""
    for name in _LENGTHS:
        place = data.find(name, 0, end)
        if place >= 0:
            return int(data[place + len(name) : data.index(b"\r", place)])
    raise SystemExit("an answer without Content-Length")


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.seen = plan, Seen()
        self.requests = [request.encode() for request in plan.requests]
        self.random = random.Random(plan.seed)  # noqa: S311
        self.next = self.opened = 0
        self.poll, self.clients = select.epoll(), dict[int, Client]()
        # What is to be done later: when, a number that tells apart what is due together, and what.
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.idle: deque[Client] = deque()
        self.done = False

    def go(self) -> Seen:
        """Ask until the plan is done."""
        plan, first = self.plan, [self._connect() for _ in range(self.plan.clients)]
        self.begin = time.perf_counter() + plan.warm
        self.end = self.begin + plan.seconds
        self._at(self.begin, self._count_from_here)
        self._at(self.end, self._count_to_here)
        if plan.rate is None:
            for client in first:
                self._later(client, self._pause())
        else:
            self.idle.extend(first)
            self.arrivals = self._moments(plan.rate)
            self.due = next(self.arrivals)
            self._arrive()
        stuck, clients, poll = self.end + _STUCK, self.clients, self.poll.poll
        while not self.done:
            for place, _ in poll(max(0.0, self.timers[0][0] - time.perf_counter())):
                client = clients[place]
                answer = client.receive()
                if answer:
                    self._answered(client, answer)
                elif answer is None:
                    self._lost(client)
            now = time.perf_counter()
            while self.timers and self.timers[0][0] <= now:
                heapq.heappop(self.timers)[2]()
            if now > stuck:
                raise SystemExit("the server does not answer")
            if not self.timers:
                self._at(stuck, lambda: None)
        self.seen.seconds = plan.seconds
        return self.seen

    def _connect(self) -> Client:
        client = Client(self.opened, self.plan.port)
        self.opened += 1
        self.clients[client.socket.fileno()] = client
        self.poll.register(client.socket, select.EPOLLIN)
        return client

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (moment, next(self.numbers), action))

    def _count_from_here(self) -> None:
        self.seen.cpu = -time.process_time()

    def _count_to_here(self) -> None:
        self.seen.cpu += time.process_time()
        if not self.plan.own_order:
            self.done = True

    # Clients that wait for their answers.

    def _pause(self) -> float:
        return self.random.expovariate(1 / self.plan.pause) if self.plan.pause else 0.0

    def _later(self, client: Client, seconds: float) -> None:
        if seconds:
            self._at(time.perf_counter() + seconds, lambda: self._ask(client))
        else:
            self._ask(client)

    def _ask(self, client: Client) -> None:
        if self.plan.own_order:
            request = client.number + client.asked * self.plan.clients
        else:
            request = self.next
            self.next += 1
        self._send(client, request % len(self.requests), time.perf_counter())

    def _send(self, client: Client, request: int, began: float) -> None:
        """Send a request, whose time counts from `began`."""
        client.request, client.began = request, began
        client.asked += 1
        data = self.requests[request]
        if client.socket.send(data) < len(data):
            raise SystemExit("the server does not read")

    # Requests that come at random moments.

    def _moments(self, rate: float) -> Iterator[float]:
        moment = time.perf_counter()
        while True:
            moment += self.random.expovariate(rate)
            yield moment

    def _arrive(self) -> None:
        """Ask what is due now, each on a connection that is free."""
        now = time.perf_counter()
        if now > self.end:
            return
        while self.due <= now:
            client = self.idle.popleft() if self.idle else self._connect()
            self._send(client, self.next % len(self.requests), self.due)
            self.next += 1
            self.due = next(self.arrivals)
        self._at(self.due, self._arrive)

    # Answers.

    def _answered(self, client: Client, answer: bytes) -> None:
        """Note an answer, and let its client go on."""
        now, request, began = time.perf_counter(), client.request, client.began
        if request is None:
            raise SystemExit("an answer that nobody asked for")
        client.request, status, plan = None, int(answer[9:12]), self.plan
        if self.begin <= now <= self.end:
            self.seen.times.setdefault(status, []).append(now - began)
        if request < _KEPT and request not in self.seen.bodies:
            body = answer.partition(b"\r\n\r\n")[2]
            self.seen.bodies[request] = body.decode("utf-8", "replace")
        if plan.own_order:
            self.seen.spans.append((request, began - self.begin, now - self.begin))
            if now > self.end and not self._in_time():
                self.done = True
        if plan.rate is not None:
            self.idle.append(client)
        else:
            self._later(client, plan.after_refusal if status == 429 else self._pause())

    def _in_time(self) -> bool:
        """Whether anything that was asked in time has no answer yet."""
        return any(c.request is not None and c.began <= self.end for c in self.clients.values())

    def _lost(self, client: Client) -> None:
        """Note a connection that ended, be it in the middle of a request."""
        del self.clients[client.socket.fileno()]
        client.socket.close()
        if client.request is not None:
            self.seen.lost += 1
            self.done = True
        elif client in self.idle:
            self.idle.remove(client)


def main() -> None:
    """Read a plan, carry it out, and print what was seen."""
    given: Any = json.load(sys.stdin)
    run = Run(Plan(**given))
    gc.disable()
    json.dump(asdict(run.go()), sys.stdout)


if __name__ == "__main__":
    main()
