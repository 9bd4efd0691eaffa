"""The protocol of Text Embeddings Inference (TEI): embeddings, classes of texts, ranks, tokens.

https://huggingface.github.io/text-embeddings-inference. TEI serves one model; here `/embed` asks
the first model that gives embeddings, `/predict` the first classifier, `/rerank` the first that
scores pairs, and `/models/NAME/embed` (`/predict`, ...) the model of that name. As there, fields
that it does not know are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pretune.serving.bodies import Body, Many, checked, served_for
from pretune.serving.jobs import Served, Token
from pretune.serving.json_body import json_bytes, json_value
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, invalid
from pretune.serving.request_limits import (
    check_chars,
    check_number,
    check_repeated,
    check_texts,
)
from pretune.serving.service import Service
from pretune.version import __version__

_NAMES = ("embed", "predict", "rerank", "similarity", "tokenize", "info", "health")
PATHS = tuple(f"{place}/{name}" for place in ("", "/models/*") for name in _NAMES)

#: Tasks whose models classify, as TEI's `/predict` understands it.
CLASSIFIERS = ("classify", "multilabel", "regress")


class EmbedRequest(Body):
    """The body of `POST /embed`."""

    inputs: str | Many[str]
    truncate: bool | None = Field(None, description="Cut what is too long; default: refuse it.")
    normalize: bool | None = Field(True, description="Vectors of length 1.")
    prompt_name: str | None = Field(None, description="A prompt that the model's folder names.")
    dimensions: int | None = Field(None, ge=1)
    truncation_direction: Literal["right", "Right"] = "right"

    expected: ClassVar[Mapping[str, str]] = {
        "inputs": "a text or a list of texts",
        "truncation_direction": "'right': this server cuts the end of a text",
    }


class PredictRequest(Body):
    """The body of `POST /predict`: a text, a pair, or a batch `[["text"], ["first", "second"]]`."""

    inputs: str | Many[str] | Many[Many[str]]
    truncate: bool | None = Field(None, description="Cut what is too long; default: refuse it.")
    raw_scores: bool = Field(False, description="Scores before softmax or sigmoid.")
    truncation_direction: Literal["right", "Right"] = "right"

    expected: ClassVar[Mapping[str, str]] = {
        "inputs": "a text, a pair [text, text], or a batch [[text], [text, text], ...]",
        "truncation_direction": EmbedRequest.expected["truncation_direction"],
    }

    @field_validator("inputs")
    @classmethod
    def _texts_or_pairs(cls, value: Any) -> Any:
        rows = (
            value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        )
        if any(not isinstance(row, str) and not 1 <= len(row) <= 2 for row in rows):
            raise ValueError(f"'inputs' has to be {cls.expected['inputs']}.")
        return value


class RerankRequest(Body):
    """The body of `POST /rerank`."""

    query: str
    texts: Many[str]
    truncate: bool | None = Field(None, description="Cut what is too long; default: refuse it.")
    raw_scores: bool = Field(False, description="Scores before the sigmoid.")
    return_text: bool = Field(False, description="Repeat the texts.")
    truncation_direction: Literal["right", "Right"] = "right"

    expected: ClassVar[Mapping[str, str]] = {
        "texts": "a list of texts",
        "truncation_direction": EmbedRequest.expected["truncation_direction"],
    }


class SentencesToCompare(Body):
    """A text and those that it is compared with."""

    source_sentence: str
    sentences: Many[str]


class SimilarityRequest(Body):
    """The body of `POST /similarity`."""

    inputs: SentencesToCompare
    parameters: dict[str, Any] | None = None


class TokenizeRequest(Body):
    """The body of `POST /tokenize`."""

    inputs: str | Many[str]
    add_special_tokens: bool = True

    expected: ClassVar[Mapping[str, str]] = {"inputs": "a text or a list of texts"}


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """Return the routes of the protocol."""
    api = EmbeddingsApi(service, options)
    posted: list[tuple[str, type[Body], Callable[..., Any]]] = [
        ("embed", EmbedRequest, api.embed),
        ("predict", PredictRequest, api.predict),
        ("rerank", RerankRequest, api.rerank),
        ("similarity", SimilarityRequest, api.similarity),
        ("tokenize", TokenizeRequest, api.tokenize),
    ]

    def route(path: str, schema: type[Body], answer: Callable[..., Any]) -> Route:
        async def handle(request: Request) -> Response:
            body = checked(schema, await json_value(request))
            named = request.path_params.get("model")
            return _json(await answer(request, named, body))

        return Route(path, handle, methods=["POST"])

    async def info(request: Request) -> Response:
        return _json(api.info(request.path_params.get("model")))

    async def health(request: Request) -> Response:
        if not service.ready:
            raise Refusal(503, "unhealthy", "unhealthy", retry_after=1)
        if "model" in request.path_params:
            service.model(request.path_params["model"])
        return Response()

    below = "/models/{model:path}"
    return [
        *(route(f"/{name}", schema, answer) for name, schema, answer in posted),
        *(route(f"{below}/{name}", schema, answer) for name, schema, answer in posted),
        *(Route(f"{place}/info", info, methods=["GET"]) for place in ("", below)),
        *(Route(f"{place}/health", health, methods=["GET"]) for place in ("", below)),
    ]


class EmbeddingsApi:
    """What TEI does, by a service."""

    def __init__(self, service: Service, options: ServeOptions) -> None:
        self._service, self._options = service, options

    async def embed(self, request: Request, named: str | None, body: EmbedRequest) -> Any:
        """Return a vector for each text."""
        served = served_for(self._service, named, "embed")
        request.state.model = served.name
        texts = check_texts(body.inputs, self._options, "inputs")
        _check_dimensions(body.dimensions, served)
        _check_prompt(body.prompt_name, served)
        embedded = await self._service.embed(
            served.name,
            texts,
            prompt_name=body.prompt_name,
            dimensions=body.dimensions,
            normalize=body.normalize is not False,
            truncate=bool(body.truncate),
        )
        return embedded.vectors.tolist()

    async def similarity(
        self, request: Request, named: str | None, body: SimilarityRequest
    ) -> list[float]:
        """Return the cosine of a text with each of some others."""
        inputs = body.inputs
        sentences = check_texts(inputs.sentences, self._options, "inputs.sentences")
        check_chars(inputs.source_sentence, self._options, "inputs.source_sentence")
        return await similarities(self._service, request, named, inputs.source_sentence, sentences)

    async def predict(self, request: Request, named: str | None, body: PredictRequest) -> Any:
        """Return the labels of each input with their scores, best first."""
        served = self._first(named, lambda served: served.task in CLASSIFIERS)
        if served.task not in CLASSIFIERS:
            raise _not_of_kind("a Sequence Classification model")
        request.state.model = served.name
        batch = isinstance(body.inputs, list) and isinstance(next(iter(body.inputs), None), list)
        rows: Sequence[Any] = body.inputs if batch else [body.inputs]
        inputs = self._inputs(rows, served)
        # Labels of a regressor: its one score.
        labels = served.labels or ("LABEL_0",)
        scores = await self._scores(served, inputs, raw=body.raw_scores, truncate=body.truncate)
        answers = [
            [
                {"score": score, "label": label}
                for label, score in sorted(zip(labels, own, strict=True), key=lambda pair: -pair[1])
            ]
            for own in scores
        ]
        return answers if batch else answers[0]

    async def rerank(
        self, request: Request, named: str | None, body: RerankRequest
    ) -> list[dict[str, Any]]:
        """Return texts by how well they go with the query, best first."""
        served = self._first(named, scores_pairs)
        if not scores_pairs(served):
            raise _not_of_kind("a re-ranker: one that scores pairs of texts")
        request.state.model = served.name
        texts = check_texts(body.texts, self._options, "texts")
        check_chars(body.query, self._options, "query")
        check_repeated([body.query], len(texts), self._options, "query")
        first, second = served.inputs
        pairs = [{first: body.query, second: text} for text in texts]
        logits = await self._logits(served, pairs, truncate=body.truncate)
        # Of two classes the second one says that the texts go together.
        raw = [own[1] - own[0] if len(own) == 2 else own[0] for own in logits]
        scores = raw if body.raw_scores else [_sigmoid(score) for score in raw]
        ranks = [
            {"index": index, **({"text": texts[index]} if body.return_text else {}), "score": score}
            for index, score in enumerate(scores)
        ]
        return sorted(ranks, key=lambda rank: -rank["score"])

    async def tokenize(
        self, request: Request, named: str | None, body: TokenizeRequest
    ) -> list[list[dict[str, Any]]]:
        """Return the tokens of each text."""
        served = self._service.model(named)
        request.state.model = served.name
        texts = check_texts(body.inputs, self._options, "inputs")
        encoded = await self._service.tokenize(served.name, texts, special=body.add_special_tokens)
        return [
            [_token(token, text) for token in tokens]
            for tokens, text in zip(encoded, texts, strict=True)
        ]

    def info(self, named: str | None) -> dict[str, Any]:
        """Describe a model as TEI does."""
        served = self._service.model(named)
        options = self._options
        return {
            # Not its source, which may be a path on this machine.
            "model_id": served.name,
            "model_sha": None,
            "model_dtype": "float32" if options.precision == "auto" else options.precision,
            "model_type": _model_type(served),
            "max_concurrent_requests": options.max_queue,
            "max_input_length": served.context_length,
            "max_batch_tokens": options.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": options.max_inputs,
            "auto_truncate": False,
            "tokenization_workers": options.workers,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }

    def _first(self, named: str | None, suits: Callable[[Served], bool]) -> Served:
        """Return the named model; without a name the first that suits, or else the first."""
        if named is not None:
            return self._service.model(named)
        return next(filter(suits, self._service.models()), None) or self._service.model(None)

    def _inputs(self, rows: Sequence[Any], served: Served) -> list[dict[str, str]]:
        """Turn texts and pairs into what a model reads."""
        check_number(rows, self._options, "inputs")
        inputs = []
        for row in rows:
            texts = [row] if isinstance(row, str) else row
            for text in texts:
                check_chars(text, self._options, "inputs")
            if len(texts) != len(served.inputs):
                raise invalid(
                    f"'inputs': the model '{served.name}' reads {', '.join(served.inputs)}, "
                    f"but {'a text' if len(texts) == 1 else 'a pair'} was given.",
                    "inputs",
                )
            inputs.append(dict(zip(served.inputs, texts, strict=True)))
        return inputs

    async def _scores(
        self, served: Served, inputs: list[dict[str, str]], *, raw: bool, truncate: bool | None
    ) -> list[list[float]]:
        """Score each label of inputs, as probabilities or before they become such."""
        if raw or served.task == "regress":
            return await self._logits(served, inputs, truncate=truncate)
        options = None if truncate else {"truncate": False}
        answers = await self._service.predict(served.name, inputs, options=options)
        return [[answer["scores"][label] for label in served.labels or ()] for answer in answers]

    async def _logits(
        self, served: Served, inputs: list[dict[str, str]], *, truncate: bool | None
    ) -> list[list[float]]:
        options = None if truncate else {"truncate": False}
        return await self._service.logits(served.name, inputs, options=options)


def _token(token: Token, text: str) -> dict[str, Any]:
    """Describe a token; its text is what stands in the input, where it stands there."""
    shown = token.text if token.start is None else text[token.start : token.stop]
    places = {"start": token.start, "stop": token.stop}
    return {"id": token.id, "text": shown, "special": token.special, **places}


async def similarities(
    service: Service, request: Request, named: str | None, source: str, sentences: Sequence[str]
) -> list[float]:
    """Return the cosine of a text's vector with those of other texts."""
    served = served_for(service, named, "embed")
    request.state.model = served.name
    embedded = await service.embed(served.name, [source, *sentences], normalize=True)
    cosines: list[float] = (embedded.vectors[1:] @ embedded.vectors[0]).astype(np.float64).tolist()
    return cosines


def scores_pairs(served: Served) -> bool:
    """Whether a model reads two texts and has one score for them, or says yes or no."""
    if len(served.inputs) != 2:
        return False
    return served.task == "regress" or (served.task == "classify" and len(served.labels or ()) == 2)


def _check_dimensions(dimensions: int | None, served: Served) -> None:
    if dimensions is not None and dimensions > (served.embedding_size or 0):
        raise invalid(
            f"'dimensions' has to be at most {served.embedding_size} for this model.", "dimensions"
        )


def _check_prompt(name: str | None, served: Served) -> None:
    if name is not None and name not in served.prompt_names:
        known = ", ".join(served.prompt_names) or "none"
        raise invalid(
            f"'prompt_name': this model has no such prompt; it has {known}.", "prompt_name"
        )


def _model_type(served: Served) -> dict[str, Any]:
    """Describe what a model does, by TEI's three kinds."""
    if served.task not in CLASSIFIERS:
        return {"embedding": {"pooling": "mean"}}
    labels = served.labels or ("LABEL_0",)
    names = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    return {"reranker" if scores_pairs(served) and len(labels) == 1 else "classifier": names}


def _sigmoid(value: float) -> float:
    """The logistic function, without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


def _not_of_kind(kind: str) -> Refusal:
    return Refusal(424, "unsupported", f"model is not {kind}", param="model")


def _json(body: Any) -> Response:
    return Response(json_bytes(body), media_type="application/json")


def errors(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Return status and body of a refusal: TEI's `error` and `error_type`."""
    return refusal.status, {"error": refusal.message, "error_type": _error_type(refusal)}


def _error_type(refusal: Refusal) -> str:
    """TEI's word for what went wrong."""
    if refusal.status == 429:
        return "Overloaded"
    if refusal.status == 503:
        return "Unhealthy"
    if refusal.status == 424 or refusal.status >= 500:
        return "Backend"
    return "Tokenizer" if refusal.kind == "invalid_text" else "Validation"
