"""`pretune serve`: the process from its start to its last answer."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import json
import multiprocessing
import os
import shlex
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from typing_extensions import override

from pretune.errors import RunError
from pretune.serving.app import build_app
from pretune.serving.connection import bounded_http
from pretune.serving.examples import example_for
from pretune.serving.jobs import Served
from pretune.serving.metrics import PrometheusMetrics
from pretune.serving.middleware import Traffic
from pretune.serving.options import ServeOptions
from pretune.serving.service import Service

#: Seconds that a connection may wait for its next request: more than proxies keep theirs.
_KEEP_ALIVE = 75
#: A program that a signal ended exits with this plus the signal's number.
_STOPPED_BY = 128
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
#: Prints the first key of a file as `api_keys` reads it, so that the key itself is not shown: not
#: of a comment, and without a byte-order mark or a carriage return (byte by byte: LC_ALL=C).
_FIRST_KEY = "LC_ALL=C sed -n '/^[^[:graph:]]*#/d;s/[^[:graph:]]//g;/./{p;q;}'"

Say = Callable[[str], None]


def serve(options: ServeOptions, *, ready: Say, say: Say) -> None:
    """Serve models until SIGTERM or SIGINT.

    Then no request is taken any more, and what is running is finished, for at most `drain` seconds.
    A second signal ends everything at once.

    Args:
        options: what to serve, and how.
        ready: told one line when requests are answered.
        say: told what whoever runs the server should know.

    Raises:
        RunError: the address cannot be used, or others could reach it without a key.
        PretuneError: a model cannot be loaded.
    """
    check_address(options, say)
    with listening_socket(options) as listener:
        asyncio.run(_serve(options, listener, ready, say))


def check_address(options: ServeOptions, say: Say) -> None:
    """Refuse to answer other machines without a key, unless that is meant."""
    if options.api_key_file is not None or _is_loopback(options.host):
        return
    reached = f"{options.host or 'every address'} can be reached from other machines"
    if not options.insecure:
        raise RunError(
            f"{reached}, where anybody could ask the models",
            "Give keys (--api-key-file FILE), or allow it where the network is yours: --insecure.",
        )
    say(f"{reached}: anybody there can ask the models, as --insecure allows")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def listening_socket(options: ServeOptions) -> Iterator[socket.socket]:
    """A socket at the address: that it is taken is told before any model is loaded."""
    host, port = options.host, options.port
    try:
        (family, *_, address), *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        raise RunError(
            f"--host '{host}' is no address", "Use 127.0.0.1, or an address of this machine."
        ) from None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise _not_bound(options, error) from None
        yield listener


def _not_bound(options: ServeOptions, error: OSError) -> RunError:
    if error.errno == errno.EADDRINUSE:
        return RunError(
            f"port {options.port} of {options.host} is taken",
            "Choose another with --port, or --port 0 for any that is free.",
        )
    if error.errno == errno.EACCES:
        return RunError(
            f"port {options.port} is not for you", "Choose one from 1024 on with --port."
        )
    return RunError(
        f"--host '{options.host}' is no address of this machine ({error.strerror})",
        "Use 127.0.0.1, or 0.0.0.0 for all of its addresses.",
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us: it would end by them and not with 0."""

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(options: ServeOptions, listener: socket.socket, ready: Say, say: Say) -> None:
    stop = asyncio.Event()
    _on_signals(stop)
    metrics = PrometheusMetrics()
    service = Service(options, metrics)
    try:
        app = build_app(service, options, metrics, say=say)
        # Loading takes a while: a signal ends it.
        if not await _unless(stop, service.start()):
            return
        for text in service.notes:
            say(text)
        server = _Server(uvicorn_config(app, options))
        # What is there now stays: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if not serving.done():
            ready(ready_line(options, listener.getsockname()[1], service.models()))
            await asyncio.wait(
                {serving, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
            await _drain(app.state.traffic, options.drain)
        server.should_exit = True
        try:
            await serving
        except OSError as error:  # another process listens there since a moment ago
            raise _not_bound(options, error) from None
    finally:
        gc.unfreeze()
        await service.close(0)


async def _drain(traffic: Traffic, seconds: float) -> None:
    """Take no more requests, and wait for those that run."""
    traffic.draining = True
    if traffic.tasks:
        await asyncio.wait({*traffic.tasks}, timeout=seconds)
    if traffic.tasks:
        traffic.give_up()
        await asyncio.wait({*traffic.tasks}, timeout=1)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do some work, or give it up when `stop` is set; return whether it was done."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if working.done():
        working.result()
        return True
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return False


def _on_signals(stop: asyncio.Event) -> None:
    """Set `stop` at the first SIGTERM or SIGINT, and end at once at the second."""

    def stopped(number: int) -> None:
        if not stop.is_set():
            stop.set()
            return
        for process in multiprocessing.active_children():
            process.kill()
        os._exit(_STOPPED_BY + number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped, number)


def uvicorn_config(app: Starlette, options: ServeOptions) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=bounded_http(options),
        loop="asyncio",
        ws="none",
        lifespan="off",
        # What there is to say, the application says.
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=2,
    )


def ready_line(options: ServeOptions, port: int, models: Sequence[Served]) -> str:
    """One line for whoever started the server: where the page is, and a command to try."""
    host = _ANY_ADDRESS.get(options.host, options.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    what = models[0].name if len(models) == 1 else f"{len(models)} models"
    path, body = example_for(models[0])
    curl = ["curl", url + path, "-H", "Content-Type: application/json"]
    command = shlex.join([*curl, "-d", json.dumps(body, ensure_ascii=False)])
    if options.api_key_file is not None:
        file = shlex.quote(str(options.api_key_file))
        command += f' -H "Authorization: Bearer $({_FIRST_KEY} {file})"'
    return f"serving {what}: {url}/ (API: {url}/docs); try: {command}"
