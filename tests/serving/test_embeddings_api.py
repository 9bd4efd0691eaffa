from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pretune.bundle.bundle import Bundle
from pretune.inference.embed import Embedder
from pretune.serving.refusal import Refusal
from tests.serving.in_process import InProcess
from tests.serving.test_openai_api import JSON

TEXT, OTHER = "the good film", "bad film!"


def post(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def error(client: TestClient, path: str, status: int, kind: str, **body: Any) -> str:
    """The sentence of a wrong request, whose error is of a kind of TEI's."""
    answer = post(client, path, status, **body)
    assert set(answer) == {"error", "error_type"}
    assert answer["error_type"] == kind
    return str(answer["error"])


def test_embed_gives_a_vector_for_each_text(client: TestClient, bundles: dict[str, Bundle]) -> None:
    right = Embedder(bundles["bare"], device="cpu", normalize=True).embed([TEXT, OTHER])
    np.testing.assert_allclose(post(client, "/embed", inputs=[TEXT, OTHER]), right, atol=1e-6)
    np.testing.assert_allclose(post(client, "/embed", inputs=TEXT), right[:1], atol=1e-6)
    raw = Embedder(bundles["bare"], device="cpu", normalize=False).embed([TEXT])
    np.testing.assert_allclose(post(client, "/embed", inputs=TEXT, normalize=False), raw, atol=1e-6)


def test_similarity_is_the_cosine(client: TestClient, bundles: dict[str, Bundle]) -> None:
    first, second, third = Embedder(bundles["bare"], device="cpu", normalize=True).embed(
        [TEXT, OTHER, "un"]
    )
    inputs = {"source_sentence": TEXT, "sentences": [OTHER, "un"]}
    right = [float(first @ second), float(first @ third)]
    assert post(client, "/similarity", inputs=inputs) == pytest.approx(right, abs=1e-5)


def test_predict_takes_a_text_or_a_batch(client: TestClient, models: InProcess) -> None:
    single = post(client, "/models/labels/predict", inputs=TEXT)
    assert [entry["score"] for entry in single] == sorted(
        (entry["score"] for entry in single), reverse=True
    )
    assert sum(entry["score"] for entry in single) == pytest.approx(1, abs=1e-5)
    assert {entry["label"] for entry in single} == {*(models.model("labels").labels or ())}
    batch = post(client, "/models/labels/predict", inputs=[[TEXT], [OTHER]])
    assert batch[0] == [{**own, "score": pytest.approx(own["score"])} for own in single]
    assert len(batch) == 2
    # Without a name: the first classifier.
    assert post(client, "/predict", inputs=TEXT) == single


def test_predict_takes_pairs(client: TestClient) -> None:
    pair = post(client, "/models/alike/predict", inputs=[TEXT, OTHER])
    assert {entry["label"] for entry in pair} == {"no", "yes"}
    batch = post(client, "/models/alike/predict", inputs=[[TEXT, OTHER], [OTHER, TEXT]])
    assert batch[0] == [{**own, "score": pytest.approx(own["score"])} for own in pair]
    message = error(client, "/models/alike/predict", 422, "Validation", inputs=TEXT)
    assert "sentence1, sentence2" in message


@pytest.mark.parametrize(("name", "squash"), [("labels", "softmax"), ("several", "sigmoid")])
def test_raw_scores_become_the_probabilities(client: TestClient, name: str, squash: str) -> None:
    path = f"/models/{name}/predict"
    raw = {e["label"]: e["score"] for e in post(client, path, inputs=TEXT, raw_scores=True)}
    values = np.array([*raw.values()])
    right = (
        np.exp(values) / np.exp(values).sum() if squash == "softmax" else 1 / (1 + np.exp(-values))
    )
    scores = {e["label"]: e["score"] for e in post(client, path, inputs=TEXT)}
    assert [scores[label] for label in raw] == pytest.approx([*right], abs=1e-5)


def test_rerank_sorts_texts_by_the_sigmoid_of_their_score(
    client: TestClient, models: InProcess
) -> None:
    texts = [OTHER, TEXT, "un film x"]
    predictor = models.held("ranks").predictor
    answers = predictor.predict(predictor.records([["film", text] for text in texts]))
    raw = [answer.to_dict()["score"] for answer in answers]
    ranks = post(client, "/rerank", query="film", texts=texts, return_text=True)
    order = sorted(range(3), key=lambda i: -raw[i])
    assert [rank["index"] for rank in ranks] == order
    assert [rank["text"] for rank in ranks] == [texts[i] for i in order]
    right = [1 / (1 + np.exp(-raw[i])) for i in order]
    assert [rank["score"] for rank in ranks] == pytest.approx(right, abs=1e-5)
    plain = post(client, "/rerank", query="film", texts=texts, raw_scores=True)
    assert [rank["score"] for rank in plain] == pytest.approx([raw[i] for i in order], abs=1e-5)
    assert all("text" not in rank for rank in plain)


def test_rerank_by_two_classes_is_the_probability_of_the_second(client: TestClient) -> None:
    (rank,) = post(client, "/models/alike/rerank", query=TEXT, texts=[OTHER])
    scores = post(client, "/models/alike/predict", inputs=[TEXT, OTHER])
    yes = next(entry["score"] for entry in scores if entry["label"] == "yes")
    assert rank["score"] == pytest.approx(yes, abs=1e-5)


def test_tokenize_tells_ids_texts_and_places(
    client: TestClient, bundles: dict[str, Bundle]
) -> None:
    (tokens,) = post(client, "/tokenize", inputs="The good film!")
    encoded = bundles["bare"].tokenizer.engine.encode("The good film!")
    assert [token["id"] for token in tokens] == encoded.ids
    assert [token["special"] for token in tokens] == [True, *[False] * 4, True]
    assert tokens[0] == {"id": 2, "text": "[CLS]", "special": True, "start": None, "stop": None}
    # As TEI has it, the text of a token is what stands in the input.
    assert [token["text"] for token in tokens[1:-1]] == ["The", "good", "film", "!"]
    assert (tokens[2]["start"], tokens[2]["stop"]) == (4, 8)
    (bare,) = post(client, "/tokenize", inputs="The good film!", add_special_tokens=False)
    assert len(bare) == 4


def test_info_tells_what_is_served(client: TestClient) -> None:
    info = client.get("/models/labels/info").json()
    assert info["model_id"] == "labels"
    assert info["model_type"]["classifier"]["id2label"]["0"] == "good"
    assert info["max_client_batch_size"] == 2048
    assert client.get("/info").json()["model_type"] == {"embedding": {"pooling": "mean"}}
    assert "reranker" in client.get("/models/ranks/info").json()["model_type"]


def test_health_is_empty_or_unhealthy(client: TestClient, models: InProcess) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/health").content == b""
    models.ready = False
    response = client.get("/health")
    assert response.status_code == 503
    assert response.json() == {"error": "unhealthy", "error_type": "Unhealthy"}


def test_too_many_inputs_are_413(client: TestClient) -> None:
    message = error(client, "/embed", 413, "Validation", inputs=["x"] * 2049)
    assert "2,048" in message
    error(client, "/predict", 413, "Validation", inputs=[["x"]] * 2049)
    error(client, "/rerank", 413, "Validation", query="x", texts=["x"] * 2049)


def test_what_is_too_long_is_413_unless_it_may_be_cut(client: TestClient) -> None:
    long = "film " * 100
    message = error(client, "/embed", 413, "Validation", inputs=long)
    assert message == "`inputs` must have less than 65 tokens."
    assert len(post(client, "/embed", inputs=long, truncate=True)) == 1
    error(client, "/models/labels/predict", 413, "Validation", inputs=long)
    assert post(client, "/models/labels/predict", inputs=long, truncate=True)
    error(client, "/rerank", 413, "Validation", query="x", texts=[long])
    assert post(client, "/rerank", query="x", texts=[long], truncate=True)


def test_a_query_that_is_read_with_each_text_counts_each_time(client: TestClient) -> None:
    query, texts = "x" * 20_000, ["y"] * 500
    message = error(client, "/rerank", 413, "Validation", query=query, texts=texts, truncate=True)
    assert "'query' is read 500 times, which is 10,000,000 characters" in message
    assert "--max-body" in message
    assert len(post(client, "/rerank", query=query, texts=texts[:2], truncate=True)) == 2


def test_another_kind_of_model_is_424(client: TestClient) -> None:
    error(client, "/models/tags/predict", 424, "Backend", inputs=TEXT)
    error(client, "/models/labels/rerank", 424, "Backend", query=TEXT, texts=[OTHER])


def test_a_full_queue_is_429(
    client: TestClient, models: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*args: Any, **more: Any) -> Any:
        raise Refusal(429, "queue_full", "Model is overloaded", limit="max_queue", retry_after=1)

    monkeypatch.setattr(models, "embed", full)
    response = client.post("/embed", json={"inputs": TEXT})
    assert response.status_code == 429
    assert response.json() == {"error": "Model is overloaded", "error_type": "Overloaded"}
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {}),
        ("/embed", {"inputs": 5}),
        ("/embed", {"inputs": []}),
        ("/embed", {"inputs": [[1, 2]]}),
        ("/embed", {"inputs": TEXT, "normalize": "yes"}),
        ("/embed", {"inputs": TEXT, "dimensions": 33}),
        ("/embed", {"inputs": TEXT, "prompt_name": "query"}),
        ("/embed", {"inputs": TEXT, "truncation_direction": "left"}),
        ("/predict", {"inputs": []}),
        ("/predict", {"inputs": [["a", "b", "c"]]}),
        ("/predict", {"inputs": [[]]}),
        ("/predict", {"inputs": ["a", "b", "c"]}),
        ("/rerank", {"query": "x", "texts": []}),
        ("/rerank", {"query": ["x"], "texts": ["y"]}),
        ("/rerank", {"texts": ["y"]}),
        ("/tokenize", {"inputs": None}),
        ("/similarity", {"inputs": {"source_sentence": "x"}}),
    ],
)
def test_a_wrong_value_is_422(client: TestClient, path: str, body: dict[str, Any]) -> None:
    assert error(client, path, 422, "Validation", **body).strip()


def test_unknown_fields_are_passed_over(client: TestClient) -> None:
    assert post(client, "/embed", inputs=TEXT, surprise=5)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_any_field_breaks_it(client: TestClient, data: st.DataObject) -> None:
    from pretune.serving import embeddings_api as api

    schemas = {
        "/embed": api.EmbedRequest,
        "/predict": api.PredictRequest,
        "/rerank": api.RerankRequest,
        "/similarity": api.SimilarityRequest,
        "/tokenize": api.TokenizeRequest,
    }
    path = data.draw(st.sampled_from([*schemas]))
    working: dict[str, Any] = {"inputs": TEXT, "query": "x", "texts": ["y"]}
    fields = st.sampled_from([*schemas[path].model_fields])
    changes = data.draw(st.dictionaries(fields, JSON, min_size=1, max_size=2))
    response = client.post(path, json={**working, **changes})
    assert response.status_code in (200, 413, 422), response.text
    if response.status_code != 200:
        assert response.json()["error"]
