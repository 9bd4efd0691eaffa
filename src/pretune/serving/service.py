"""`Service`: trained models that answer many clients at once. HTTP is not its business."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self

from pretune.decoding.decoding import Decoding
from pretune.decoding.judgement import Likelihood
from pretune.serving.jobs import (
    Ability,
    Counts,
    Done,
    Embedded,
    Generate,
    Kind,
    Piece,
    Served,
    Token,
)
from pretune.serving.observer import Observer, SilentObserver
from pretune.serving.options import ServeOptions
from pretune.serving.pool import Pool
from pretune.serving.refusal import Refusal, invalid, over_limit
from pretune.serving.request_limits import check_chars, check_inputs, check_texts
from pretune.serving.watch import EVERY, Watched
from pretune.text.decode import SURROGATE

logger = logging.getLogger("pretune.serving")


class Service:
    """Models in processes of their own, asked by any number of clients.

    Every request may be cancelled: by cancelling the task that awaits it, or by closing the
    iterator. All of them raise `Refusal`: 404 for a model that is not served; 413 or 422 for inputs
    that cannot be used; 422 for what the model cannot do; 429 where the queue is full; 503 where no
    worker can answer, or the one that did died; 504 where it took too long.

    Args:
        options: which models, and the limits.
        observer: counts what happens.
    """

    def __init__(self, options: ServeOptions, observer: Observer | None = None) -> None:
        self.options = options
        self._observer: Observer = SilentObserver() if observer is None else observer
        self._pool = Pool(options, self._observer)
        self._watching: asyncio.Task[None] | None = None

    # Life.

    async def start(self) -> None:
        """Load the models.

        Raises:
            PretuneError: one cannot be loaded; says why.
        """
        await self._pool.start()
        if self.options.watch:
            self._watching = asyncio.create_task(self._watch())

    async def close(self, drain: float) -> None:
        """Refuse new requests, wait up to `drain` seconds for those that are held, and end."""
        if self._watching is not None:
            self._watching.cancel()
        await self._pool.close(drain)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered now."""
        return self._pool.ready

    @property
    def notes(self) -> tuple[str, ...]:
        """What people are told about how the models were read."""
        return self._pool.notes

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that compute."""
        return self._pool.pids

    @property
    def held(self) -> int:
        """Requests that wait or are computed."""
        return self._pool.held

    async def _watch(self) -> None:
        """Let new versions of models take over when their folders have them."""
        watched = {name: Watched(source) for name, source in self.options.models}
        while True:
            await asyncio.sleep(EVERY)
            for name, folder in watched.items():
                if await asyncio.to_thread(folder.changed):
                    await self.swap(name)

    async def swap(self, name: str) -> bool:
        """Load a model anew from where it came from, and let it take over.

        Returns:
            whether it did; else the old one stays.
        """
        refused = await self._pool.swap(name)
        if refused is None:
            served = self._pool.served[name]
            which = served.which and f" ({served.which})"
            logger.warning("model '%s': version %d%s has taken over", name, served.version, which)
        else:
            logger.error("model '%s': the new version is not used: %s", name, refused)
        return refused is None

    # What there is.

    def models(self) -> list[Served]:
        """Return all models, the first one being the one that answers where none is named."""
        return [self._pool.served[name] for name, _ in self.options.models]

    def model(self, name: str | None) -> Served:
        """Return a model by its name; without a name the first one."""
        if not name:
            return self.models()[0]
        served = self._pool.served.get(name) if isinstance(name, str) else None
        if served is None:
            known = ", ".join(name for name, _ in self.options.models)
            message = f"There is no model '{str(name)[:100]}' here; there are: {known}."
            raise Refusal(404, "unknown_model", message, param="model")
        return served

    # What can be asked.

    async def predict(
        self,
        model: str | None,
        inputs: list[Any],
        *,
        top_k: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Answer inputs as `pretune predict --json` does.

        Args:
            model: its name.
            inputs: for each record a text, a list of texts, or a mapping with the task's columns.
            top_k: how many of the possible answers to tell.
            options: `truncate` False refuses texts that would be cut; `candidates`: of a
                translator.
        """
        served = self._able(model, "predict")
        check_inputs(inputs, self.options)
        if top_k is not None:
            self._check_number("top_k", top_k, "max_top_k")
        asked = {**(options or {}), "top_k": top_k}
        answers: list[dict[str, Any]] = await self._ask(served, "predict", inputs, asked)
        return answers

    async def logits(
        self, model: str | None, inputs: list[Any], *, options: Mapping[str, Any] | None = None
    ) -> list[list[float]]:
        """Return the scores of the labels of a classifier, before they become probabilities.

        The arguments are those of `predict`.
        """
        served = self._able(model, "logits")
        check_inputs(inputs, self.options)
        rows: list[list[float]] = await self._ask(served, "logits", inputs, options or {})
        return rows

    async def embed(
        self,
        model: str | None,
        texts: list[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
    ) -> Embedded:
        """Turn texts into vectors as `pretune embed` does.

        Args:
            model: its name.
            texts: at least one.
            prompt: what to put before each; default: what the model's folder says.
            prompt_name: the same by the name that the folder gives it.
            dimensions: how many numbers of each vector to keep.
            normalize: whether vectors have length 1; default: what the folder says.
            truncate: whether texts that the model cannot read as a whole are cut, or refused.
        """
        served = self._able(model, "embed")
        self._check_texts(texts)
        if prompt is not None:
            self._check_texts([prompt], "prompt")
        options: dict[str, Any] = {
            "prompt": prompt,
            "prompt_name": prompt_name,
            "dimensions": dimensions,
        }
        options |= {"normalize": normalize, "truncate": truncate}
        embedded: Embedded = await self._ask(served, "embed", texts, options)
        return embedded

    async def generate(
        self,
        model: str | None,
        prompt: str | list[int] | list[dict[str, str]],
        decoding: Decoding,
        *,
        samples: int = 1,
        template: bool = False,
        top: int = 0,
        open_ended: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        """Yield the continuations of a prompt piece by piece, each token as it is written.

        Args:
            model: its name.
            prompt: a text, its tokens, or the messages of a conversation.
            decoding: how; its `samples` is 1.
            samples: how many continuations.
            template: lay a text out as a message of the user, by the model's chat template.
            top: how many of the most probable tokens to tell for each token.
            open_ended: of a conversation: a reply may be as long as the model reads after it, up to
                `max_new_tokens`.
        """
        chats = template or not (isinstance(prompt, str) or _are_tokens(prompt))
        served = self._able(model, "chat" if chats else "generate")
        self._check_number("samples", samples, "max_samples")
        self._check_number("max_new_tokens", decoding.max_new_tokens, "max_new_tokens")
        if isinstance(prompt, str):
            check_chars(prompt, self.options, "prompt")
        elif chats:
            check_inputs(prompt, self.options, "messages")
        payload = Generate(prompt, decoding, samples, template, top, open_ended)
        with self._counting(served.name, "generate") as counting:
            call = self._pool.submit(served.name, "generate", payload, {}, weight=samples)
            try:
                while not isinstance(message := await self._pool.receive_next(call), Done):
                    yield message.value
                counting.done(message.counts)
            finally:
                self._pool.release(call)

    async def explain(
        self, model: str | None, inputs: list[Any], *, attention: bool = False
    ) -> list[dict[str, Any]]:
        """Answer inputs, and tell how much each token speaks for its answer.

        Args:
            model: its name.
            inputs: as for `predict`.
            attention: also return the attention maps.
        """
        served = self._able(model, "explain")
        check_inputs(inputs, self.options)
        options = {"attention": attention}
        explained: list[dict[str, Any]] = await self._ask(served, "explain", inputs, options)
        return explained

    async def tokenize(
        self, model: str | None, texts: list[str], *, special: bool = True
    ) -> list[list[Token]]:
        """Return the tokens of each text; without `special`, those alone that are in the text."""
        served = self.model(model)
        self._check_texts(texts)
        tokens: list[list[Token]] = await self._ask(served, "tokenize", texts, {"special": special})
        return tokens

    async def fill(
        self,
        model: str | None,
        texts: list[str],
        *,
        top_k: int = 5,
        targets: list[str | int] | None = None,
    ) -> list[list[list[dict[str, Any]]]]:
        """Fill the gaps of texts; see `MaskFiller.fill`."""
        served = self._able(model, "fill")
        self._check_texts(texts)
        self._check_number("top_k", top_k, "max_top_k")
        if targets is not None:
            self._check_texts([item for item in targets if not _is_token(item)] or ["a"], "targets")
        options = {"top_k": top_k, "targets": targets}
        filled: list[list[list[dict[str, Any]]]] = await self._ask(served, "fill", texts, options)
        return filled

    async def likelihood(self, model: str | None, pairs: list[tuple[str, str]]) -> list[Likelihood]:
        """Return how probable each continuation is after its context: `(context, continuation)`."""
        served = self._able(model, "likelihood")
        rows = [list(pair) for pair in pairs]
        check_inputs(rows, self.options)
        for number, row in enumerate(rows):
            self._check_texts(row, f"inputs[{number}]")
        scored: list[Likelihood] = await self._ask(served, "likelihood", rows, {})
        return scored

    # How it is asked.

    async def _ask(
        self, served: Served, kind: Kind, payload: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        """Ask a worker for an answer in one piece."""
        with self._counting(served.name, kind) as counting:
            call = self._pool.submit(served.name, kind, payload, options)
            try:
                message = await self._pool.receive_next(call)
            finally:
                self._pool.release(call)
            assert isinstance(message, Done)  # noqa: S101 - only continuations have parts
            counting.done(message.counts)
        return message.value

    def _counting(self, model: str, kind: Kind) -> _Counting:
        return _Counting(self._observer, model, kind)

    def _able(self, name: str | None, ability: Ability) -> Served:
        """Return a model that can do something."""
        served = self.model(name)
        if ability not in served.abilities:
            known = ", ".join(sorted(served.abilities))
            raise Refusal(
                422,
                "unsupported",
                f"The model '{served.name}' cannot be asked to {ability}; it can: {known}.",
                param="model",
            )
        return served

    # Limits, before anything is sent to a worker.

    def _check_texts(self, texts: object, param: str = "inputs") -> None:
        """Check that something is a list of texts that can be tokenized."""
        for number, text in enumerate(check_texts(texts, self.options, param)):
            if (half := SURROGATE.search(text)) is not None:
                place = f"{param}[{number}]"
                raise invalid(f"'{place}' has half a character, at {half.start() + 1}.", place)

    def _check_number(self, name: str, value: object, limit: str) -> None:
        """Check that something is a whole number from 1 to a limit."""
        highest = getattr(self.options, limit)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise invalid(f"{name} must be a whole number from 1, not {value!r:.40}.", name)
        if value > highest:
            raise over_limit(
                422, limit, f"{name} is {value:,}, and the limit is {highest:,}.", name
            )


class _Counting:
    """Tells an observer of a request, whatever becomes of it."""

    def __init__(self, observer: Observer, model: str, kind: Kind) -> None:
        self._observer, self._model, self._kind = observer, model, kind
        self._began, self._counts = time.monotonic(), Counts()
        self._status = 499  # unless it is done: the client did not wait

    def __enter__(self) -> Self:
        return self

    def done(self, counts: Counts) -> None:
        """Note that the request was answered."""
        self._status, self._counts = 200, counts

    def __exit__(self, kind: object, error: BaseException | None, place: object) -> None:
        if isinstance(error, Refusal):
            self._status = error.status
        elif isinstance(error, Exception):
            self._status = 500
        seconds = time.monotonic() - self._began
        told = self._model, self._kind, self._status, self._counts, seconds
        self._observer.request_done(*told)


def _are_tokens(prompt: Sequence[object]) -> bool:
    """Whether a prompt that is no text is the tokens of one, rather than messages."""
    return all(map(_is_token, prompt))


def _is_token(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)
