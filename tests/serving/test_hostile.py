"""What people send who mean harm, to all paths and all kinds of models.

The service is whole but for processes: its worker is a thread.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.bundle.bundle import save
from pretune.serving.bodies import Body
from pretune.serving.openapi import OPERATIONS, Operation, worked_examples
from pretune.serving.options import ServeOptions
from pretune.serving.service import Service
from tests.serving.live_server import LiveServer, Reply, wait_until
from tests.serving.thread_worker import thread_workers
from tests.tasks.every_task import CASES

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
#: One of each kind of value.
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 1.5, -1e308, "", "x", "\x00", "\ud7ff", [], [[]], [None], [1, "x"]),
    *({}, {"": {}}, {"a": [1]}),
)
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


class ServiceServer(LiveServer):
    """A server whose service lives in the same loop, as in `pretune serve`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        super().__init__(service, service.options)

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        with thread_workers():
            await self.service.start()
        await self._server.serve(sockets=[self._socket])
        await self.service.close(0)


@pytest.fixture(scope="module")
def hostile(
    classifier: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceServer]:
    models = {"tiny": classifier}
    for name in (*MODELS, "causal_lm"):
        folder = models["lm" if name == "causal_lm" else name] = tmp_path_factory.mktemp(name)
        save(CASES[name].bundle(tiny_folder, tmp_path_factory.mktemp("made")), folder)
    models["bare"] = tiny_folder
    named = tuple((name, str(folder)) for name, folder in models.items())
    options = ServeOptions(named, device="cpu", precision="float32", max_body=1_500_000)
    with closing(ServiceServer(Service(options))) as live:
        yield live
        # After all of it, it answers what it should, and holds nothing.
        (answer,) = live.post({"inputs": ["the good film"]}).json["answers"]
        assert answer["text"] == "the good film"
        wait_until(lambda: live.app.state.traffic.held == 0)  # it answers before it forgets


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
def test_each_of_these_requests_works(
    hostile: ServiceServer, path: str, body: dict[str, Any]
) -> None:
    assert hostile.request("POST", path, body).status == 200


def check(reply: Reply) -> None:
    """What is asked wrongly is the client's mistake, in a sentence."""
    assert reply.status == 200 or 400 <= reply.status < 500, reply.body
    if reply.status != 200:
        assert 10 < len(reply.message) < 1000


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_stands_in_a_field(hostile: ServiceServer, data: st.DataObject) -> None:
    path, body = data.draw(st.sampled_from(CALLS))
    place = data.draw(st.sampled_from([*places(body)]))
    check(hostile.request("POST", path, replaced(body, place, data.draw(anything))))


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), CALLS, ids=NAMES)
@settings(max_examples=200)
@given(data=st.data())
def test_whatever_stands_in_a_field_of_each_request(
    hostile: ServiceServer, path: str, body: dict[str, Any], data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from([*places(body)]))
    check(hostile.request("POST", path, replaced(body, place, data.draw(anything))))


def fields_of(schema: Any) -> set[str]:
    """The names of all fields of a body, those that it refuses too."""
    if isinstance(schema, type) and issubclass(schema, Body):
        inner = [
            fields_of(part)
            for field in schema.model_fields.values()
            for part in parts_of(field.annotation)
        ]
        return {*schema.model_fields, *schema.refused}.union(*inner)
    return {*schema["properties"]} if isinstance(schema, dict) else set()


def parts_of(kind: Any) -> list[Any]:
    """A type, or those that it is made of."""
    return [kind, *(part for own in get_args(kind) for part in parts_of(own))]


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=[own.path for own in OPERATIONS])
def test_every_field_of_the_schemas_with_every_kind_of_value(
    hostile: ServiceServer, operation: Operation
) -> None:
    fields, asked = fields_of(operation.schema), 0
    assert fields
    for served in hostile.service.models():
        for path, body in worked_examples(served):
            if path != operation.path:
                continue
            path = path.replace("{model}", served.name)
            # At the top, and within the objects of the body.
            spots = [place for place in places(body) if isinstance(at(body, place), dict)]
            for place in spots:
                for name in sorted(fields):
                    for value in VALUES:
                        changed = {**at(body, place), name: value}
                        check(hostile.request("POST", path, replaced(body, place, changed)))
                        asked += 1
    assert asked > 50 or operation.path == "/rerank"


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 1_000_000, 400),
        (b'{"inputs":' * 100_000, 400),
        (json.dumps({"inputs": ["x" * 1_000_000]}).encode(), 413),
        (json.dumps({"inputs": ["x"] * 10_000}).encode(), 413),
        (json.dumps({"inputs": [["x"] * 100_000]}).encode(), 422),
        (json.dumps({"inputs": [{"x" * 9 + str(i): "" for i in range(20_000)}]}).encode(), 422),
        (b'{"inputs": ["x"], "top_k": 1e400}', 400),
        (b'{"inputs": ["x"], "top_k": ' + b"9" * 5000 + b"}", 400),
        (b'{"inputs": ["\\ud800"]}', 400),
        (b"\x1f\x8b\x08\x00" + b"\0" * 99, 400),
        (b"", 400),
        (b'{"inputs": ["\xff"]}', 400),
        (b'{"inputs": [NaN]}', 400),
        (b'{"inputs": ["x"], "inputs": ["y"]}', 400),
    ],
)
def test_large_deep_and_broken(hostile: ServiceServer, body: bytes, status: int) -> None:
    reply = hostile.request("POST", "/v1/predict", body)
    assert reply.status == status
    assert reply.message.endswith(".")


MANY = ["x"] * 10_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/explain", {"inputs": MANY}),
        ("/v1/completions", {"model": "lm", "prompt": MANY}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 10_000}),
        ("/v1/embeddings", {"input": MANY}),
        ("/embed", {"inputs": MANY}),
        ("/predict", {"inputs": [["x"]] * 10_000}),
        ("/tokenize", {"inputs": MANY}),
        ("/similarity", {"inputs": {"source_sentence": "x", "sentences": MANY}}),
        ("/models/tiny", {"inputs": MANY}),
        (
            "/v2/models/tiny/infer",
            {"inputs": [{"name": "text", "shape": [10_000], "datatype": "BYTES", "data": MANY}]},
        ),
    ],
)
def test_ten_thousand_of_them(hostile: ServiceServer, path: str, body: dict[str, Any]) -> None:
    reply = hostile.request("POST", path, body)
    assert reply.status in (400, 413, 422)
    told = ("0,0", "limit", "take turns")  # of messages, the second is wrong already
    assert any(words in reply.message for words in told), reply.message


def test_as_many_characters_as_are_allowed_are_read_and_cut(hostile: ServiceServer) -> None:
    reply = hostile.post({"inputs": ["x " * 100_000]})
    assert reply.status == 200
    assert hostile.post({"inputs": ["x " * 100_001]}).status == 413


def test_many_requests_at_once_on_one_connection(hostile: ServiceServer) -> None:
    """Each is answered, and in its order, or the connection ends: none is mixed up."""
    bodies = [json.dumps({"inputs": [f"film {i}"]}).encode() for i in range(200)]
    head = b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: %d\r\n\r\n"
    asked = b"".join(head % len(body) + body for body in bodies)
    with hostile.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(asked,), daemon=True)
        sender.start()
        received = b""
        while received.count(b"HTTP/1.1 ") < 200 or not received.endswith(b"}"):
            part = connection.recv(1 << 16)
            assert part
            received += part
        sender.join(20)
    texts = [own.split(b'"')[0] for own in received.split(b'"text":"')[1:]]
    assert texts == [b"film %d" % i for i in range(200)]


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/page/../../../etc/passwd", "/page/%2e%2e/%2e%2e/options.py", "//x",
     "/models/..%2f..%2fetc%2fpasswd", "/%00", "/v1/predict%0d%0aX-Evil: 1"],
)  # fmt: skip
def test_no_path_leads_out(hostile: ServiceServer, path: str) -> None:
    for method in ("GET", "POST"):
        reply = hostile.request(method, path.replace(" ", "%20"), {"inputs": ["x"]})
        assert reply.status in (400, 404, 405, 422)
        assert b"root:" not in reply.body
        assert "x-evil" not in reply.headers
