"""An application on a real socket, in a thread, and a client that says exactly what it is told."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette

from pretune.serving.app import build_app
from pretune.serving.metrics import PrometheusMetrics
from pretune.serving.options import ServeOptions
from pretune.serving.server import uvicorn_config


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        error = self.json["error"]
        return str(error["message"] if isinstance(error, dict) else error)


def reply_of(response: http.client.HTTPResponse) -> Reply:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


class LiveServer:
    """Serves as `pretune serve` does, but for signals and processes."""

    def __init__(self, service: Any, options: ServeOptions) -> None:
        self.said: list[str] = []
        self.app: Starlette = build_app(service, options, PrometheusMetrics(), say=self.said.append)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(uvicorn_config(self.app, options))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        # Who still writes, or does not read, is not waited for.
        self._server.force_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 20,
    ) -> Reply:
        """Ask over a connection of its own; what is no `bytes` is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        given = {"Content-Type": "application/json"} if body is not None else {}
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, content, {**given, **(headers or {})})
            return reply_of(connection.getresponse())
        finally:
            connection.close()

    def post(self, body: Any, path: str = "/v1/predict", **more: Any) -> Reply:
        return self.request("POST", path, body, **more)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, sent: bytes) -> bytes:
        """Send bytes, and return all that comes back until the server closes."""
        with self.connect() as connection:
            connection.sendall(sent)
            return rest_of(connection)

    def is_well(self) -> bool:
        return self.request("GET", "/healthz").status == 200


def rest_of(connection: socket.socket) -> bytes:
    """All that still comes; a reset is an end, too."""
    received = b""
    try:
        while part := connection.recv(1 << 16):
            received += part
    except ConnectionResetError:
        pass
    return received


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def some_options(**changes: Any) -> ServeOptions:
    return replace(ServeOptions((("tiny", "tiny"),)), **changes)
