from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from pretune.bundle.bundle import Bundle
from pretune.inference.embed import Embedder
from tests.serving.in_process import InProcess
from tests.serving.test_openai_api import JSON

TEXTS = ["the good film", "bad film! 好"]
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
def api(address: str) -> Any:
    client = triton.InferenceServerClient(address.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, texts: list[str], *, binary: bool = True) -> Any:
    array = np.array([text.encode() for text in texts], dtype=np.object_)
    made = triton.InferInput(name, [len(texts)], "BYTES")
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def predicted(models: InProcess, name: str, rows: list[Any]) -> list[dict[str, Any]]:
    predictor = models.held(name).predictor
    return [own.top(None).to_dict() for own in predictor.predict(predictor.records(rows))]


def texts_of(array: Any) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else item for item in array.tolist()]


def test_what_triton_has_beyond_the_protocol_is_named(api: Any, client: TestClient) -> None:
    for version in ("", "1"):
        with pytest.raises(InferenceServerException, match="/v2/models/labels") as caught:
            api.get_model_config("labels", version)
        assert "configuration" in caught.value.message()
    with pytest.raises(InferenceServerException, match="/metrics"):
        api.get_inference_statistics("labels")
    for path in ("nothing/config", "labels/x"):
        error = client.get(f"/v2/models/{path}").json()["error"]
        assert f"There is no model '{path}' here" in error


def test_health_and_metadata(api: Any, models: InProcess) -> None:
    assert api.is_server_live()
    assert api.is_server_ready()
    assert api.is_model_ready("labels")
    assert api.is_model_ready("labels", "1")
    assert not api.is_model_ready("labels", "2")
    assert not api.is_model_ready("nothing")
    assert api.get_server_metadata()["name"] == "pretune"
    assert "binary_tensor_data" in api.get_server_metadata()["extensions"]
    metadata = api.get_model_metadata("alike")
    assert metadata["versions"] == ["1"]
    assert [own["name"] for own in metadata["inputs"]] == ["sentence1", "sentence2"]
    assert {own["datatype"] for own in metadata["inputs"]} == {"BYTES"}
    scores = next(own for own in metadata["outputs"] if own["name"] == "scores")
    assert (scores["datatype"], scores["shape"]) == ("FP32", [-1, 2])
    assert "labels" in [own["name"] for own in api.get_model_repository_index()]
    models.ready = False
    assert not api.is_server_ready()
    assert not api.is_model_ready("labels")
    assert api.is_server_live()


@pytest.mark.parametrize("binary", [True, False])
def test_a_classifier_by_binary_tensors_and_by_json(
    api: Any, models: InProcess, binary: bool
) -> None:
    right = predicted(models, "labels", TEXTS)
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("label", "scores", "json")
    ]
    result = api.infer(
        "labels", [tensor("text", TEXTS, binary=binary)], outputs=wanted, request_id="mine"
    )
    assert texts_of(result.as_numpy("label")) == [own["label"] for own in right]
    scores = [[*own["scores"].values()] for own in right]
    np.testing.assert_allclose(result.as_numpy("scores"), scores, atol=1e-6)
    assert result.as_numpy("score") is None, "it was not asked for"
    whole = [json.loads(text) for text in texts_of(result.as_numpy("json"))]
    assert [own["label"] for own in whole] == [own["label"] for own in right]
    assert [own["text"] for own in whole] == TEXTS
    response = result.get_response()
    assert response["id"] == "mine"
    assert (response["model_name"], response["model_version"]) == ("labels", "1")


def test_without_outputs_there_are_all_of_them_as_bytes(api: Any, models: InProcess) -> None:
    result = api.infer("labels", [tensor("text", TEXTS)], model_version="1")
    named = [own["name"] for own in result.get_response()["outputs"]]
    assert named == ["label", "score", "scores", "json"]
    best = [own["score"] for own in predicted(models, "labels", TEXTS)]
    np.testing.assert_allclose(result.as_numpy("score"), best, atol=1e-6)


def test_pairs_are_two_tensors(api: Any, models: InProcess) -> None:
    result = api.infer("ranks", [tensor("sentence1", TEXTS), tensor("sentence2", TEXTS[::-1])])
    rows = [list(pair) for pair in zip(TEXTS, TEXTS[::-1], strict=True)]
    right = [own["score"] for own in predicted(models, "ranks", rows)]
    np.testing.assert_allclose(result.as_numpy("score"), right, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["several", "score", "choices", "tags", "answers", "fill", "translate"]
)
def test_every_task_answers(api: Any, models: InProcess, name: str) -> None:
    values = {"choices": "good|bad", "text": "un [MASK]", "question": "film?", "context": TEXTS[0]}
    columns = models.model(name).inputs
    row = {column: values.get(column, TEXTS[0]) for column in columns}
    result = api.infer(name, [tensor(column, [text]) for column, text in row.items()])
    (right,) = predicted(models, name, [row])
    (whole,) = [json.loads(text) for text in texts_of(result.as_numpy("json"))]
    assert {key: whole[key] for key in right} == json.loads(json.dumps(right))
    for output in result.get_response()["outputs"]:
        array = result.as_numpy(output["name"])
        assert array.shape[0] == 1
        if output["name"] in ("answer", "translation"):
            assert texts_of(array) == [right[output["name"]]]
        elif output["name"] == "choice":
            assert array.tolist() == [right["choice"]]


def test_embeddings(api: Any, bundles: dict[str, Bundle]) -> None:
    result = api.infer("bare", [tensor("text", TEXTS)])
    right = Embedder(bundles["bare"], device="cpu").embed(TEXTS)
    np.testing.assert_allclose(result.as_numpy("embedding"), right, atol=1e-6)


def test_text_generation(api: Any, models: InProcess) -> None:
    from pretune.decoding.decoding import Decoding

    generator = models.held("lm").generator
    greedy = Decoding(max_new_tokens=5, temperature=0, top_p=1.0)
    right = [own.text for own in generator.generate(TEXTS, greedy)]
    result = api.infer("lm", [tensor("prompt", TEXTS)], parameters={"max_tokens": 5})
    assert texts_of(result.as_numpy("text")) == right


def post(client: TestClient, body: Any, status: int = 200, name: str = "labels") -> Any:
    response = client.post(f"/v2/models/{name}/infer", json=body)
    assert response.status_code == status, response.text
    return response.json()


def given_text(**changes: Any) -> dict[str, Any]:
    own = {"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS}
    return {"inputs": [{**own, **changes}]}


def test_json_alone_is_answered_by_json_alone(client: TestClient) -> None:
    answer = post(client, given_text())
    assert [own["name"] for own in answer["outputs"]] == ["label", "score", "scores", "json"]
    scores = answer["outputs"][2]
    assert scores["shape"] == [2, 3]
    assert len(scores["data"]) == 6
    assert post(client, given_text(shape=[2, 1], data=[[text] for text in TEXTS])) == answer


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": "text"},
        given_text(name="words"),
        given_text(shape=[3]),
        given_text(shape=[-1, -2]),
        given_text(shape=None),
        given_text(shape=[0], data=[]),
        given_text(datatype="INT64"),
        given_text(datatype=None),
        given_text(data=[1, 2]),
        given_text(data="text"),
        given_text(data=None),
        {"inputs": [*given_text()["inputs"], *given_text()["inputs"]]},
        {**given_text(), "outputs": [{"name": "nothing"}]},
        {**given_text(), "outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        {**given_text(), "outputs": [{"name": "scores", "parameters": {"classification": 2}}]},
        {**given_text(), "parameters": {"sequence_id": 5}},
        {**given_text(), "parameters": {"surprise": 5}},
        {**given_text(), "parameters": {"top_k": 10**6}},
        {**given_text(), "id": 5},
        given_text(parameters={"binary_data_size": 5}),
    ],
)
def test_a_wrong_request_is_400(client: TestClient, body: Any) -> None:
    answer = post(client, body, 400)
    assert set(answer) == {"error"}
    assert answer["error"]


def test_the_client_raises_what_is_wrong(api: Any) -> None:
    with pytest.raises(InferenceServerException, match="words"):
        api.infer("labels", [tensor("words", TEXTS)])
    with pytest.raises(InferenceServerException, match="There is no model"):
        api.get_model_metadata("nothing")
    with pytest.raises(InferenceServerException, match="version"):
        api.infer("labels", [tensor("text", TEXTS)], model_version="7")


@pytest.mark.parametrize(
    ("raw", "size", "length"),
    [
        (b"\x09\x00\x00\x00abc", 7, None),  # an element longer than its tensor
        (b"\x03\x00", 2, None),  # half a length
        (b"\x03\x00\x00\x00abc" * 2, 7, None),  # more bytes than tensors
        (b"\x03\x00\x00\x00abc", 70, None),  # fewer bytes than said
        (b"\x03\x00\x00\x00ab\xff", 7, None),  # no UTF-8
        (b"\x03\x00\x00\x00abc", True, None),
        (b"\x03\x00\x00\x00abc", 7, "9" * 30),
        (b"\x03\x00\x00\x00abc", 7, "-5"),
        (b"\x03\x00\x00\x00abc", 7, "0" * 5000),  # more digits than Python reads
        (b"\x03\x00\x00\x00abc", 7, "3"),  # ends inside the JSON
    ],
)
def test_wrong_bytes_are_400(client: TestClient, raw: bytes, size: Any, length: str | None) -> None:
    one = given_text(shape=[1], data=None, parameters={"binary_data_size": size})
    head = json.dumps(one).encode()
    response = client.post(
        "/v2/models/labels/infer",
        content=head + raw,
        headers={LENGTH: length or str(len(head)), "Content-Type": "application/octet-stream"},
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]


def test_bytes_behind_the_json_are_the_texts(client: TestClient) -> None:
    raw = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in TEXTS)
    one = given_text(data=None, parameters={"binary_data_size": len(raw)})
    head = json.dumps(one).encode()
    headers = {LENGTH: str(len(head))}
    response = client.post("/v2/models/labels/infer", content=head + raw, headers=headers)
    assert response.json() == post(client, given_text())


def test_compressed_bodies_are_refused(client: TestClient) -> None:
    headers = {"Content-Encoding": "gzip"}
    response = client.post("/v2/models/labels/infer", content=b"x", headers=headers)
    assert response.status_code == 415


def test_too_many_elements_are_413(client: TestClient) -> None:
    body = given_text(shape=[2049], data=["x"] * 2049)
    assert "2,048" in post(client, body, 413)["error"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_any_field_breaks_it(client: TestClient, data: st.DataObject) -> None:
    fields = st.sampled_from(["name", "shape", "datatype", "parameters", "data"])
    body = given_text(**data.draw(st.dictionaries(fields, JSON, max_size=2)))
    more = st.sampled_from(["id", "parameters", "outputs", "inputs"])
    body |= data.draw(st.dictionaries(more, JSON, max_size=1))
    response = client.post("/v2/models/labels/infer", json=body)
    assert response.status_code in (200, 400, 413), response.text
    assert response.status_code == 200 or response.json()["error"]
