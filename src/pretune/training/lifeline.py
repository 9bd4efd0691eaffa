"""Notices at once that another process of a run has died, and ends this one with a sentence.

An exchange of gradients does not: NCCL waits for ten minutes or more, and gloo raises an error that
names a socket. So each process keeps a connection of its own to the first one, over which nothing
is sent until it ends. The operating system closes it however a process ends; that of a machine that
lost its power is given up after some twenty seconds (TCP keepalive).

Whoever ends tells the first process why: it is done; or it failed, with the error's text. Then the
first process lets the others end, and is the only one to speak. If it is the first process that
died, the second one speaks.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from pretune.errors import PretuneError, RunError
from pretune.text.spoken_language import labelled, tr
from pretune.text.terminal import for_terminal
from pretune.training.stop import Interrupted

#: Seconds that a process waits for the first one to take over its error, or for the news of a death
#: where an exchange has failed; and that the first one gives itself to fail in the same way.
GRACE = 3.0
#: Seconds for all processes to connect.
CONNECTING = 60.0
#: Exit codes, as the command line has them: after a mistake that can be mended, and after others.
_MISTAKE, _FAILURE = 2, 1
#: Names that torchrun gives to the file where it looks for what to report.
_LAUNCHER_FILE = "TORCHELASTIC_ERROR_FILE"
#: Words in the errors of an exchange whose other side is gone.
_LOST = (
    *("connection closed", "connection was likely closed", "connection reset", "broken pipe"),
    *("connection refused", "connectfullmesh", "socket", "timed out", "timeout", "nccl"),
)

Gather = Callable[[Any], list[Any]]


class Lifeline:
    """Context of a process that trains with others; in it, all of them live or end.

    Args:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
        gather: collects a value from each process, in the order of their ranks.
        end: ends this process with an exit code, whatever its other threads wait for.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        local_rank: int,
        gather: Gather,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._gather, self._end = gather, end
        self._hosts: list[str] = []
        self._peers: dict[int, socket.socket] = {}  # the first process: all others; else: the first
        self._done: set[int] = set()  # those that said so
        self._error: str | None = None  # the text of what this process fails with
        self._leaving = threading.Event()  # the main thread is ending by itself
        self._over = threading.Event()  # nothing is watched any more
        self._answered = threading.Event()  # the first process knows that error, or is gone
        self._taken = False  # and says it
        self._watch: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Connect with the first process; where that is not possible, nobody watches.

        All processes must enter together.
        """
        listener = _listener() if self.rank == 0 else None
        place = None
        if listener is not None:
            place = (_own_address(), listener.getsockname()[1], secrets.token_hex(16))
        answers = self._gather((platform.node(), place))
        self._hosts = [host for host, _ in answers]
        host, port, token = answers[0][1]
        try:
            if listener is not None:
                self._accept(listener, token)
            else:
                self._connect(host, port, token)
            connected = True
        except OSError:
            connected = False
        if not all(self._gather(connected)):
            self._close()
            return self
        self._watch = threading.Thread(target=self._look, name="lifeline", daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        lost = None
        if isinstance(error, RuntimeError) and _is_lost(error):
            # Somebody has died, which the other thread learns too, and then ends this process.
            self._over.wait(GRACE)
            error = lost = RunError(
                f"the processes of this run lost each other ({_first_line(error)})",
                "Look at the network between the machines; --resume auto goes on from the last "
                "checkpoint.",
            )
        self._error = None if error is None else str(error)[:10_000]
        self._leaving.set()
        self._tell(error)
        self._over.set()
        if self._watch is not None:
            self._watch.join(GRACE)
        self._close()
        if lost is not None:
            raise lost from None

    # Beginning

    def _accept(self, listener: socket.socket, token: str) -> None:
        """Take the connection of every other process; whoever lacks the token is sent away."""
        with listener:
            deadline = time.monotonic() + CONNECTING
            while len(self._peers) < self.size - 1:
                listener.settimeout(max(deadline - time.monotonic(), 0.01))
                peer, _ = listener.accept()
                peer.settimeout(CONNECTING)
                try:
                    hello = json.loads(_read_line(peer))
                    rank = hello["rank"]
                    if not secrets.compare_digest(str(hello["token"]), token):
                        raise ValueError
                    if rank in self._peers or rank not in range(1, self.size):
                        raise ValueError
                except (OSError, ValueError, TypeError, KeyError):
                    peer.close()
                    continue
                _keep_alive(peer)
                self._peers[rank] = peer

    def _connect(self, host: str, port: int, token: str) -> None:
        peer = socket.create_connection((host, port), timeout=CONNECTING)
        _keep_alive(peer)
        self._peers[0] = peer
        _send(peer, {"rank": self.rank, "token": token})

    # Watching, in a thread

    def _look(self) -> None:
        """Wait for a message, or for a connection that ends, until this process leaves."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in list(self._peers.items()):
                peer.settimeout(CONNECTING)
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._over.is_set():
                for key, _ in selector.select(timeout=0.2):
                    assert isinstance(key.fileobj, socket.socket)  # noqa: S101 - for mypy
                    message = _read(key.fileobj)
                    if message is None or message.get("done"):
                        selector.unregister(key.fileobj)
                    self._heard(key.data, message)

    def _heard(self, rank: int, message: dict[str, Any] | None) -> None:
        """Act on the message of a process, or on its end (None)."""
        if message is not None and message.get("done"):
            self._done.add(rank)
        elif self.rank > 0 and self._leaving.is_set():
            # The first process says what this one is about to say, or nobody does.
            if message is not None:
                self._taken = bool(message.get("taken")) or message.get("text") == self._error
            self._answered.set()
        elif rank in self._done or self._over.is_set():
            return
        elif self.rank == 0:
            self._let_all_end(rank, message)
        elif message is None:
            # The first process died: nobody told. The next one speaks, and one on each machine
            # where neither of them is.
            speaks = self.rank == 1 or (
                self.local_rank == 0 and self._hosts[self.rank] not in self._hosts[:2]
            )
            self._finish(self._sentence(0, None) if speaks else None, _FAILURE)
        else:
            self._finish(None, int(message.get("code", _FAILURE)), report=message.get("text"))

    def _let_all_end(self, rank: int, message: dict[str, Any] | None) -> None:
        """The first process: tell the others that one of them has ended, and end too."""
        text = None if message is None else message.get("text")
        code = _FAILURE if message is None else int(message.get("code", _FAILURE))
        sentence = self._sentence(rank, message)
        if message is not None:
            if text is not None:
                _send(self._peers[rank], {"taken": True})
            # What is wrong for one is often wrong for all: then the main thread says it.
            if self._leaving.wait(GRACE):
                return
        for other, peer in self._peers.items():
            if other not in {rank, *self._done}:
                _send(peer, {"rank": rank, "text": sentence, "code": code})
        self._finish(sentence, code)

    def _sentence(self, rank: int, message: dict[str, Any] | None) -> str:
        which = f"process {rank} of {self.size} ({self._hosts[rank]})"
        if message is None:
            return (
                f"{which} died, so the others end too\n  Was it killed, or its memory full? "
                "--resume auto goes on from the last checkpoint."
            )
        if message.get("text") is None:
            return f"{which} failed with the error above, so the others end too"
        return f"{which}: {message['text']}"

    def _finish(self, sentence: str | None, code: int, report: str | None = None) -> None:
        """End this process at once: its main thread may wait for the dead one for ever."""
        if self._over.is_set() or self._leaving.is_set():
            return
        self._over.set()
        _tell_launcher(sentence or report)
        with suppress(OSError, ValueError):
            if sentence is not None:
                shown = "\n  ".join(tr(line) for line in sentence.split("\n  "))
                print(for_terminal(labelled(tr("error"), shown)), file=sys.stderr)
            sys.stderr.flush()
            sys.stdout.flush()
        self._end(code)

    # Ending

    def _tell(self, error: BaseException | None) -> None:
        """Tell the others how this process ends."""
        failed = isinstance(error, Exception | KeyboardInterrupt)
        if not failed or isinstance(error, Interrupted):  # a signal stops all of them together
            message: dict[str, Any] = {"done": True}
        elif isinstance(error, PretuneError):
            message = {"text": self._error, "code": _MISTAKE}
        else:
            message = {"text": None, "code": _FAILURE}
        for rank, peer in self._peers.items():
            if rank not in self._done:
                _send(peer, message)
        if self.rank > 0 and isinstance(error, PretuneError) and self._peers:
            self._answered.wait(2 * GRACE)
            error.told = self._taken
        if "done" not in message:
            _tell_launcher(self._error or type(error).__name__)

    def _close(self) -> None:
        for peer in self._peers.values():
            with suppress(OSError):
                peer.close()


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("", 0))
    listener.listen(128)
    return listener


def _own_address() -> str:
    """How the other machines of the run reach this one."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))  # sends nothing; it only chooses an interface
            own = str(probe.getsockname()[0])
        except OSError:
            return master
    # The master is this very machine: the others know it by that name.
    return master if own.startswith("127.") else own


def _keep_alive(peer: socket.socket) -> None:
    """Let the system ask whether the other machine is still there."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(peer: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):
        peer.sendall(json.dumps(message).encode() + b"\n")


def _read(peer: socket.socket) -> dict[str, Any] | None:
    """Read a message; None: the other side has ended."""
    try:
        message = json.loads(_read_line(peer))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _read_line(peer: socket.socket, limit: int = 1 << 16) -> bytes:
    """Read up to the end of a line; fewer bytes where the other side has ended."""
    line = b""
    while not line.endswith(b"\n") and len(line) < limit:
        piece = peer.recv(1)
        if not piece:
            break
        line += piece
    return line


def _is_lost(error: BaseException) -> bool:
    """Whether an error is that of an exchange whose other side is gone."""
    text = str(error).lower()
    return any(word in text for word in _LOST)


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _tell_launcher(text: str | None) -> None:
    """Write the file that torchrun shows at its end, if it gave one."""
    path = os.environ.get(_LAUNCHER_FILE)
    if not path or text is None:
        return
    more = {"py_callstack": text, "timestamp": str(int(time.time()))}
    with suppress(OSError), open(path, "x", encoding="utf-8") as file:
        json.dump({"message": {"message": text, "extraInfo": more}}, file)
