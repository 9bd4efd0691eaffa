"""`pretune serve` as a process: its line, its answers, its memory, its end."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretune.bundle.bundle import save
from pretune.cli.app import app as commands
from tests.serving.live_server import wait_until
from tests.serving.served_process import Process, alive, children_of
from tests.tasks.every_task import CASES

TEXTS = ["the good film", "bad 好 film?", "x", ""]
#: The models that are served besides the classifier: cases of every_task.
MODELS = ("answer", "instruct")


@pytest.fixture(scope="module")
def process(
    classifier: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    named = []
    for name in MODELS:
        folder = tmp_path_factory.mktemp(name)
        save(CASES[name].bundle(tiny_folder, tmp_path_factory.mktemp("made")), folder)
        named += ["--name", f"{name}={folder}"]
    writer = tmp_path_factory.mktemp("lm")
    save(CASES["causal_lm"].bundle(tiny_folder, tmp_path_factory.mktemp("made")), writer)
    named += ["--name", f"lm={writer}"]
    more = ("--name", f"bare={tiny_folder}", "--max-body", 1_500_000)
    served = Process(classifier, *named, *more)
    yield served
    # After all of it, it answers what it should, and ends as it should.
    answers = served.request("POST", "/v1/predict", {"inputs": ["the good film"]}).json["answers"]
    assert answers[0]["text"] == "the good film"
    children = children_of(served.process.pid)
    assert children
    assert served.end() == (0, "")
    wait_until(lambda: not any(map(alive, children)))


def test_answers_as_the_command_does(process: Process, classifier: Path) -> None:
    asked = CliRunner().invoke(commands, ["predict", str(classifier), *TEXTS, "--json"])
    printed = [json.loads(line) for line in asked.stdout.splitlines()]
    answers = process.request("POST", "/v1/predict", {"inputs": TEXTS}).json["answers"]
    assert len(answers) == len(printed) == len(TEXTS)
    for answer, wanted in zip(answers, printed, strict=True):
        scores, wanted_scores = answer.pop("scores"), wanted.pop("scores")
        assert scores == pytest.approx(wanted_scores, abs=1e-5)
        assert answer.pop("score", None) == pytest.approx(wanted.pop("score", None), abs=1e-5)
        assert answer == wanted


def test_the_printed_command_works(process: Process) -> None:
    command = process.line.split("; try: ")[1]
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert json.loads(done.stdout)["model"] == "tiny", done.stderr
    assert process.line.startswith(
        f"serving 5 models: http://127.0.0.1:{process.port}/ (API: http://"
    )
    assert process.line.count("\n") == 1


def test_a_body_of_100_megabytes_takes_no_memory(process: Process) -> None:
    before = process.peak
    with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 100000000\r\n\r\n"
        )
        for _ in range(100):
            connection.sendall(b"[" * 1_000_000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(100):
            connection.sendall(b"f4240\r\n" + b"[" * 1_000_000 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert process.request("GET", "/readyz").status == 200
    assert process.peak - before < 16_000


def test_what_is_large_or_deep_takes_little_memory(process: Process) -> None:
    large: list[tuple[bytes, int]] = [
        (b"[" * 1_000_000, 400),
        (json.dumps({"inputs": ["x" * 1_000_000]}).encode(), 413),
        (json.dumps({"inputs": [["x"] * 180_000]}).encode(), 422),
        (b'{"inputs": [' + b"1," * 190_000 + b"1]}", 413),
    ]
    for body, status in large * 5:  # what is kept for reuse is there then
        assert process.request("POST", "/v1/predict", body).status == status
    before = process.peak
    for body, status in large * 5:
        assert process.request("POST", "/v1/predict", body).status == status
    assert process.peak - before < 16_000


def test_who_hangs_up_in_a_stream_frees_the_place(process: Process) -> None:
    body = {"model": "lm", "prompt": "the", "max_tokens": 4000, "stream": True, "temperature": 0}
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
        )
        received = b""
        while b"data: " not in received:
            received += connection.recv(1000)
    wait_until(lambda: "pretune_queue_length 0.0" in metrics(process), 60)
    (written,) = re.findall(r'generated_tokens_total\{model="lm"\} (\d+)', metrics(process))
    assert int(written) < 3000


def metrics(process: Process) -> str:
    return process.request("GET", "/metrics").body.decode()
