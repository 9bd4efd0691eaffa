"""The protocol of OpenAI: completions, chat and embeddings, as its clients speak it.

https://platform.openai.com/docs/api-reference. What the schemas name and this server does not do is
refused by name; what changes nothing in an answer (`user`, `metadata`, ...) is passed over; any
other field is unknown, as it is to OpenAI.
"""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pretune.data.readers.conversations import roles_after
from pretune.decoding.decoding import Decoding
from pretune.errors import PretuneError
from pretune.serving.bodies import Body, Many, checked, served_for, shortened
from pretune.serving.event_stream import (
    DONE,
    INTERNAL,
    Begun,
    EventStream,
    begun,
    event,
    merged,
)
from pretune.serving.jobs import Piece, Served
from pretune.serving.json_body import json_bytes, json_value
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, invalid, over_limit
from pretune.serving.request_limits import check_number, check_texts
from pretune.serving.service import Service
from pretune.version import __version__

PATHS = ("/v1/",)

#: How OpenAI refuses a field that it does not know.
UNKNOWN = "Unknown parameter: '{}'."
#: A log-probability that is no number in JSON: OpenAI's own stand-in.
LEAST = -9999.0


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool | None = None


class _Sampled(Body):
    """What completions and chat have in common."""

    model: str | None = Field(None, description="Its name; default: the first that can.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    stop: str | Many[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = Field(
        None, description="Token ids with -100, which bans a token; other values are refused."
    )
    # Beyond OpenAI, by the names that other servers have for them.
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=1000)

    # What changes nothing in an answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
    }
    expected: ClassVar[Mapping[str, str]] = {"stop": "a text or a list of texts"}

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        # The first that is none, as of lists: see `Many`.
        for token, bias in value.items() if isinstance(value, dict) else ():
            if type(bias) not in (int, float):
                raise ValueError(f"'logit_bias.{shortened(token)}' has to be a number.")
        return value

    @model_validator(mode="after")
    def _of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is for requests with 'stream': true.")
        return self

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> list[str]:
        """The texts that end a continuation."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(_Sampled):
    """The body of `POST /v1/completions`."""

    prompt: str | Many[str] | Many[int] | Many[Many[int]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    best_of: int | None = Field(None, ge=1)

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {**_Sampled.refused, "suffix": ("",)}
    expected: ClassVar[Mapping[str, str]] = {
        **_Sampled.expected,
        "prompt": "a text, a list of texts, a list of token ids, or a list of such lists",
    }

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("'best_of' is not supported by this server, other than as 'n'.")
        if self.echo and self.logprobs is not None:
            raise ValueError("'echo' with 'logprobs' is not supported by this server.")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [own for own in self.prompt if not isinstance(own, int)]


class ContentPart(Body):
    """A part of a message."""

    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _text(self) -> Self:
        if self.type != "text":
            raise ValueError(
                f"content of type '{shortened(self.type)}' is not supported: this server reads text"
            )
        if self.text is None:
            raise ValueError("a part of type 'text' needs 'text'")
        return self


class ChatMessage(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Many[ContentPart]
    name: Any = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "audio": (),
    }
    expected: ClassVar[Mapping[str, str]] = {"content": "a text, or a list of parts of type 'text'"}

    def to_dict(self) -> dict[str, str]:
        """The message as chat templates read it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text or "" for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(_Sampled):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Any] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    parallel_tool_calls: Any = None

    expected: ClassVar[Mapping[str, str]] = {
        **_Sampled.expected,
        "messages": "a list with at least one message",
    }
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_Sampled.refused,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "tool_prompt": (),
    }

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' is for requests with 'logprobs': true.")
        return self

    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates read them.

        Raises:
            Refusal: one of them is not as it should be; names it.
        """
        messages = [
            checked(ChatMessage, message, inside=f"messages[{number}]").to_dict()
            for number, message in enumerate(self.messages)
        ]
        last = None
        for number, message in enumerate(messages):
            _check_turn(f"messages[{number}]", message, last)
            last = message["role"]
        return messages


def _check_turn(place: str, message: Mapping[str, str], last: str | None) -> None:
    """Refuse a message without a text, or whose role does not follow that of the last one."""
    if not message["content"].strip():
        raise invalid(
            f"'{place}.content' is empty: write something, or leave the message out.",
            f"{place}.content",
        )
    role, expected = message["role"], roles_after(last)
    if role not in expected:
        after = "at the beginning" if last is None else f"after '{last}'"
        raise invalid(
            f"'{place}.role' is '{role}' {after}, where it has to be {' or '.join(expected)}: user "
            "and assistant take turns, the user first; before them system, once or not at all. "
            "Join messages of one role.",
            f"{place}.role",
        )


class EmbeddingRequest(Body):
    """The body of `POST /v1/embeddings`."""

    input: str | Many[str]
    model: str | None = Field(None, description="Its name; default: the first that can.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: Any = None

    expected: ClassVar[Mapping[str, str]] = {
        "input": "a text or a list of texts (token ids are not supported: vocabularies differ)"
    }


# Requests to what the service is asked for.


def decoding_of(
    body: _Sampled, served: Served, options: ServeOptions, *, max_tokens: int | None
) -> Decoding:
    """Return how a request wants its text to be written.

    Args:
        body: the request.
        served: the model that writes.
        options: the limits.
        max_tokens: the most tokens of a continuation; None: as many as the server allows.

    Raises:
        Refusal: a value makes no sense, or is over a limit; names it.
    """
    _check_limits(body, options, max_tokens)
    # Without a seed, each request draws anew. OpenAI's seeds may be negative.
    seed = secrets.randbits(63) if body.seed is None else body.seed % 2**64
    extra = {
        name: value
        for name in ("top_k", "min_p", "typical_p", "repetition_penalty")
        if (value := getattr(body, name)) is not None
    }
    try:
        return Decoding(
            max_new_tokens=options.max_new_tokens if max_tokens is None else max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            stop=tuple(body.stops),
            never=_banned(body.logit_bias or {}, served.vocab_size),
            seed=seed,
            **extra,
        )
    except PretuneError as error:
        raise invalid(error.message) from None


def _check_limits(body: _Sampled, options: ServeOptions, max_tokens: int | None) -> None:
    """Refuse more continuations, tokens or stop texts than are allowed."""
    counts = [
        ("n", body.n or 1, "max_samples"),
        ("max_tokens", max_tokens or 1, "max_new_tokens"),
        ("stop", len(body.stops), "max_stops"),
    ]
    for param, count, limit in counts:
        most: int = getattr(options, limit)
        if count > most:
            message = f"'{param}': {count:,} is over this server's limit of {most:,} ({limit})."
            raise over_limit(422, limit, message, param)
    for text in body.stops:
        if not 0 < len(text) <= options.max_stop_chars:
            message = f"'stop': a text has to have 1 to {options.max_stop_chars} characters."
            raise over_limit(422, "max_stop_chars", message, "stop")


def _banned(bias: Mapping[str, float], vocab_size: int) -> tuple[int, ...]:
    """Return the tokens that a `logit_bias` bans."""
    banned = []
    for token, value in bias.items():
        digits = token.isascii() and token.isdigit() and len(token) < 10
        if not digits or int(token) >= vocab_size:
            message = f"'logit_bias': '{shortened(token)}' is no token id of this model."
            raise invalid(message, "logit_bias")
        if value == -100:
            banned.append(int(token))
        elif value:
            message = "'logit_bias': only -100, which bans a token, is supported by this server."
            raise Refusal(422, "unsupported_parameter", message, param="logit_bias")
    return tuple(banned)


def _check_logprobs(count: int, options: ServeOptions, param: str) -> None:
    if count > options.max_logprobs:
        raise over_limit(
            422,
            "max_logprobs",
            f"'{param}': {count:,} is over this server's limit of {options.max_logprobs} "
            "(max_logprobs).",
            param,
        )


# Pieces to answers.


class WrittenChoice:
    """A continuation while it is written, and what OpenAI's clients read of it.

    Args:
        index: its number among the choices.
        chat: whether it is a message.
        told: whether to tell the log-probabilities of its tokens.
    """

    def __init__(self, index: int, *, chat: bool, told: bool) -> None:
        self.index, self._chat, self.told = index, chat, told
        self.text, self.tokens, self.finish = "", 0, ""
        self._pieces: list[Piece] = []
        self._offset = 0

    def add(self, piece: Piece) -> None:
        """Take a piece of the continuation."""
        self.text += piece.text
        self.tokens += len(piece.tokens)
        if self.told:
            self._pieces.append(piece)
        if piece.finish is not None:
            self.finish = "length" if piece.finish == "length" else "stop"

    def whole(self, prompt: str = "") -> dict[str, Any]:
        """Return the choice as it stands in an answer, after a prompt to repeat."""
        told = self._logprobs(self._pieces) if self.told else None
        choice = {"index": self.index, "logprobs": told, "finish_reason": self.finish}
        if self._chat:
            message = {"role": "assistant", "content": self.text, "refusal": None}
            return {**choice, "message": message}
        return {**choice, "text": prompt + self.text}

    def delta(self, text: str, piece: Piece | None = None) -> dict[str, Any]:
        """Return the choice as it stands in a chunk that brings some text."""
        told = self._logprobs([piece]) if self.told and piece is not None else None
        choice = {"index": self.index, "logprobs": told, "finish_reason": None}
        return {**choice, **({"delta": {"content": text}} if self._chat else {"text": text})}

    def opening(self) -> dict[str, Any]:
        """Return the choice as it stands in its first chunk: a message has a role."""
        opened = self.delta("")
        return {**opened, "delta": {"role": "assistant", "content": "", "refusal": None}}

    def ending(self) -> dict[str, Any]:
        """Return the choice as it stands in its last chunk, which tells why it ended."""
        ended = {**self.delta(""), "finish_reason": self.finish}
        return {**ended, "delta": {}} if self._chat else ended

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Tell the log-probabilities of tokens: each with those that it was chosen from."""
        rows = [
            (string, logprob, piece.top[number] if piece.top is not None else ())
            for piece in pieces
            for number, (string, logprob) in enumerate(
                zip(piece.strings, piece.logprobs, strict=True)
            )
        ]
        if self._chat:
            content = [
                {**_token(string, logprob), "top_logprobs": [_token(s, p) for _, s, p in top]}
                for string, logprob, top in rows
            ]
            return {"content": content, "refusal": None}
        # The older form: a list for each kind of thing.
        texts = [string.decode(errors="replace") for string, _, _ in rows]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        best = [
            {s.decode(errors="replace"): _finite(p) for _, s, p in reversed(top)}
            for *_, top in rows
        ]
        return {
            "tokens": texts,
            "token_logprobs": [_finite(logprob) for _, logprob, _ in rows],
            "top_logprobs": best if any(best) else None,
            "text_offset": offsets,
        }


def _token(string: bytes, logprob: float) -> dict[str, Any]:
    text = string.decode(errors="replace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(string)}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)


class Reply:
    """All choices of a request, and the answer that they make.

    Args:
        kind: `chat.completion` or `text_completion`.
        served: the model that writes.
        prompts: how many prompts there are.
        samples: continuations of each.
        told: whether to tell log-probabilities.
    """

    def __init__(self, kind: str, served: Served, prompts: int, samples: int, told: bool) -> None:
        chat = kind == "chat.completion"
        self._chat, self._samples = chat, samples
        self.choices = [WrittenChoice(i, chat=chat, told=told) for i in range(prompts * samples)]
        self._prompt_tokens = [0] * prompts
        self._kind = kind
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": f"pretune-{__version__}-{served.version}",
        }

    def take(self, prompt: int, piece: Piece) -> WrittenChoice:
        """Give a piece to its choice."""
        choice = self.choices[prompt * self._samples + piece.sample]
        choice.add(piece)
        self._prompt_tokens[prompt] = max(self._prompt_tokens[prompt], piece.prompt_tokens)
        return choice

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        read, written = sum(self._prompt_tokens), sum(own.tokens for own in self.choices)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }

    def whole(self, echoed: Sequence[str] = ()) -> dict[str, Any]:
        """Return the answer to a request that is no stream."""
        choices = [
            own.whole(echoed[own.index // self._samples] if echoed else "") for own in self.choices
        ]
        return {**self._head, "object": self._kind, "choices": choices, "usage": self.usage}

    def chunk(self, *choices: dict[str, Any], **more: Any) -> bytes:
        """Return an event of a stream."""
        kind = "chat.completion.chunk" if self._chat else self._kind
        return event({**self._head, "object": kind, "choices": list(choices), **more})

    async def chunks(
        self,
        pieces: Begun[tuple[int, Piece]],
        *,
        with_usage: bool,
        echoed: Sequence[str] = (),
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream; an error in the middle of it is the last one."""
        # With the usage at the end, all other chunks say that they have none.
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        opened: set[int] = set()
        try:
            async for prompt, piece in pieces:
                choice = self.take(prompt, piece)
                if choice.index not in opened:
                    opened.add(choice.index)
                    if self._chat:
                        yield self.chunk(choice.opening(), **more)
                    elif echoed:
                        yield self.chunk(choice.delta(echoed[prompt]), **more)
                # A token whose text is held back is told where its probability is.
                if piece.text or (choice.told and piece.tokens):
                    yield self.chunk(choice.delta(piece.text, piece), **more)
                if piece.finish is not None:
                    yield self.chunk(choice.ending(), **more)
        except Refusal as refusal:
            yield event(errors(refusal)[1])
            return
        except Exception:
            # A mistake of ours: the client is told, and then whoever runs the server.
            yield event(errors(INTERNAL)[1])
            raise
        if with_usage:
            yield self.chunk(usage=self.usage)
        yield DONE


# Handlers.


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """Return the routes of the protocol; chat also below a model's own address."""

    async def models(request: Request) -> Response:
        data = [_model(served) for served in service.models()]
        return _json({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        served = service.model(request.path_params["model"])
        return _json(_model(served, card=served.card))

    async def completions(request: Request) -> Response:
        body = checked(CompletionRequest, await json_value(request), unknown=UNKNOWN)
        return await _completions(service, options, request, body)

    async def chat(request: Request) -> Response:
        body = checked(ChatRequest, await json_value(request), unknown=UNKNOWN)
        return await _chat(service, options, request, body)

    async def embeddings(request: Request) -> Response:
        body = checked(EmbeddingRequest, await json_value(request), unknown=UNKNOWN)
        return await _embeddings(service, options, request, body)

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", model, methods=["GET"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        # Where huggingface_hub asks a model that it has the address of.
        Route("/models/{model:path}/v1/chat/completions", chat, methods=["POST"]),
    ]


async def _completions(
    service: Service, options: ServeOptions, request: Request, body: CompletionRequest
) -> Response:
    served = served_for(service, body.model, "generate")
    request.state.model = served.name
    prompts, samples = body.prompts, body.n or 1
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not prompts:
        raise invalid("'prompt' has to have at least one prompt.", "prompt")
    check_number(prompts, options, "prompt")
    check_texts(texts or [""], options, "prompt")
    if body.logprobs is not None:
        _check_logprobs(body.logprobs, options, "logprobs")
    if body.echo and len(texts) < len(prompts):
        message = "'echo' is for prompts that are texts."
        raise invalid(message, "echo")
    decoding = decoding_of(body, served, options, max_tokens=body.max_tokens or 16)
    _check_choices(len(prompts) * samples, options)
    pieces = merged(
        [
            service.generate(
                served.name,
                *(prompt, decoding),
                samples=samples,
                template=False,
                top=body.logprobs or 0,
            )
            for prompt in prompts
        ]
    )
    told = body.logprobs is not None
    reply = Reply("text_completion", served, len(prompts), samples, told)
    return await _answered(body, reply, pieces, texts if body.echo else [])


async def _chat(
    service: Service, options: ServeOptions, request: Request, body: ChatRequest
) -> Response:
    named = request.path_params.get("model", body.model)
    served = served_for(service, named, "chat")
    request.state.model = served.name
    messages = body.conversation()
    check_texts([message["content"] for message in messages], options, "messages")
    samples, top = body.n or 1, body.top_logprobs or 0
    _check_logprobs(top, options, "top_logprobs")
    # Without a limit of its own a reply may fill what the conversation leaves of the context.
    wanted = body.max_completion_tokens or body.max_tokens
    decoding = decoding_of(body, served, options, max_tokens=wanted)
    _check_choices(samples, options)
    written = service.generate(
        served.name,
        *(messages, decoding),
        samples=samples,
        template=True,
        top=top,
        open_ended=wanted is None,
    )
    reply = Reply("chat.completion", served, 1, samples, bool(body.logprobs))
    return await _answered(body, reply, merged([written]))


def _check_choices(count: int, options: ServeOptions) -> None:
    """Refuse more continuations of all prompts together than are allowed."""
    if count > options.max_choices:
        raise over_limit(
            422,
            "max_choices",
            f"'n': {count:,} continuations in one request are over this server's limit of "
            f"{options.max_choices} (max_choices).",
            "n",
        )


async def _answered(
    body: _Sampled,
    reply: Reply,
    pieces: AsyncGenerator[tuple[int, Piece], None],
    echoed: Sequence[str] = (),
) -> Response:
    """Answer with all pieces at once, or as a stream."""
    if body.stream:
        # A refusal before the first piece still has its status.
        started = await begun(pieces)
        events = reply.chunks(started, with_usage=body.with_usage, echoed=echoed)
        return EventStream(events, started)
    try:
        async for prompt, piece in pieces:
            reply.take(prompt, piece)
    finally:
        await pieces.aclose()
    return _json(reply.whole(echoed))


async def _embeddings(
    service: Service, options: ServeOptions, request: Request, body: EmbeddingRequest
) -> Response:
    served = served_for(service, body.model, "embed")
    request.state.model = served.name
    texts = check_texts(body.input, options, "input")
    if body.dimensions is not None and body.dimensions > (served.embedding_size or 0):
        message = f"'dimensions' has to be at most {served.embedding_size} for this model."
        raise invalid(message, "dimensions")
    embedded = await service.embed(served.name, texts, dimensions=body.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(vector, body.encoding_format)}
        for index, vector in enumerate(embedded.vectors)
    ]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return _json({"object": "list", "data": data, "model": served.name, "usage": usage})


def encoded(vector: np.ndarray[Any, Any], encoding: str | None) -> list[float] | str:
    """Return a vector as numbers, or as its little-endian float32 bytes in base64."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


#: What is told of a model beyond OpenAI; not its source, which is a path on this machine.
_TOLD = (
    *("task", "version", "model_type", "labels", "inputs"),
    *("context_length", "embedding_size", "parameters"),
    *("step", "digest", "max_candidates"),
)


def _model(served: Served, **more: Any) -> dict[str, Any]:
    own = {name: getattr(served, name) for name in _TOLD}
    return {
        "id": served.name,
        "object": "model",
        "created": int(served.loaded),
        "owned_by": "pretune",
        "pretune": {**own, "abilities": sorted(served.abilities), **more},
    }


def _json(body: Any) -> Response:
    return Response(json_bytes(body), media_type="application/json")


# Errors.

#: The kind of a refusal -> OpenAI's `code`.
_CODES = {
    "unknown_model": "model_not_found",
    "no_key": "invalid_api_key",
    "too_long": "context_length_exceeded",
    "unsupported": "unsupported_value",
    "missing": "missing_required_parameter",
    "invalid": "invalid_value",
}


def errors(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Return status and body of a refusal: OpenAI's error object."""
    if refusal.status == 429:
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif refusal.status >= 500:
        kind, code = "server_error", refusal.kind
    else:
        kind, code = "invalid_request_error", _CODES.get(refusal.kind, refusal.kind)
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}
    # OpenAI has no 422.
    return 400 if refusal.status == 422 else refusal.status, {"error": error}
