from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError, OverloadedError, ValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pretune.bundle.bundle import Bundle
from pretune.inference.embed import Embedder
from pretune.serving.app import build_app
from pretune.serving.metrics import PrometheusMetrics
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal
from tests.serving.in_process import InProcess
from tests.serving.live_server import wait_until
from tests.serving.test_openai_api import JSON

TEXT = "the good film"
PROMPT = "Once upon a time"
QUESTION = {"question": "good film?", "context": "the bad film was a good film from China."}


@pytest.fixture
def ask(address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the client of a model, as people make it: from its address alone."""
    # The client asks nobody where the Hub must not be asked, not even a server beside it.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda name: InferenceClient(model=f"{address}/models/{name}", token="none")  # noqa: S106


def post(client: TestClient, name: str, status: int = 200, **body: Any) -> Any:
    response = client.post(f"/models/{name}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def predicted(models: InProcess, name: str, row: Any, top_k: int | None = None) -> dict[str, Any]:
    predictor = models.held(name).predictor
    (answer,) = predictor.predict(predictor.records([row]))
    return answer.top(top_k).to_dict()


# Each task with the client of the Hub.


def test_text_classification(ask: Any, models: InProcess) -> None:
    right = predicted(models, "labels", TEXT)["scores"]
    labels = ask("labels").text_classification(TEXT)
    assert {own.label: own.score for own in labels} == pytest.approx(right)
    assert labels[0].score == max(right.values())
    assert len(ask("labels").text_classification(TEXT, top_k=1)) == 1
    (only,) = ask("score").text_classification(TEXT, function_to_apply="none")
    assert only.score == pytest.approx(predicted(models, "score", TEXT)["score"])
    with pytest.raises(HfHubHTTPError, match="softmax"):
        ask("labels").text_classification(TEXT, function_to_apply="sigmoid")


def test_token_classification(ask: Any, models: InProcess) -> None:
    text = "good film x un good film bad"
    right = predicted(models, "tags", text)["entities"]
    assert right
    entities = ask("tags").token_classification(text, aggregation_strategy="simple")
    for entity, own in zip(entities, right, strict=True):
        assert (entity.entity_group, entity.word) == (own["type"], own["text"])
        assert (entity.start, entity.end) == (own["start"], own["end"])
        assert text[entity.start : entity.end] == entity.word
        assert entity.score == pytest.approx(own["score"])
    ignored = ask("tags").token_classification(text, ignore_labels=[right[0]["type"]])
    assert all(entity.entity_group != right[0]["type"] for entity in ignored)
    with pytest.raises(HfHubHTTPError, match="aggregation_strategy"):
        ask("tags").token_classification(text, aggregation_strategy="none")


def test_question_answering(ask: Any, models: InProcess) -> None:
    right = predicted(models, "answers", QUESTION, 3)
    answer = ask("answers").question_answering(**QUESTION)
    assert (answer.answer, answer.start, answer.end) == (
        right["answer"],
        right["start"],
        right["end"],
    )
    assert answer.score == pytest.approx(right["score"])
    assert QUESTION["context"][answer.start : answer.end] == answer.answer
    best = ask("answers").question_answering(**QUESTION, top_k=3)
    assert [own.answer for own in best] == [own["answer"] for own in right["candidates"]]


def test_no_answer_is_empty_unless_there_has_to_be_one(ask: Any, models: InProcess) -> None:
    right = predicted(models, "unanswerable", QUESTION, 2)
    assert right["start"] is None, "this model should find no answer"
    none = ask("unanswerable").question_answering(**QUESTION)
    assert (none.answer, none.start, none.end) == ("", 0, 0)
    span = ask("unanswerable").question_answering(**QUESTION, handle_impossible_answer=False)
    assert span.answer == right["candidates"][0]["answer"]


def test_fill_mask(ask: Any) -> None:
    found = ask("fill").fill_mask("the [MASK] film", top_k=3)
    assert len(found) == 3
    assert found[0].score >= found[1].score
    assert found[0].sequence == f"the {found[0].token_str} film".replace(" ##", "")
    among = ask("fill").fill_mask("the [MASK] film", targets=["good", "bad"])
    assert {own.token_str for own in among} == {"good", "bad"}
    with pytest.raises(HfHubHTTPError, match="MASK"):
        ask("fill").fill_mask("the film")


def test_zero_shot_by_masks_is_the_mean_of_the_masks(ask: Any) -> None:
    labels = ["good", "bad", "unaffable"]  # of one token, and of several
    found = ask("fill").zero_shot_classification(TEXT, labels, hypothesis_template="film {}.")
    assert {own.label for own in found} == {*labels}
    assert sum(own.score for own in found) == pytest.approx(1)
    # By hand, of the labels of one token.
    by_hand = ask("fill").fill_mask(f"{TEXT} film [MASK].", targets=["good", "bad"])
    ratio = {own.token_str: own.score for own in by_hand}
    scores = {own.label: own.score for own in found}
    assert scores["good"] / scores["bad"] == pytest.approx(ratio["good"] / ratio["bad"], rel=1e-4)


def test_zero_shot_by_a_writer_is_the_likelihood_of_each_label(
    ask: Any, bundles: dict[str, Bundle]
) -> None:
    from transformers import GPT2LMHeadModel

    labels = ["small", "good film"]
    found = ask("lm").zero_shot_classification(PROMPT, labels)
    model = GPT2LMHeadModel.from_pretrained(bundles["lm"].folder).eval()
    tokenizer = bundles["lm"].tokenizer
    before = tokenizer.encode([f"{PROMPT}\nThis example is"])[0].ids
    totals = []
    for label in labels:
        ids = tokenizer.encode([f"{PROMPT}\nThis example is {label}."])[0].ids
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = range(len(before), len(ids))
        totals.append(sum(float(scores[place - 1, ids[place]]) for place in places))
    weights = [math.exp(total - max(totals)) for total in totals]
    right = {label: w / sum(weights) for label, w in zip(labels, weights, strict=True)}
    assert {own.label: own.score for own in found} == pytest.approx(right, rel=1e-3)


def test_feature_extraction_and_similarity(ask: Any, bundles: dict[str, Bundle]) -> None:
    embedder = Embedder(bundles["bare"], device="cpu")
    right = embedder.embed([TEXT])
    np.testing.assert_allclose(ask("bare").feature_extraction(TEXT), right, atol=1e-6)
    # A classifier gives features where it is asked for them by name.
    address = ask("labels").model + "/pipeline/feature-extraction"
    features = InferenceClient(model=address).feature_extraction(TEXT, normalize=True)
    assert features.shape == (1, 32)
    assert np.linalg.norm(features) == pytest.approx(1, abs=1e-5)
    unit = Embedder(bundles["bare"], device="cpu", normalize=True).embed([TEXT, "bad"])
    alike = ask("bare").sentence_similarity(TEXT, ["bad", TEXT])
    assert alike == pytest.approx([float(unit[0] @ unit[1]), 1], abs=1e-5)


def test_translation(ask: Any, models: InProcess) -> None:
    right = predicted(models, "translate", TEXT)["translation"]
    assert ask("translate").translation(TEXT).translation_text == right


def test_text_generation(ask: Any) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 8, "seed": 3, "temperature": 0.8}
    whole = ask("lm").text_generation(PROMPT, **asked)
    assert whole.startswith(PROMPT)
    text = ask("lm").text_generation(PROMPT, **asked, return_full_text=False)
    assert whole == PROMPT + text
    told = ask("lm").text_generation(PROMPT, **asked, details=True)
    assert told.generated_text == whole
    assert told.details.finish_reason in ("length", "eos_token")
    assert told.details.generated_tokens == len(told.details.tokens)
    assert told.details.seed == 3
    client = ask("lm")
    pieces = list(client.text_generation(PROMPT, **asked, stream=True))
    assert "".join(pieces) == text
    events = list(client.text_generation(PROMPT, **asked, stream=True, details=True))
    assert events[-1].generated_text == whole
    assert events[-1].details.generated_tokens == len(events) == told.details.generated_tokens


def test_text_generation_is_greedy_unless_asked(ask: Any) -> None:
    texts = {ask("lm").text_generation(PROMPT, max_new_tokens=6) for _ in range(3)}
    assert len(texts) == 1
    drawn = {ask("lm").text_generation(PROMPT, max_new_tokens=12, do_sample=True) for _ in range(3)}
    assert len(drawn) > 1


def test_chat_at_the_address_of_a_model_and_of_the_server(ask: Any, address: str) -> None:
    messages = [{"role": "user", "content": TEXT}]
    asked: dict[str, Any] = {"max_tokens": 4, "seed": 1}
    for base in (f"{address}/models/chat", address, f"{address}/v1"):
        reply = InferenceClient(base_url=base, api_key="none").chat_completion(messages, **asked)
        assert reply.model == "chat"
        assert reply.choices[0].message.role == "assistant"
    client = ask("chat")
    stream = client.chat.completions.create(messages, stream=True, **asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == reply.choices[0].message.content


def test_the_server_itself_is_the_first_model(
    ask: Any, address: str, bundles: dict[str, Bundle]
) -> None:
    right = Embedder(bundles["bare"], device="cpu").embed([TEXT])
    features = InferenceClient(model=address).feature_extraction(TEXT)
    np.testing.assert_allclose(features, right, atol=1e-6)


def test_health_and_info_of_an_endpoint(ask: Any, address: str) -> None:
    client = InferenceClient(model=f"{address}/models/labels", provider="hf-inference")
    assert client.health_check()
    assert client.get_endpoint_info()["model_id"] == "labels"


# Batches, which the client does not send.


def test_batches_are_lists_of_answers(client: TestClient) -> None:
    assert [len(own) for own in post(client, "labels", inputs=[TEXT, "bad"])] == [3, 3]
    assert len(post(client, "tags", inputs=[TEXT, "bad"])) == 2
    assert [set(own) for own in post(client, "answers", inputs=[QUESTION] * 2)] == [
        {"answer", "score", "start", "end"}
    ] * 2
    two = post(client, "fill", inputs=["[MASK] film", "[MASK] un [MASK]"])
    assert isinstance(two[0][0], dict)
    assert isinstance(two[1][0][0], dict)
    assert len(post(client, "lm", inputs=[PROMPT, "The"], parameters={"max_new_tokens": 2})) == 2
    pair = {"text": TEXT, "text_pair": "bad"}
    assert len(post(client, "alike", inputs=[pair])[0]) == 2


def test_a_task_without_a_pipeline_answers_as_predict_does(
    client: TestClient, models: InProcess
) -> None:
    row = {"context": TEXT, "choices": ["good", "bad"]}
    (answer,) = post(client, "choices", inputs=row)
    assert answer["choice"] == predicted(models, "choices", row)["choice"]


def test_a_model_is_described(client: TestClient) -> None:
    described = client.get("/models/tags").json()
    assert described["id"] == "tags"
    assert described["pipeline_tag"] == "token-classification"
    assert client.get("/models/nothing").status_code == 404


# Mistakes.


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("labels", {}),
        ("labels", {"inputs": 5}),
        ("labels", {"inputs": {"a": 1}}),
        ("labels", {"inputs": [[1]]}),
        ("labels", {"inputs": TEXT, "parameters": 5}),
        ("labels", {"inputs": TEXT, "parameters": {"top_k": 0}}),
        ("labels", {"inputs": TEXT, "parameters": {"surprise": 1}}),
        ("tags", {"inputs": [5]}),
        ("tags", {"inputs": TEXT, "parameters": {"stride": 5}}),
        ("answers", {"inputs": TEXT}),
        ("answers", {"inputs": {"question": "x"}}),
        ("answers", {"inputs": {"question": 5, "context": "x"}}),
        ("answers", {"inputs": QUESTION, "parameters": {"max_answer_len": 5}}),
        ("answers", {"inputs": QUESTION, "parameters": {"top_k": 10_000}}),
        ("fill", {"inputs": "no gap"}),
        ("fill", {"inputs": "[MASK]", "parameters": {"targets": "good"}}),
        ("fill", {"inputs": TEXT, "parameters": {"candidate_labels": []}}),
        (
            "fill",
            {"inputs": TEXT, "parameters": {"candidate_labels": ["good"], "multi_label": True}},
        ),
        (
            "lm",
            {"inputs": TEXT, "parameters": {"candidate_labels": ["a"], "hypothesis_template": "x"}},
        ),
        ("labels", {"inputs": TEXT, "parameters": {"candidate_labels": ["a", "b"]}}),
        ("lm", {"inputs": TEXT, "parameters": {"watermark": True}}),
        ("lm", {"inputs": TEXT, "parameters": {"grammar": {"type": "json"}}}),
        ("lm", {"inputs": TEXT, "parameters": {"max_new_tokens": 10**6}}),
        ("lm", {"inputs": TEXT, "parameters": {"stop": ["x"] * 17}}),
        ("lm", {"inputs": TEXT, "parameters": {"temperature": 0}}),
        ("lm", {"inputs": [TEXT, TEXT], "stream": True}),
        ("translate", {"inputs": TEXT, "parameters": {"src_lang": "de"}}),
        ("bare", {"inputs": TEXT, "dimensions": "many"}),
        ("choices", {"inputs": {"context": TEXT}}),
    ],
)
def test_a_wrong_value_is_422(client: TestClient, name: str, body: dict[str, Any]) -> None:
    answer = post(client, name, 422, **body)
    assert answer["error"].strip()
    assert answer["error_type"] == "validation"


@pytest.mark.parametrize("name", ["lm", "fill"])
def test_a_text_that_is_read_with_each_label_counts_each_time(
    client: TestClient, name: str
) -> None:
    labels = [f"label {number}" for number in range(500)]
    body = {"inputs": "x" * 20_000, "parameters": {"candidate_labels": labels}}
    assert "'inputs' is read 500 times" in post(client, name, 413, **body)["error"]


def test_the_client_raises_its_own_errors(ask: Any, models: InProcess) -> None:
    with pytest.raises(ValidationError, match="watermark"):
        ask("lm").text_generation("x", watermark=True)
    models.fails_after = 0
    models.failure = Refusal(429, "queue_full", "Model is overloaded", retry_after=1)
    with pytest.raises(OverloadedError, match="overloaded"):
        ask("lm").text_generation("x")
    with pytest.raises(HfHubHTTPError, match="404"):
        ask("nothing").text_classification("x")


def test_an_error_in_mid_stream_is_the_last_event(ask: Any, models: InProcess) -> None:
    models.fails_after = 2
    client = ask("lm")
    stream = client.text_generation("x", max_new_tokens=9, stream=True)
    with pytest.raises(OverloadedError, match="The worker died"):
        list(stream)


def test_a_client_that_hangs_up_ends_its_continuation(ask: Any, models: InProcess) -> None:
    client = ask("lm")
    next(iter(client.text_generation("x", max_new_tokens=300, stream=True)))
    client.close()
    wait_until(lambda: models.closed == 1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_any_field_breaks_it(client: TestClient, data: st.DataObject) -> None:
    from pretune.serving import hub_api

    schemas = {
        "labels": hub_api.ClassificationParameters,
        "tags": hub_api.TagParameters,
        "answers": hub_api.AnswerParameters,
        "fill": hub_api.FillParameters,
        "lm": hub_api.GenerationParameters,
        "translate": hub_api.TranslationParameters,
    }
    name = data.draw(st.sampled_from([*schemas]))
    fields = st.sampled_from([*schemas[name].model_fields, *schemas[name].refused])
    inputs = data.draw(st.just(QUESTION if name == "answers" else "un [MASK]") | JSON)
    parameters = data.draw(st.dictionaries(fields, JSON, max_size=2) | JSON)
    if isinstance(parameters, dict) and name == "lm":
        parameters = {**parameters, "max_new_tokens": 2}
    body = {"inputs": inputs, "parameters": parameters}
    response = client.post(f"/models/{name}", json=body)
    assert response.status_code in (200, 413, 422), response.text
    if response.status_code != 200:
        assert response.json()["error"]


def test_a_gap_in_the_text_is_not_the_label(client: TestClient) -> None:
    asked = {"candidate_labels": ["good", "bad"], "hypothesis_template": "film {}."}
    found = post(client, "fill", inputs="[MASK] un", parameters=asked)
    scores = {own["label"]: own["score"] for own in found}
    targets = {"targets": ["good", "bad"]}
    gaps = post(client, "fill", inputs="[MASK] un film [MASK].", parameters=targets)
    right = {own["token_str"]: own["score"] for own in gaps[-1]}
    assert scores["good"] / scores["bad"] == pytest.approx(right["good"] / right["bad"], rel=1e-4)


def test_the_first_model_needs_a_key_where_the_page_at_its_path_does_not(
    models: InProcess, limits: ServeOptions, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("a-key-that-is-long-enough\n", encoding="utf-8")
    keyed = replace(limits, api_key_file=tmp_path / "keys")
    app = build_app(models, keyed, PrometheusMetrics())  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert client.post("/", json={"inputs": TEXT}).status_code == 401
        known = {"Authorization": "Bearer a-key-that-is-long-enough"}
        assert client.post("/", json={"inputs": TEXT}, headers=known).status_code == 200
        assert client.get("/docs").status_code == 200
