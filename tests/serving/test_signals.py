"""How the process ends."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.serving.live_server import Reply, reply_of

#: Serves a model that takes as many seconds as it is asked for, without any process that computes.
SCRIPT = """
import asyncio, sys
from pretune.serving import server
from pretune.serving.jobs import Served
from pretune.serving.options import ServeOptions

class Slow:
    ready, notes = True, ()
    def __init__(self, options, observer): pass
    async def start(self): pass
    async def close(self, drain): pass
    def model(self, name): return self.models()[0]
    def models(self):
        fields = dict(name="m", source="m", task="classify", version=1, model_type="bert")
        fields.update(labels=None, inputs=("text",), abilities=frozenset({"predict"}))
        fields.update(context_length=None, embedding_size=None, parameters=1, loaded=0.0)
        return [Served(**fields)]
    async def predict(self, model, inputs, *, top_k=None):
        print("asked", flush=True)
        await asyncio.sleep(float(inputs[0]))
        return [{"slept": inputs[0]}]

def ready(line):
    print(line, flush=True)

server.Service = Slow
options = ServeOptions((("m", "m"),), port=0, drain=float(sys.argv[1]))
server.serve(options, ready=ready, say=ready)
"""

Start = Callable[[float], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(drain: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(drain)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], seconds: float) -> http.client.HTTPConnection:
    """Ask, and return as soon as the model has been asked."""
    assert process.stdout is not None
    port = int(process.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"inputs": [str(seconds)]})
    connection.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
    assert process.stdout.readline() == "asked\n"
    return connection


def answer(connection: http.client.HTTPConnection) -> Reply:
    return reply_of(connection.getresponse())


def test_what_runs_is_finished(start: Start) -> None:
    process = start(60)
    connection = ask(process, 0.6)
    process.send_signal(signal.SIGTERM)
    assert answer(connection).json["answers"] == [{"slept": "0.6"}]
    assert process.wait(30) == 0


def test_what_takes_longer_is_told(start: Start) -> None:
    process = start(0.1)
    connection = ask(process, 600)
    process.send_signal(signal.SIGINT)
    reply = answer(connection)
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert process.wait(30) == 0


def test_a_second_signal_ends_at_once(start: Start) -> None:
    process = start(600)
    connection = ask(process, 600)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    connection.close()
