"""Our own protocol, for every task: `/v1/predict` and `/v1/explain`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pretune.serving.bodies import Body, checked, served_for
from pretune.serving.json_body import json_bytes, json_value
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, invalid, over_limit
from pretune.serving.request_limits import check_inputs
from pretune.serving.service import Service

PATHS = ("/v1/predict", "/v1/explain")
#: Inputs of a request with attention maps: each has a number for every layer and pair of tokens.
MAX_MAPS = 32
_UNKNOWN = "There is no key '{}' in this request."


class _Asked(Body):
    inputs: Any
    model: str | None = None


class ExplainBody(_Asked):
    """What `/v1/explain` is asked."""

    attention: bool = False


class PredictBody(_Asked):
    """What `/v1/predict` is asked."""

    top_k: int | None = None
    candidates: int | None = Field(None, ge=1)  # of a translation


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """The paths of the protocol."""

    async def predict(request: Request) -> Response:
        body = checked(PredictBody, await json_value(request), unknown=_UNKNOWN)
        served = served_for(service, body.model, "predict")
        request.scope["state"]["model"] = served.name
        inputs, top_k = check_inputs(body.inputs, options), _top_k(body, options)
        more: dict[str, Any] = {}
        if body.candidates is not None:
            more["options"] = {"candidates": body.candidates}
        answers = await service.predict(served.name, inputs, top_k=top_k, **more)
        return _answer(served.name, served.version, "answers", answers)

    async def explain(request: Request) -> Response:
        body = checked(ExplainBody, await json_value(request), unknown=_UNKNOWN)
        served = served_for(service, body.model, "explain")
        request.scope["state"]["model"] = served.name
        inputs = check_inputs(body.inputs, options)
        if body.attention and len(inputs) > MAX_MAPS:
            message = (
                f"'attention' may be asked of {MAX_MAPS} inputs at a time, not {len(inputs):,}."
            )
            raise invalid(message, "attention")
        explained = await service.explain(served.name, inputs, attention=body.attention)
        return _answer(served.name, served.version, "explanations", explained)

    return [
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/explain", explain, methods=["POST"]),
    ]


def errors(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Word a refusal: OpenAI's error object, and the limit that was passed."""
    ours = refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    error = {
        "message": refusal.message,
        "type": "server_error" if ours else "invalid_request_error",
        "param": refusal.param,
        "code": refusal.kind,
    }
    if refusal.limit is not None:
        error["limit"] = refusal.limit
    return refusal.status, {"error": error}


def _top_k(body: PredictBody, options: ServeOptions) -> int | None:
    top_k = body.top_k
    if top_k is None or 1 <= top_k <= options.max_top_k:
        return top_k
    if top_k < 1:
        raise invalid("'top_k' has to be at least 1.", "top_k")
    raise over_limit(
        *(422, "max_top_k", f"'top_k' is {top_k:,}; the limit is {options.max_top_k:,}."),
        param="top_k",
    )


def _answer(model: str, version: int, what: str, values: list[dict[str, Any]]) -> Response:
    content = json_bytes({"model": model, "version": version, what: values})
    return Response(content, media_type="application/json")
