"""`pretune serve` as a process: its line, its answers, and what people send who mean harm."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pretune.bundle.bundle import save
from pretune.cli.app import app as commands
from tests.serving.live_server import wait_until
from tests.serving.served_process import Process, alive, children_of
from tests.tasks.every_task import CASES

TEXTS = ["the good film", "bad 好 film?", "x", ""]
#: A request that works, of each path.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/predict": {"model": "tiny", "inputs": ["the good film"], "top_k": 1},
    "/v1/explain": {"model": "tiny", "inputs": ["the good film"]},
}
OTHERS: dict[str, dict[str, Any]] = {
    "answer": {"inputs": [{"question": "who?", "context": "the good film"}]},
    "tag": {"inputs": [{"tokens": ["good", "film"]}]},
    "choose": {"inputs": [{"context": "the film", "choices": ["good", "bad"]}]},
    "mask_lm": {"inputs": ["the [MASK] film"]},
    "translate": {"inputs": ["the good film"]},
}

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["", " ", "\x00", "../../etc/passwd", "{{7*7}}", "(a+)+$", "\ufeff", "x" * 300]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def process(
    classifier: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    named = []
    for name in OTHERS:
        folder = tmp_path_factory.mktemp(name)
        save(CASES[name].bundle(tiny_folder, tmp_path_factory.mktemp("made")), folder)
        named += ["--name", f"{name}={folder}"]
    more = ("--name", f"bare={tiny_folder}", "--max-body", 1_500_000)
    served = Process(classifier, *named, *more)
    yield served
    # After all of it, it answers what it should, and ends as it should.
    answers = served.request("POST", "/v1/predict", BODIES["/v1/predict"]).json["answers"]
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
        f"serving 7 models: http://127.0.0.1:{process.port}/ (API: http://"
    )
    assert process.line.count("\n") == 1


def test_a_body_of_100_megabytes_takes_no_memory(process: Process) -> None:
    before = process.peak
    with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
        )
        for _ in range(100):
            connection.sendall(b"[" * 1_000_000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(100):
            connection.sendall(b"f4240\r\n" + b"[" * 1_000_000 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert process.request("GET", "/readyz").status == 200
    assert process.peak - before < 16_000


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a value, as the keys that lead there."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, number))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


CALLS = [
    *BODIES.items(),
    *(("/v1/predict", {"model": name, **body}) for name, body in OTHERS.items()),
    *(("/v1/explain", {"model": name, **body}) for name, body in OTHERS.items()),
]


@pytest.mark.parametrize(("path", "body"), CALLS, ids=[f"{p}-{b['model']}" for p, b in CALLS])
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_stands_in_a_field(
    process: Process, path: str, body: dict[str, Any], data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from([*places(body)]))
    reply = process.request("POST", path, replaced(body, place, data.draw(anything)))
    assert reply.status == 200 or 400 <= reply.status < 500, reply.body
    if reply.status != 200:
        sentence = reply.message
        assert sentence.endswith((".", "?"))
        assert len(sentence) < 1000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 1_000_000, 400),
        (b'{"inputs":' * 100_000, 400),
        (json.dumps({"inputs": ["x" * 1_000_000]}).encode(), 413),
        (json.dumps({"inputs": ["x"] * 10_000}).encode(), 413),
        (b'{"inputs": ["\xff"]}', 400),
        (b'{"inputs": [NaN]}', 400),
        (b'{"inputs": ["x"], "inputs": ["y"]}', 400),
    ],
)
def test_large_deep_and_broken(process: Process, body: bytes, status: int) -> None:
    reply = process.request("POST", "/v1/predict", body)
    assert reply.status == status
    assert reply.message.endswith(".")


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/page/../../../etc/passwd", "/page/%2e%2e/%2e%2e/options.py", "//x",
     "/models/..%2f..%2fetc%2fpasswd", "/%00", "/v1/predict%0d%0aX-Evil: 1"],
)  # fmt: skip
def test_no_path_leads_out(process: Process, path: str) -> None:
    for method in ("GET", "POST"):
        reply = process.request(method, path.replace(" ", "%20"), {"inputs": ["x"]})
        assert reply.status in (400, 404, 405, 422)
        assert b"root:" not in reply.body
        assert "x-evil" not in reply.headers
