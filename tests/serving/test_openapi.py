from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pretune.serving.native import ExplainBody, PredictBody
from pretune.serving.openapi import OPERATIONS, curl, described, page, worked_examples
from pretune.serving.options import ServeOptions
from tests.serving.in_process import InProcess


def test_each_example_of_each_model_works(client: TestClient, models: InProcess) -> None:
    known = {operation.path for operation in OPERATIONS}
    for served in models.models():
        paths = []
        for path, body in worked_examples(served):
            paths.append(path)
            # TEI has no name for a model in its bodies: its own address has.
            whole = path.replace("{model}", served.name)
            if whole in ("/embed", "/similarity", "/predict", "/rerank", "/tokenize"):
                whole = f"/models/{served.name}{whole}"
            response = client.post(whole, json=body)
            assert response.status_code == 200, (served.name, path, response.text)
        assert {*paths} <= known
        assert "/models/{model}" in paths
        assert "/v2/models/{model}/infer" in paths


def test_the_description_has_an_example_for_each_task(
    client: TestClient, models: InProcess
) -> None:
    about = client.get("/openapi.json").json()
    assert about["openapi"] == "3.1.0"
    body = about["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]
    tasks = {s.name for s in models.models() if "predict" in s.abilities}
    assert {*body["examples"]} == tasks
    assert body["examples"]["labels"]["value"]["model"] == "labels"
    # Each reference leads to a schema.
    schemas = about["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(about)):
        assert name in schemas


def test_the_description_has_the_keys_that_are_read(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, body in (("/v1/predict", PredictBody), ("/v1/explain", ExplainBody)):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["properties"].keys() == body.model_fields.keys()


def test_each_path_of_the_description_is_there(client: TestClient) -> None:
    about = client.get("/openapi.json").json()
    for path, methods in about["paths"].items():
        for method in methods:
            url = path.replace("{model}", "labels")
            response = client.request(method.upper(), url, json={} if method == "post" else None)
            assert response.status_code not in (404, 405), path


def test_a_key_is_part_of_the_description_where_it_is_needed(
    models: InProcess, limits: ServeOptions
) -> None:
    assert "security" not in described(models, limits)  # type: ignore[arg-type]
    keyed = replace(limits, api_key_file=Path("keys"))
    about = described(models, keyed)  # type: ignore[arg-type]
    assert about["security"] == [{"key": []}]
    assert "Authorization: Bearer YOUR_KEY" in page(models, keyed, "http://x")  # type: ignore[arg-type]


def test_the_page_asks_nobody_else_and_escapes(client: TestClient, models: InProcess) -> None:
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    links = re.findall(r'(?:href|src)="([^"]*)"', response.text)
    assert {*links} == {"/docs.css", "/openapi.json", "/"}
    assert "<script" not in response.text
    assert "style=" not in response.text
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")
    for served in models.models():
        assert f"<h2>{served.name}" in response.text


def test_an_address_is_escaped(models: InProcess, limits: ServeOptions) -> None:
    text = page(models, limits, "http://x'\"<script>")  # type: ignore[arg-type]
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("text", ["it's", 'a "b" $c `d` \\', "好"])
def test_a_command_says_in_a_shell_what_it_should(limits: ServeOptions, text: str) -> None:
    command = curl("http://x/y", {"inputs": text}, limits)
    words: list[Any] = shlex.split(command.replace("\\\n", ""))
    assert words[:2] == ["curl", "http://x/y"]
    assert json.loads(words[-1]) == {"inputs": text}


def test_each_command_of_the_page_asks_its_model(client: TestClient, models: InProcess) -> None:
    """Those of models that are not the first, too; a pair of texts is no text."""
    text = client.get("/docs").text
    headings = re.split(r"<h2>(.+?) <small>", text)[1:]
    assert headings[::2] == [served.name for served in models.models()]
    for name, part in zip(headings[::2], headings[1::2], strict=True):
        commands = [unescape(own) for own in re.findall(r"<code>(.+?)</code>", part, re.DOTALL)]
        assert commands
        for command in commands:
            _, address, *_, body = shlex.split(command.replace("\\\n", " "))
            models.calls.clear()
            reply = client.post(address.removeprefix("http://127.0.0.1:8000"), content=body)
            assert reply.status_code == 200, command
            assert {own for _, own in models.calls} == {name}, command


def test_each_example_of_the_description_is_answered_by_its_model(
    client: TestClient, models: InProcess
) -> None:
    for path, entry in client.get("/openapi.json").json()["paths"].items():
        content = entry.get("post", {}).get("requestBody", {}).get("content", {})
        examples = content.get("application/json", {}).get("examples", {})
        for name, example in examples.items():
            models.calls.clear()
            reply = client.post(path.replace("{model}", name), json=example["value"])
            assert reply.status_code == 200, (path, name)
            assert {own for _, own in models.calls} == {name}, path
