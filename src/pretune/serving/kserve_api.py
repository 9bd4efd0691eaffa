"""The Open Inference Protocol (KServe V2, Triton): named tensors in, named tensors out.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensors that
`tritonclient` uses. A model's inputs are `BYTES` tensors `[N]`, one for each column that its task
reads (of `choices` a text with | between them), or `text` for embeddings, or `prompt` for text
generation. Outputs follow from its task; `json` has what `pretune predict --json` prints.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pretune.decoding.decoding import Decoding
from pretune.errors import PretuneError
from pretune.serving.bodies import Body, Many, checked, served_for, shortened
from pretune.serving.event_stream import together
from pretune.serving.jobs import Served
from pretune.serving.json_body import json_bytes, parse_json
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, over_limit
from pretune.serving.request_limits import check_chars, check_number
from pretune.serving.service import Service
from pretune.version import __version__

PATHS = ("/v2",)

#: Tells where the JSON of a message ends and the bytes of its tensors begin.
HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")
#: More digits have only numbers that are larger than any body.
_MAX_DIGITS = 12
#: Tokens of a continuation where a request does not say.
MAX_TOKENS = 64
#: The output with everything that is known of an answer.
JSON = "json"

#: A model's name with what Triton tells of models beyond the protocol, what that is, and what there
#: is instead.
_EXTENSION = re.compile(r"(.+?)(?:/versions/[^/]*)?/(config|stats)")
_INSTEAD = {
    "config": ("A model's configuration", "its inputs and outputs are at /v2/models/{}"),
    "stats": ("The statistics of a model", "those of all models are at /metrics"),
}

#: Output tensors: their name, type, and whether each answer has one or several numbers.
_OUTPUTS: Mapping[str, tuple[tuple[str, str, bool], ...]] = {
    "classify": (("label", "BYTES", False), ("score", "FP32", False), ("scores", "FP32", True)),
    "multilabel": (("scores", "FP32", True),),
    "regress": (("score", "FP32", False),),
    "answer": (("answer", "BYTES", False), ("score", "FP32", False)),
    "translate": (("translation", "BYTES", False), ("score", "FP32", False)),
    "summarize": (("summary", "BYTES", False), ("score", "FP32", False)),
    "choose": (("choice", "INT64", False), ("score", "FP32", False)),
}
_TYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}


class RequestedTensor(Body):
    """An input or output tensor in a request."""

    name: str
    shape: Many[int] | None = Field(None, max_length=8)
    datatype: str | None = None
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferRequest(Body):
    """The JSON of `POST /v2/models/NAME/infer`."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: Many[RequestedTensor] = Field(min_length=1)
    outputs: Many[RequestedTensor] | None = None


class InferParameters(Body):
    """The parameters of a request."""

    # Of the protocol and its extensions.
    binary_data_output: bool | None = None
    priority: int | None = None
    timeout: int | None = None
    # Ours: of predictions, and of text generation.
    top_k: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=1000)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, le=2**64 - 1)

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "sequence_id": (0, ""),
        "sequence_start": (False,),
        "sequence_end": (False,),
    }


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of an answer: texts, or an array of numbers."""

    name: str
    datatype: str
    values: Any  # a list of texts, or an array

    def described(self, *, binary: bool) -> tuple[dict[str, Any], bytes]:
        """Return its JSON, and its bytes where they follow the JSON."""
        texts = isinstance(self.values, list)
        shape = [len(self.values)] if texts else list(self.values.shape)
        entry = {"name": self.name, "datatype": self.datatype, "shape": shape}
        if not binary:
            data = self.values if texts else self.values.ravel().tolist()
            return {**entry, "data": data}, b""
        if texts:
            encoded = [text.encode("utf-8", "replace") for text in self.values]
            raw = b"".join(_LENGTH.pack(len(text)) + text for text in encoded)
        else:
            raw = self.values.astype(_TYPES[self.datatype]).tobytes()
        return {**entry, "parameters": {"binary_data_size": len(raw)}}, raw


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """Return the routes of the protocol."""
    api = KServeApi(service, options)

    async def server(request: Request) -> Response:
        return _json(
            {"name": "pretune", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        return _json({"ready": service.ready, "live": True}, 200 if service.ready else 503)

    async def index(request: Request) -> Response:
        return _json(
            [
                {"name": own.name, "version": str(own.version), "state": "READY", "reason": ""}
                for own in service.models()
            ]
        )

    async def model(request: Request) -> Response:
        return _json(api.described(api.served(request)))

    async def model_ready(request: Request) -> Response:
        served = api.served(request)
        return _json({"name": served.name, "ready": service.ready}, 200 if service.ready else 503)

    async def infer(request: Request) -> Response:
        return await api.infer(request)

    below = "/v2/models/{model:path}"
    versions = (f"{below}/versions/{{version}}", below)
    return [
        Route("/v2", server, methods=["GET"]),
        Route("/v2/health/live", live, methods=["GET"]),
        Route("/v2/health/ready", ready, methods=["GET"]),
        Route("/v2/repository/index", index, methods=["POST"]),
        *(Route(f"{place}/infer", infer, methods=["POST"]) for place in versions),
        *(Route(f"{place}/ready", model_ready, methods=["GET"]) for place in versions),
        *(Route(place, model, methods=["GET"]) for place in versions),
    ]


def input_names(served: Served) -> tuple[str, ...]:
    """Return the names of a model's input tensors."""
    if _predicts(served):
        return tuple(served.inputs)
    return ("prompt",) if "generate" in served.abilities else ("text",)


def output_tensors(served: Served) -> list[tuple[str, str, list[int]]]:
    """Return name, type and shape of a model's output tensors; -1 stands for any number."""
    vector = ("embedding", "FP32", [-1, served.embedding_size or -1])
    if not _predicts(served):
        return [("text", "BYTES", [-1])] if "generate" in served.abilities else [vector]
    labels = len(served.labels or ())
    outputs = [
        (name, kind, [-1, labels or -1] if several else [-1])
        for name, kind, several in _OUTPUTS.get(served.task or "", ())
    ]
    return [*outputs, (JSON, "BYTES", [-1])]


def _predicts(served: Served) -> bool:
    """Whether a model is asked for predictions; language models write."""
    return "predict" in served.abilities and "generate" not in served.abilities


class KServeApi:
    """Tensors to what a service is asked for, and its answers to tensors."""

    def __init__(self, service: Service, options: ServeOptions) -> None:
        self._service, self._options = service, options

    def served(self, request: Request) -> Served:
        """Return the model that a path names.

        Raises:
            Refusal: 404 there is no such model, or not in this version.
        """
        named = request.path_params["model"]
        self._check_extension(named)
        served = self._service.model(named)
        version = request.path_params.get("version")
        if version is not None and version != str(served.version):
            raise Refusal(
                404,
                "unknown_version",
                f"The model '{served.name}' is served in version {served.version}, not "
                f"{shortened(version)}.",
            )
        return served

    def _check_extension(self, named: str) -> None:
        """Refuse what Triton has beyond the protocol, which would be taken for a model's name."""
        known = {served.name for served in self._service.models()}
        asked = _EXTENSION.fullmatch(named)
        if asked is None or named in known or asked[1] not in known:
            return
        what, there = _INSTEAD[asked[2]]
        raise Refusal(
            404,
            "unsupported",
            f"{what} is an extension of Triton's, which this server does not have; "
            f"{there.format(asked[1])}.",
        )

    def described(self, served: Served) -> dict[str, Any]:
        """Return the metadata of a model."""
        return {
            "name": served.name,
            "versions": [str(served.version)],
            "platform": "pretune",
            "inputs": [
                {"name": name, "datatype": "BYTES", "shape": [-1]} for name in input_names(served)
            ],
            "outputs": [
                {"name": name, "datatype": kind, "shape": shape}
                for name, kind, shape in output_tensors(served)
            ],
        }

    async def infer(self, request: Request) -> Response:
        """Answer a request with tensors."""
        served = self.served(request)
        request.state.model = served.name
        body, raw = await self._read(request)
        given = body.parameters or {}
        unknown = "Unknown parameter: '{}'."
        parameters = checked(
            InferParameters, given, status=400, unknown=unknown, inside="parameters"
        )
        columns = self._columns(served, body.inputs, raw)
        wanted = self._wanted(served, body.outputs)
        tensors = await self._outputs(served, columns, parameters)
        # Each output as it was asked for: in JSON, or as bytes that follow it.
        entries, parts = [], []
        for name, binary in wanted.items():
            usual = bool(parameters.binary_data_output)
            entry, part = tensors[name].described(binary=usual if binary is None else binary)
            entries.append(entry)
            parts.append(part)
        answer = {"model_name": served.name, "model_version": str(served.version)}
        answer |= {} if body.id is None else {"id": body.id}
        content = json_bytes({**answer, "outputs": entries})
        if not any("data" not in entry for entry in entries):
            return Response(content, media_type="application/json")
        return Response(
            content + b"".join(parts),
            media_type="application/octet-stream",
            headers={HEADER_LENGTH: str(len(content))},
        )

    async def _read(self, request: Request) -> tuple[InferRequest, bytes]:
        """Return the JSON of a request, and the bytes behind it."""
        content = await request.body()
        if "content-encoding" in request.headers:
            raise Refusal(415, "content_encoding", "Compressed bodies are not supported.")
        length = request.headers.get(HEADER_LENGTH)
        end = len(content)
        if length is not None:
            digits = length.isascii() and length.isdigit() and len(length) <= _MAX_DIGITS
            if not digits or int(length) > len(content):
                raise _wrong(f"{HEADER_LENGTH} has to be the number of bytes of the JSON.")
            end = int(length)
        value = parse_json(content[:end], self._options)
        return checked(InferRequest, value, status=400), content[end:]

    def _columns(
        self, served: Served, tensors: Sequence[RequestedTensor], raw: bytes
    ) -> dict[str, list[str]]:
        """Return the texts of each input tensor.

        Raises:
            Refusal: a tensor is missing, unknown, or not what its shape and type say.
        """
        columns, start = dict[str, list[str]](), 0
        names = input_names(served)
        for tensor in tensors:
            shown = shortened(tensor.name)
            if tensor.name not in names or tensor.name in columns:
                reads = ", ".join(names)
                raise _wrong(f"input '{shown}': the model '{served.name}' reads {reads}, once each")
            size = (tensor.parameters or {}).get("binary_data_size")
            if size is None:
                texts = list(_flat(tensor.data or [], shown))
            else:
                if type(size) is not int or not 0 <= size <= len(raw) - start:
                    raise _wrong(f"input '{shown}': binary_data_size is not what follows the JSON")
                texts = _unpacked(raw[start : start + size], shown)
                start += size
            _check_shape(tensor, len(texts))
            check_number(texts, self._options, shown)
            for text in texts:
                check_chars(text, self._options, shown)
            columns[tensor.name] = texts
        if start != len(raw):
            raise _wrong("the bytes behind the JSON are more than those of the inputs")
        missing = [name for name in names if name not in columns]
        if missing:
            raise _wrong(f"input '{missing[0]}' is missing")
        if len({len(texts) for texts in columns.values()}) > 1:
            raise _wrong("the inputs have to have equally many elements")
        return columns

    def _wanted(
        self, served: Served, outputs: Sequence[RequestedTensor] | None
    ) -> dict[str, bool | None]:
        """Return the outputs that are asked for, each with whether it is sent as bytes."""
        known = [name for name, _, _ in output_tensors(served)]
        if not outputs:
            return dict.fromkeys(known)
        wanted: dict[str, bool | None] = {}
        for output in outputs:
            if output.name not in known:
                shown = shortened(output.name)
                raise _wrong(f"output '{shown}': the model '{served.name}' has {', '.join(known)}")
            parameters = output.parameters or {}
            if parameters.get("classification"):
                raise _wrong("the classification extension is not supported; ask for 'scores'")
            binary = parameters.get("binary_data")
            if binary is not None and not isinstance(binary, bool):
                raise _wrong("'binary_data' has to be true or false")
            wanted[output.name] = binary
        return wanted

    async def _outputs(
        self, served: Served, columns: Mapping[str, list[str]], parameters: InferParameters
    ) -> dict[str, OutputTensor]:
        """Ask the model."""
        if not _predicts(served):
            (texts,) = columns.values()
            if "generate" in served.abilities:
                written = await self._written(served, texts, parameters)
                return {"text": OutputTensor("text", "BYTES", written)}
            name = served_for(self._service, served.name, "embed").name
            embedded = await self._service.embed(name, texts)
            return {"embedding": OutputTensor("embedding", "FP32", embedded.vectors)}
        top_k = parameters.top_k
        if top_k is not None and top_k > self._options.max_top_k:
            message = f"top_k is {top_k:,}; the limit is {self._options.max_top_k:,} (max_top_k)"
            raise over_limit(400, "max_top_k", message, "parameters.top_k")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        answers = await self._service.predict(served.name, rows, top_k=top_k)
        return _tensors(served, answers)

    async def _written(
        self, served: Served, prompts: Sequence[str], parameters: InferParameters
    ) -> list[str]:
        """Return a continuation of each prompt; without a temperature, the most probable one."""
        options = self._options
        wanted = parameters.max_tokens or min(MAX_TOKENS, options.max_new_tokens)
        if wanted > options.max_new_tokens:
            message = f"max_tokens is {wanted:,}; the limit is {options.max_new_tokens:,}"
            raise over_limit(400, "max_new_tokens", message, "parameters.max_tokens")
        if len(prompts) > options.max_choices:
            message = f"{len(prompts):,} prompts; the limit is {options.max_choices} (max_choices)"
            raise over_limit(413, "max_choices", message, "prompt")
        try:
            decoding = Decoding(
                max_new_tokens=wanted,
                temperature=parameters.temperature or 0.0,
                top_p=parameters.top_p or 1.0,
                seed=secrets.randbits(63) if parameters.seed is None else parameters.seed,
            )
        except PretuneError as error:
            raise _wrong(error.message) from None

        async def write(prompt: str) -> str:
            pieces = self._service.generate(served.name, prompt, decoding)
            return "".join([piece.text async for piece in pieces])

        return await together([write(prompt) for prompt in prompts])


def _tensors(served: Served, answers: Sequence[Mapping[str, Any]]) -> dict[str, OutputTensor]:
    """Return the output tensors of predictions."""
    tensors = {}
    for name, kind, several in _OUTPUTS.get(served.task or "", ()):
        values: Any = [answer[name] for answer in answers]
        if several:
            # With top_k some labels are left out: their probability is not told.
            labels = served.labels or ()
            rows = [[row.get(label, math.nan) for label in labels] for row in values]
            values = np.array(rows, dtype=_TYPES[kind]).reshape(len(answers), len(labels))
        elif kind != "BYTES":
            values = np.array(values, dtype=_TYPES[kind])
        tensors[name] = OutputTensor(name, kind, values)
    whole = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    return {**tensors, JSON: OutputTensor(JSON, "BYTES", whole)}


def _flat(data: Sequence[Any], name: str) -> Iterator[str]:
    """Yield the texts of a tensor in JSON, which may be nested by its shape."""
    for item in data:
        if isinstance(item, list):
            yield from _flat(item, name)
        elif isinstance(item, str):
            yield item
        else:
            raise _wrong(f"input '{name}': its elements have to be texts (datatype BYTES)")


def _unpacked(raw: bytes, name: str) -> list[str]:
    """Return the texts of a binary tensor: each behind its length."""
    texts, start = [], 0
    while start < len(raw):
        begin = start + _LENGTH.size
        size = _LENGTH.unpack_from(raw, start)[0] if begin <= len(raw) else len(raw)
        if begin + size > len(raw):
            raise _wrong(f"input '{name}': its bytes end inside an element")
        try:
            texts.append(raw[begin : begin + size].decode())
        except UnicodeDecodeError:
            raise _wrong(f"input '{name}': an element is not valid UTF-8") from None
        start = begin + size
    return texts


def _check_shape(tensor: RequestedTensor, count: int) -> None:
    """Check that a tensor is of texts, and has as many as its shape says."""
    name = shortened(tensor.name)
    if tensor.datatype != "BYTES":
        raise _wrong(f"input '{name}': its datatype has to be BYTES: texts")
    shape = tensor.shape or []
    if not shape or min(shape) < 0 or math.prod(shape) != count:
        raise _wrong(f"input '{name}': its shape does not have {count:,} elements, as its data")
    if count == 0:
        raise _wrong(f"input '{name}' is empty")


def _wrong(message: str) -> Refusal:
    return Refusal(400, "invalid", message)


def _json(body: Any, status: int = 200) -> Response:
    return Response(json_bytes(body), status, media_type="application/json")


def errors(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Return status and body of a refusal."""
    return refusal.status, {"error": refusal.message}
