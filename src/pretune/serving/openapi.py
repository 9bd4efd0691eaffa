"""The description of all protocols in OpenAPI, and a page of examples to copy.

Each served model has a worked example in every protocol that can ask it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pretune.serving import embeddings_api, hub_api, kserve_api, openai_api
from pretune.serving.examples import example_input
from pretune.serving.jobs import Served
from pretune.serving.json_body import json_bytes
from pretune.serving.options import ServeOptions
from pretune.serving.service import Service
from pretune.version import __version__

#: Where the schemas of a description stand.
_PLACE = "#/components/schemas/{model}"
_TEXT = "Where is my parcel?"
_TEXTS = ["Your parcel is on its way.", "The weather is fine."]


@dataclass(frozen=True)
class Operation:
    """What can be posted to a path."""

    path: str
    title: str
    protocol: str
    schema: type[BaseModel] | Mapping[str, Any]


def _native(**more: Any) -> dict[str, Any]:
    """The schema of a body of our own protocol."""
    model = {"type": "string", "description": "Its name; default: the first."}
    inputs = {"description": "Texts, lists of texts, or objects with the model's columns."}
    properties = {"model": model, "inputs": inputs, **more}
    return {"type": "object", "required": ["inputs"], "properties": properties}


_COUNT = {"type": "integer", "minimum": 1}
_PREDICT = _native(top_k=_COUNT, candidates={**_COUNT, "description": "Of a translation."})
_EXPLAIN = _native(attention={"type": "boolean", "description": "Also the attention maps."})

OPERATIONS = (
    Operation("/v1/predict", "Answers, as pretune predict --json prints them", "pretune", _PREDICT),
    Operation("/v1/explain", "Which words an answer comes from", "pretune", _EXPLAIN),
    Operation("/v1/chat/completions", "A reply to messages", "OpenAI", openai_api.ChatRequest),
    Operation("/v1/completions", "What follows a prompt", "OpenAI", openai_api.CompletionRequest),
    Operation("/v1/embeddings", "Vectors of texts", "OpenAI", openai_api.EmbeddingRequest),
    Operation(
        "/embed", "Vectors of texts", "Text Embeddings Inference", embeddings_api.EmbedRequest
    ),
    Operation(
        "/predict",
        "Labels of texts with scores",
        "Text Embeddings Inference",
        embeddings_api.PredictRequest,
    ),
    Operation(
        "/rerank",
        "Texts by how well they go with a query",
        "Text Embeddings Inference",
        embeddings_api.RerankRequest,
    ),
    Operation(
        "/similarity",
        "How alike texts are",
        "Text Embeddings Inference",
        embeddings_api.SimilarityRequest,
    ),
    Operation(
        "/tokenize",
        "The tokens of texts",
        "Text Embeddings Inference",
        embeddings_api.TokenizeRequest,
    ),
    Operation(
        "/models/{model}", "What the task's pipeline gives", "Hugging Face", hub_api.HubRequest
    ),
    Operation(
        "/v2/models/{model}/infer",
        "Tensors to tensors",
        "Open Inference Protocol",
        kserve_api.InferRequest,
    ),
)

#: Paths of Text Embeddings Inference: the first model that can do it answers there, and any other
#: below /models/MODEL.
_OF_THE_FIRST = ("/embed", "/predict", "/rerank", "/similarity", "/tokenize")
#: What can be asked without a body.
_READ = {
    "/v1/models": ("The served models", "OpenAI"),
    "/info": ("The first model and its limits", "Text Embeddings Inference"),
    "/health": ("Whether requests are answered", "Text Embeddings Inference"),
    "/v2": ("The server", "Open Inference Protocol"),
    "/v2/health/live": ("Whether the server runs", "Open Inference Protocol"),
    "/v2/health/ready": ("Whether requests are answered", "Open Inference Protocol"),
    "/v2/models/{model}": ("A model's inputs and outputs", "Open Inference Protocol"),
    "/v2/models/{model}/ready": ("Whether a model answers", "Open Inference Protocol"),
}


def worked_examples(served: Served) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path of an operation and a body that the model answers there."""
    model = {"model": served.name}
    if "predict" in served.abilities:
        yield "/v1/predict", {**model, "inputs": [example_input(served)]}
    if "explain" in served.abilities:
        yield "/v1/explain", {**model, "inputs": [example_input(served)]}
    if "chat" in served.abilities:
        messages = [{"role": "user", "content": "Hello!"}]
        yield "/v1/chat/completions", {**model, "messages": messages, "max_tokens": 32}
    if "generate" in served.abilities:
        yield "/v1/completions", {**model, "prompt": "Once upon a time", "max_tokens": 32}
    if "embed" in served.abilities:
        yield "/v1/embeddings", {**model, "input": [_TEXT]}
        yield "/embed", {"inputs": [_TEXT]}
        similar = {"source_sentence": _TEXT, "sentences": _TEXTS}
        yield "/similarity", {"inputs": similar}
    if served.task in embeddings_api.CLASSIFIERS:
        pair = [_TEXT, _TEXTS[0]]
        yield "/predict", {"inputs": _TEXT if len(served.inputs) == 1 else pair}
    if embeddings_api.scores_pairs(served):
        yield "/rerank", {"query": _TEXT, "texts": _TEXTS}
    yield "/tokenize", {"inputs": _TEXT}
    yield "/models/{model}", hub_example(served)
    yield "/v2/models/{model}/infer", kserve_example(served)


def examples_at(path: str, service: Service) -> dict[str, dict[str, Any]]:
    """Return bodies that are answered at a path, by the names of the models that answer them.

    Where neither path nor body name a model, it is the first that can.
    """
    bodies = {
        served.name: body
        for served in service.models()
        for place, body in worked_examples(served)
        if place == path
    }
    return dict([*bodies.items()][:1]) if path in _OF_THE_FIRST else bodies


def place_of(path: str, served: Served, service: Service) -> str:
    """Return where a model answers its example of a path."""
    if path in _OF_THE_FIRST and served.name not in examples_at(path, service):
        path = "/models/{model}" + path
    return path.replace("{model}", quote(served.name))


def hub_example(served: Served) -> dict[str, Any]:
    """Return a payload that the pipeline of a model's task reads."""
    pipeline = hub_api.pipeline_of(served)
    if pipeline == "text-generation":
        return {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 32}}
    if pipeline == "text-classification" and len(served.inputs) == 2:
        return {"inputs": {"text": _TEXT, "text_pair": _TEXTS[0]}}
    if pipeline == "token-classification":
        return {"inputs": "Ada lived in London."}
    if pipeline in ("feature-extraction", "text-classification"):
        return {"inputs": _TEXT}
    return {"inputs": example_input(served)}


def kserve_example(served: Served) -> dict[str, Any]:
    """Return tensors that a model reads."""
    example = example_input(served) if "predict" in served.abilities else _TEXT
    inputs = []
    for name in kserve_api.input_names(served):
        value = example.get(name, _TEXT) if isinstance(example, dict) else example
        # What is a list elsewhere is a text here.
        between = " " if name == "tokens" else "|"
        text = value if isinstance(value, str) else between.join(map(str, value))
        inputs.append({"name": name, "shape": [1], "datatype": "BYTES", "data": [text]})
    return {"inputs": inputs}


def described(service: Service, options: ServeOptions) -> dict[str, Any]:
    """Return the description in OpenAPI 3.1, with examples for what is served."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        examples = {}
        for name, body in examples_at(operation.path, service).items():
            served = service.model(name)
            title = f"{name} ({served.task or served.model_type})"
            examples[name] = {"summary": title, "value": body}
        content = {"schema": _schema(operation.schema, schemas), "examples": examples}
        entry = _entry(operation.path, operation.title, operation.protocol)
        entry["requestBody"] = {"required": True, "content": {"application/json": content}}
        paths[operation.path] = {"post": entry}
    for path, (title, protocol) in _READ.items():
        paths.setdefault(path, {})["get"] = _entry(path, title, protocol)
    components: dict[str, Any] = {"schemas": schemas}
    about: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "pretune", "version": __version__},
        "paths": paths,
        "components": components,
    }
    if options.api_key_file is not None:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        about["security"] = [{"key": []}]
    return about


def _schema(schema: type[BaseModel] | Mapping[str, Any], schemas: dict[str, Any]) -> Any:
    """Return the schema of a body; those of models go among the others."""
    if isinstance(schema, Mapping):
        return dict(schema)
    own = schema.model_json_schema(ref_template=_PLACE)
    schemas.update(own.pop("$defs", {}))
    schemas[schema.__name__] = own
    return {"$ref": _PLACE.format(model=schema.__name__)}


def _entry(path: str, title: str, protocol: str) -> dict[str, Any]:
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "summary": title,
        "tags": [protocol],
        **({"parameters": [name]} if "{model}" in path else {}),
        "responses": {
            "200": {"description": "The answer."},
            "4XX": {"description": "The request is refused: a sentence says why."},
            "5XX": {"description": "Not now: a sentence says why."},
        },
    }


# The page.

_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; }
pre { padding: .75rem; overflow-x: auto; border: 1px solid; border-radius: .25rem; }
code { font-family: ui-monospace, monospace; }
small { opacity: .75; font-weight: normal; }
"""


def page(service: Service, options: ServeOptions, address: str) -> str:
    """Return the page: for each model a command for each protocol.

    Args:
        service: what is served.
        options: whether a key is needed.
        address: of the server, as the reader wrote it.
    """
    parts = []
    titles = {operation.path: operation for operation in OPERATIONS}
    for served in service.models():
        about = f"{served.task or served.model_type}, {served.parameters:,} parameters"
        parts.append(f"<h2>{escape(served.name)} <small>{escape(about)}</small></h2>")
        for path, body in worked_examples(served):
            operation = titles[path]
            parts.append(
                f"<h3>{escape(operation.title)} <small>{escape(operation.protocol)}</small></h3>"
            )
            command = curl(address + place_of(path, served, service), body, options)
            parts.append(f"<pre><code>{escape(command)}</code></pre>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>pretune: API</title>\n'
        '<link rel="stylesheet" href="/docs.css">\n</head>\n<body>\n<h1>API</h1>\n'
        '<p>In OpenAPI: <a href="/openapi.json">/openapi.json</a>. Try it: <a href="/">/</a>.</p>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def curl(url: str, body: Mapping[str, Any], options: ServeOptions) -> str:
    """Return a command for a shell that posts a body."""
    key = " -H 'Authorization: Bearer YOUR_KEY'" if options.api_key_file is not None else ""
    text = json.dumps(body, ensure_ascii=False)
    quoted = ["'" + part.replace("'", "'\\''") + "'" for part in (url, text)]
    return f"curl {quoted[0]}{key} -H 'Content-Type: application/json' \\\n  -d {quoted[1]}"


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """Return the routes of the description and its page."""

    async def description(request: Request) -> Response:
        content = json_bytes(described(service, options))
        return Response(content, media_type="application/json")

    async def docs(request: Request) -> Response:
        address = f"{request.url.scheme}://{request.url.netloc}"
        return Response(page(service, options, address), media_type="text/html")

    async def style(request: Request) -> Response:
        return Response(_STYLE, media_type="text/css")

    return [
        Route("/openapi.json", description, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
        Route("/docs.css", style, methods=["GET"]),
    ]
