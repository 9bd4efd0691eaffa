from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pretune.bundle.bundle import Bundle
from pretune.inference.embed import Embedder
from pretune.serving.bodies import checked
from pretune.serving.openai_api import ChatRequest
from pretune.serving.refusal import Refusal
from tests.serving.in_process import InProcess

PROMPT = "Once upon a time"
HELLO: list[Any] = [{"role": "user", "content": "the good film"}]
#: The bodies of requests that work.
WORKING: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "lm", "prompt": PROMPT, "max_tokens": 3},
    "/v1/chat/completions": {"model": "chat", "messages": HELLO, "max_tokens": 3},
    "/v1/embeddings": {"model": "bare", "input": "good film"},
}


@pytest.fixture
def api(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def theirs_of(bundle: Bundle) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(bundle.folder).eval()


def events_of(response: Any) -> list[Any]:
    """The bodies of server-sent events; `[DONE]` as it is."""
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    bodies = [line.removeprefix("data: ") for line in lines]
    return [body if body == "[DONE]" else json.loads(body) for body in bodies]


def refused(client: TestClient, path: str, body: Any) -> dict[str, Any]:
    """The error object of a wrong request, whose shape is OpenAI's."""
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return dict(error)


# Models.


def test_models_are_listed_and_described(api: openai.OpenAI, bundles: dict[str, Bundle]) -> None:
    listed = api.models.list().data
    assert [model.id for model in listed] == [*bundles]
    assert (listed[0].object, listed[0].created) == ("model", 1_700_000_000)
    assert api.models.retrieve("lm").id == "lm"


def test_an_unknown_model_is_not_found(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        api.completions.create(model="gpt-4o", prompt="x")


# Completions.


def test_a_greedy_completion_is_transformers(
    api: openai.OpenAI, bundles: dict[str, Bundle]
) -> None:
    answer = api.completions.create(model="lm", prompt=PROMPT, max_tokens=12, temperature=0)
    tokenizer = bundles["lm"].tokenizer
    ids = tokenizer.encode([PROMPT])[0].ids
    written = (
        theirs_of(bundles["lm"])
        .generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[
            0, len(ids) :
        ]
        .tolist()
    )
    assert answer.choices[0].text == tokenizer.decode(written)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == len(written)
    assert answer.usage.total_tokens == len(ids) + len(written)
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == ("length" if len(written) == 12 else "stop")


def test_a_stream_has_the_same_text_and_says_why_it_ended(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "lm", "prompt": PROMPT, "max_tokens": 12, "seed": 3}
    whole = api.completions.create(**asked)
    chunks = list(api.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_prompts_and_samples_are_numbered(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "lm", "max_tokens": 4, "seed": 5}
    both = api.completions.create(**asked, prompt=[PROMPT, "The film"], n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    # Each prompt is answered as if it were alone.
    alone = api.completions.create(**asked, prompt="The film", n=2)
    assert [c.text for c in both.choices[2:]] == [c.text for c in alone.choices]
    assert alone.choices[0].text != alone.choices[1].text


def test_a_prompt_may_be_tokens(api: openai.OpenAI, bundles: dict[str, Bundle]) -> None:
    ids = bundles["lm"].tokenizer.encode([PROMPT])[0].ids
    asked: dict[str, Any] = {"model": "lm", "max_tokens": 4, "temperature": 0}
    text = api.completions.create(**asked, prompt=PROMPT).choices[0].text
    assert api.completions.create(**asked, prompt=ids).choices[0].text == text
    assert api.completions.create(**asked, prompt=[ids]).choices[0].text == text


def test_a_seed_gives_the_same_text_again_and_none_does_not(api: openai.OpenAI) -> None:
    def text(**more: Any) -> str:
        return api.completions.create(model="lm", prompt="A", max_tokens=24, **more).choices[0].text

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text() != text()
    assert text(seed=-1) == text(seed=-1)


def test_stop_texts_end_and_are_not_part(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "lm", "prompt": PROMPT, "max_tokens": 24, "seed": 4}
    whole = api.completions.create(**asked).choices[0].text
    stop = whole[5:8]
    cut = api.completions.create(**asked, stop=[stop]).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_echo_repeats_the_prompt(client: TestClient) -> None:
    body = {**WORKING["/v1/completions"], "seed": 1}
    plain = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    echoed = client.post("/v1/completions", json={**body, "echo": True}).json()
    assert echoed["choices"][0]["text"] == PROMPT + plain
    streamed = events_of(
        client.post("/v1/completions", json={**body, "echo": True, "stream": True})
    )
    text = "".join(chunk["choices"][0]["text"] for chunk in streamed[:-1])
    assert text == PROMPT + plain


def test_logprobs_are_those_of_transformers(api: openai.OpenAI, bundles: dict[str, Bundle]) -> None:
    answer = api.completions.create(
        model="lm", prompt=PROMPT, max_tokens=6, seed=2, temperature=0.7, top_p=0.9, logprobs=3
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    # Our own tokens, scored by transformers.
    tokenizer = bundles["lm"].tokenizer
    ids = tokenizer.encode([PROMPT])[0].ids
    model, table = theirs_of(bundles["lm"]), tokenizer.engine.get_vocab()
    for text, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        best = sorted(scores.tolist(), reverse=True)[:3]
        assert sorted(top.values(), reverse=True) == pytest.approx(best, abs=1e-4)
        name = text.replace(" ", "Ġ")
        if name not in table:
            return  # a part of a character: its text does not tell which token it is
        assert logprob == pytest.approx(float(scores[table[name]]), abs=1e-4)
        ids.append(table[name])
    assert told.text_offset is not None
    assert told.text_offset[:2] == [0, len(told.tokens[0])]


def test_a_banned_token_is_not_written(api: openai.OpenAI, bundles: dict[str, Bundle]) -> None:
    asked: dict[str, Any] = {"model": "lm", "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    first = api.completions.create(**asked, logprobs=1).choices[0].logprobs
    assert first is not None
    assert first.tokens is not None
    token = bundles["lm"].tokenizer.engine.token_to_id(first.tokens[0].replace(" ", "Ġ"))
    other = api.completions.create(**asked, logprobs=1, logit_bias={str(token): -100})
    assert other.choices[0].logprobs is not None
    assert other.choices[0].logprobs.tokens != first.tokens


# Chat.


def test_a_reply_is_a_message_of_the_assistant(api: openai.OpenAI, models: InProcess) -> None:
    reply = api.chat.completions.create(model="chat", messages=HELLO, max_tokens=5, seed=1)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 5
    # Other ways to write the same messages.
    parts = [{"type": "text", "text": "the good "}, {"type": "text", "text": "film"}]
    asked: dict[str, Any] = {"model": "chat", "seed": 1, "max_completion_tokens": 5}
    other = api.chat.completions.create(messages=[{"role": "user", "content": parts}], **asked)  # type: ignore[call-overload]
    assert other.choices[0].message.content == reply.choices[0].message.content


def test_a_chat_stream_begins_with_the_role_and_ends_with_the_reason(client: TestClient) -> None:
    body = {**WORKING["/v1/chat/completions"], "seed": 1, "stream": True}
    *chunks, done = events_of(client.post("/v1/chat/completions", json=body))
    assert done == "[DONE]"
    first, *middle, last = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert last["delta"] == {}
    assert last["finish_reason"] in ("stop", "length")
    assert all(choice["finish_reason"] is None for choice in (first, *middle))
    assert all("role" not in choice["delta"] for choice in middle)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    whole = client.post("/v1/chat/completions", json={**body, "stream": False}).json()
    text = "".join(choice["delta"]["content"] for choice in (first, *middle))
    assert text == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_comes_in_a_last_chunk_without_choices(client: TestClient, path: str) -> None:
    more = {"seed": 1, "stream": True, "stream_options": {"include_usage": True}, "n": 2}
    *chunks, usage, done = events_of(client.post(path, json={**WORKING[path], **more}))
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks)
    whole = client.post(path, json={**WORKING[path], "seed": 1, "n": 2}).json()
    assert usage["usage"] == whole["usage"]
    # Each of both choices has a first and a last chunk.
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_logprobs_of_a_chat_tell_tokens_bytes_and_others(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "chat", "messages": HELLO, "max_tokens": 3, "seed": 1}
    told = api.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    choice = told.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert told.usage is not None
    assert len(choice.logprobs.content) == told.usage.completion_tokens
    for token in choice.logprobs.content:
        assert bytes(token.bytes or []).decode() == token.token
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.top_logprobs[0].logprob >= token.logprob
    chunks = api.chat.completions.create(**asked, logprobs=True, stream=True)
    streamed = [
        entry.token
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == [entry.token for entry in choice.logprobs.content]


# Errors and hanging up.


def test_an_error_in_mid_stream_is_one_event_and_the_end(
    client: TestClient, models: InProcess
) -> None:
    models.fails_after = 2
    body = {**WORKING["/v1/completions"], "max_tokens": 9, "stream": True}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200
    *chunks, error = events_of(response)
    assert all("choices" in chunk for chunk in chunks)
    assert error == {
        "error": {
            "message": "The worker died.",
            "type": "server_error",
            "param": None,
            "code": "worker_died",
        }
    }
    assert models.closed == 1


def test_the_client_raises_what_comes_in_mid_stream(api: openai.OpenAI, models: InProcess) -> None:
    models.fails_after = 2
    stream = api.completions.create(model="lm", prompt="x", max_tokens=9, stream=True)
    with pytest.raises(openai.APIError, match="The worker died"):
        list(stream)


def test_an_error_before_the_first_piece_has_its_status(
    client: TestClient, models: InProcess
) -> None:
    models.fails_after = 0
    models.failure = Refusal(429, "queue_full", "Too many.", limit="max_queue", retry_after=2)
    body = {**WORKING["/v1/completions"], "stream": True}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_a_client_that_hangs_up_ends_its_continuation(
    api: openai.OpenAI, models: InProcess
) -> None:
    stream = api.completions.create(model="lm", prompt="x", max_tokens=300, stream=True)
    next(iter(stream))
    stream.close()
    from tests.serving.live_server import wait_until

    wait_until(lambda: models.closed == 1)
    assert models.pieces < 300


WRONG = [
    ("/v1/completions", {"prompt": 5}, "prompt", "invalid_value"),
    ("/v1/completions", {"prompt": ["a", 5]}, "prompt", "invalid_value"),
    ("/v1/completions", {"prompt": []}, "prompt", "invalid_value"),
    ("/v1/completions", {"prompt": None}, "prompt", "invalid_value"),
    ("/v1/completions", {"max_tokens": 0}, "max_tokens", "invalid_value"),
    ("/v1/completions", {"max_tokens": 10**9}, "max_tokens", "over_limit"),
    ("/v1/completions", {"n": 10_000}, "n", "over_limit"),
    ("/v1/completions", {"n": True}, "n", "invalid_value"),
    ("/v1/completions", {"prompt": ["x"] * 65}, "n", "over_limit"),
    ("/v1/completions", {"stop": ["x"] * 17}, "stop", "over_limit"),
    ("/v1/completions", {"stop": ""}, "stop", "over_limit"),
    ("/v1/completions", {"stop": [1]}, "stop", "invalid_value"),
    ("/v1/completions", {"logprobs": 21}, "logprobs", "over_limit"),
    ("/v1/completions", {"temperature": "hot"}, "temperature", "invalid_value"),
    ("/v1/completions", {"temperature": 2.5}, "temperature", "invalid_value"),
    ("/v1/completions", {"top_p": 0}, "top_p", "invalid_value"),
    ("/v1/completions", {"suffix": "end"}, "suffix", "unsupported_parameter"),
    ("/v1/completions", {"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
    ("/v1/completions", {"logit_bias": {"x": -100}}, "logit_bias", "invalid_value"),
    ("/v1/completions", {"logit_bias": {"5": 3}}, "logit_bias", "unsupported_parameter"),
    ("/v1/completions", {"surprise": 1}, "surprise", "unknown_parameter"),
    ("/v1/completions", {"seed": 2**70}, "seed", "invalid_value"),
    ("/v1/chat/completions", {"messages": []}, "messages", "invalid_value"),
    ("/v1/chat/completions", {"messages": "hi"}, "messages", "invalid_value"),
    ("/v1/chat/completions", {"messages": [5]}, "messages[0]", "invalid_value"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content", None),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, None, None),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": " "}]},
        "messages[0].content",
        "invalid_value",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a"}] * 2},
        "messages[1].role",
        "invalid_value",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "assistant", "content": "a"}]},
        "messages[0].role",
        "invalid_value",
    ),
    ("/v1/chat/completions", {"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "response_format", None),
    ("/v1/chat/completions", {"top_logprobs": 2}, None, None),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "over_limit"),
    ("/v1/embeddings", {"input": [1, 2]}, "input", "invalid_value"),
    ("/v1/embeddings", {"input": {}}, "input", "invalid_value"),
    ("/v1/embeddings", {"encoding_format": "hex"}, "encoding_format", "invalid_value"),
    ("/v1/embeddings", {"dimensions": 33}, "dimensions", "invalid_value"),
]


@pytest.mark.parametrize(("path", "wrong", "param", "code"), WRONG)
def test_a_wrong_value_is_refused_by_its_name(
    client: TestClient, path: str, wrong: dict[str, Any], param: str | None, code: str | None
) -> None:
    error = refused(client, path, {**WORKING[path], **wrong})
    assert param in (None, error["param"])
    assert code in (None, error["code"])
    assert error["message"].endswith(".")


def test_what_changes_nothing_is_passed_over(client: TestClient) -> None:
    more = {"user": "me", "metadata": {"a": 1}, "store": False, "frequency_penalty": 0}
    chat = {"tools": [], "response_format": {"type": "text"}, "modalities": ["text"]}
    for path, body in WORKING.items():
        extra = {"user": "me"} if "embeddings" in path else more
        extra = {**extra, **chat} if "chat" in path else extra
        assert client.post(path, json={**body, **extra}).status_code == 200


def test_a_chat_without_messages_is_told_what_it_has_to_have() -> None:
    with pytest.raises(Refusal, match="'messages' has to be a list with at least one message"):
        checked(ChatRequest, {"messages": []})


def test_a_model_that_cannot_do_it_says_which_can(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json={"model": "tags", "messages": HELLO})
    assert response.status_code == 400
    assert "chat" in response.json()["error"]["message"]


def test_without_a_name_the_first_that_can_answers(client: TestClient) -> None:
    body = {"prompt": PROMPT, "max_tokens": 2}
    assert client.post("/v1/completions", json=body).json()["model"] in ("lm", "chat")
    assert client.post("/v1/chat/completions", json={"messages": HELLO}).json()["model"] == "chat"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_any_field_breaks_it(client: TestClient, data: st.DataObject) -> None:
    from pretune.serving import openai_api

    schemas = {
        "/v1/completions": openai_api.CompletionRequest,
        "/v1/chat/completions": openai_api.ChatRequest,
        "/v1/embeddings": openai_api.EmbeddingRequest,
    }
    path = data.draw(st.sampled_from([*schemas]))
    fields = [*schemas[path].model_fields, *schemas[path].refused]
    changes = data.draw(st.dictionaries(st.sampled_from(fields), JSON, min_size=1, max_size=2))
    changes.pop("max_tokens", None)
    response = client.post(path, json={**WORKING[path], **changes})
    assert response.status_code in (200, 400, 404, 413, 422), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"].endswith(".")


# Embeddings.


def test_embeddings_are_those_of_embed_as_numbers_and_as_bytes(
    api: openai.OpenAI, client: TestClient, bundles: dict[str, Bundle]
) -> None:
    texts = ["good film", "the bad film was bad"]
    right = Embedder(bundles["bare"], device="cpu").embed(texts)
    # The client asks for bytes by itself.
    answer = api.embeddings.create(model="bare", input=texts)
    np.testing.assert_allclose([own.embedding for own in answer.data], right, atol=1e-6)
    assert [own.index for own in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    # The same bytes by hand: little-endian float32.
    body = {"model": "bare", "input": texts[0], "encoding_format": "base64"}
    (entry,) = client.post("/v1/embeddings", json=body).json()["data"]
    raw = base64.b64decode(entry["embedding"])
    np.testing.assert_allclose(struct.unpack("<32f", raw), right[0], atol=1e-6)
    short = api.embeddings.create(model="bare", input=texts[0], dimensions=8)
    assert len(short.data[0].embedding) == 8


@pytest.mark.parametrize(
    ("asked", "limit"),
    [({"n": 99}, "max_samples"), ({"n": 16, "prompt": ["x"] * 5}, "max_choices")],
)
def test_the_limit_that_a_client_can_keep_is_named(
    client: TestClient, asked: dict[str, Any], limit: str
) -> None:
    error = refused(client, "/v1/completions", {**WORKING["/v1/completions"], **asked})
    assert f"({limit})" in error["message"]
