"""`pretune serve` as a process: its line, its answers, and what people send who mean harm."""

from __future__ import annotations

import copy
import json
import re
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
#: A request that works, of each path and each kind of model.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/predict", {"model": "tiny", "inputs": ["the good film"], "top_k": 1}),
    *(
        ("/v1/predict", {"model": model, "inputs": [value]})
        for model, value in {
            "answer": {"question": "who?", "context": "the good film"},
            "tag": {"tokens": ["good", "film"]},
            "choose": {"context": "the film", "choices": ["good", "bad"]},
            "mask_lm": "the [MASK] film",
            "translate": "the good film",
        }.items()
    ),
    ("/v1/explain", {"model": "tiny", "inputs": ["the good film"]}),
    ("/v1/explain", {"model": "tag", "inputs": [{"tokens": ["good", "film"]}]}),
    (
        "/v1/completions",
        {
            "model": "lm",
            "prompt": ["the"],
            "max_tokens": 2,
            "n": 1,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 1,
            "stop": ["x"],
            "logprobs": 1,
            "echo": False,
            "stream": False,
            "presence_penalty": 0.0,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "model": "instruct",
            "messages": [{"role": "user", "content": "the film?"}],
            "max_tokens": 2,
            "n": 1,
            "temperature": 0.5,
            "logprobs": True,
            "top_logprobs": 2,
            "stream": False,
            "stream_options": None,
        },
    ),
    (
        "/v1/embeddings",
        {"model": "bare", "input": ["the"], "encoding_format": "float", "dimensions": 8},
    ),
    ("/embed", {"inputs": ["the film"], "normalize": True, "truncate": True}),
    ("/similarity", {"inputs": {"source_sentence": "the", "sentences": ["good", "bad"]}}),
    ("/predict", {"inputs": ["the film"], "raw_scores": False, "truncate": True}),
    ("/tokenize", {"inputs": ["the film"], "add_special_tokens": True}),
    ("/models/tiny", {"inputs": "the film", "parameters": {"top_k": 1}}),
    ("/models/mask_lm", {"inputs": "the [MASK]", "parameters": {"top_k": 1, "targets": ["good"]}}),
    ("/models/tag", {"inputs": "good film", "parameters": {"aggregation_strategy": "simple"}}),
    ("/models/answer", {"inputs": {"question": "who?", "context": "the film"}}),
    ("/models/lm", {"inputs": "the", "parameters": {"max_new_tokens": 2, "temperature": 0.5}}),
    (
        "/v2/models/tiny/infer",
        {
            "id": "1",
            "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["the"]}],
            "outputs": [{"name": "label"}],
        },
    ),
]
NAMES = [f"{path}-{body.get('model', '')}" for path, body in CALLS]
#: The models that are served besides the classifier: cases of every_task.
MODELS = ("answer", "tag", "choose", "mask_lm", "translate", "instruct")

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
        f"serving 9 models: http://127.0.0.1:{process.port}/ (API: http://"
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


def test_who_hangs_up_in_a_stream_frees_the_place(process: Process) -> None:
    body = {"model": "lm", "prompt": "the", "max_tokens": 4000, "stream": True, "temperature": 0}
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
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


@pytest.mark.parametrize(("path", "body"), CALLS, ids=NAMES)
def test_each_of_these_requests_works(process: Process, path: str, body: dict[str, Any]) -> None:
    assert process.request("POST", path, body).status == 200


@pytest.mark.parametrize(("path", "body"), CALLS, ids=NAMES)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_stands_in_a_field(
    process: Process, path: str, body: dict[str, Any], data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from([*places(body)]))
    reply = process.request("POST", path, replaced(body, place, data.draw(anything)))
    assert reply.status == 200 or 400 <= reply.status < 500, reply.body
    if reply.status != 200:
        assert 10 < len(reply.message) < 1000


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
