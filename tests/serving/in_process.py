"""A service without processes: tiny models answer, for tests of the protocols before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pretune.bundle.bundle import Bundle
from pretune.decoding.decoding import Decoding
from pretune.decoding.judgement import Likelihood
from pretune.decoding.text_stream import TokenBytes
from pretune.errors import PretuneError
from pretune.inference.embed import Embedder
from pretune.inference.fill import MaskFiller
from pretune.inference.generate import TextGenerator
from pretune.inference.likelihood import LikelihoodScorer
from pretune.inference.predict import Predictor, records_of
from pretune.inference.prompts import template_of
from pretune.serving.jobs import Embedded, Piece, Served, Token
from pretune.serving.refusal import Refusal, invalid
from pretune.tasks.base import WritesAnswers


@dataclass
class Held:
    """A model with what it can be asked."""

    name: str
    bundle: Bundle

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(self.bundle, device="cpu", precision="float32")

    @cached_property
    def generator(self) -> TextGenerator:
        return TextGenerator.of(self.bundle, template=None, device="cpu", precision="float32")

    @cached_property
    def embedder(self) -> Embedder:
        return Embedder(self.bundle, device="cpu")

    @cached_property
    def served(self) -> Served:
        task, bundle = self.bundle.task, self.bundle
        abilities = set[Any]()
        embeds = bundle.backbone.has_attention and not isinstance(task, WritesAnswers)
        abilities |= {"embed"} if embeds else set()
        if task is not None:
            abilities |= {"predict"}
            abilities |= {"logits"} if task.name in ("classify", "multilabel", "regress") else set()
            abilities |= {"fill"} if task.name == "mask_lm" else set()
            if task.name in ("causal_lm", "instruct"):
                abilities |= {"generate", "likelihood"}
            abilities |= {"chat"} if task.name == "instruct" else set()
        labels = getattr(task, "labels", None)
        return Served(
            name=self.name,
            source=f"runs/{self.name}",
            task=None if task is None else task.name,
            version=1,
            model_type=bundle.family.model_type,
            labels=tuple(labels) if labels else None,
            inputs=() if task is None else tuple(task.inputs),
            abilities=frozenset(abilities),
            context_length=None if task is None else task.options.max_length,
            embedding_size=self.embedder.size if embeds else None,
            parameters=sum(p.numel() for p in bundle.model.parameters()),
            loaded=1_700_000_000.5,
            vocab_size=bundle.tokenizer.vocab_size,
        )


class InProcess:
    """What `Service` promises, done at once in the event loop.

    Attributes:
        pieces: of all continuations that were taken.
        closed: continuations that were closed before their end.
        fails_after: pieces after which each continuation fails; None: never.
        failure: how.
        calls: the name of each method that was called, with its model.
    """

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self._held = {name: Held(name, bundle) for name, bundle in bundles.items()}
        self.ready = True
        self.pieces = self.closed = 0
        self.fails_after: int | None = None
        self.failure: Exception = Refusal(503, "worker_died", "The worker died.", retry_after=1)
        self.calls: list[tuple[str, str]] = []

    def held(self, name: str) -> Held:
        return self._held[name]

    def models(self) -> list[Served]:
        return [held.served for held in self._held.values()]

    def model(self, name: str | None) -> Served:
        if not name:
            return self.models()[0]
        if name not in self._held:
            message = f"There is no model '{name}' here; there are: {', '.join(self._held)}."
            raise Refusal(404, "unknown_model", message, param="model")
        return self._held[name].served

    def _asked(self, kind: str, model: str | None) -> Held:
        held = self._held[self.model(model).name]
        self.calls.append((kind, held.name))
        return held

    async def predict(
        self,
        model: str | None,
        inputs: list[Any],
        *,
        top_k: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        predictor = self._asked("predict", model).predictor
        records = self._records(predictor, inputs, options)
        return [
            {**{n: row[n] for n in predictor.task.shown if n in row}, **answer.top(top_k).to_dict()}
            for row, answer in zip(records.rows, predictor.predict(records), strict=True)
        ]

    def _records(
        self, predictor: Predictor, inputs: Sequence[Any], options: Mapping[str, Any] | None
    ) -> Any:
        try:
            records = records_of(predictor.task, inputs, "inputs")
            part = predictor.tokenize(records)
        except PretuneError as error:
            raise invalid(error.message, "inputs") from None
        if (options or {}).get("truncate") is False and part.features and part.features.truncated:
            limit = predictor.task.options.max_length
            raise Refusal(413, "too_long", f"`inputs` must have less than {limit + 1} tokens.")
        return records

    async def logits(
        self,
        model: str | None,
        inputs: list[Any],
        *,
        options: Mapping[str, Any] | None = None,
    ) -> list[list[float]]:
        predictor = self._asked("logits", model).predictor
        return predictor.logits(self._records(predictor, inputs, options))

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
        held = self._asked("embed", model)
        embedder = Embedder(held.bundle, device="cpu", normalize=normalize)
        encoded = held.bundle.tokenizer.encode(texts, max_length=embedder.max_length)
        if not truncate and any(own.truncated for own in encoded):
            message = f"`inputs` must have less than {embedder.max_length + 1} tokens."
            raise Refusal(413, "too_long", message)
        vectors = embedder.embed(texts)[:, :dimensions]
        return Embedded(vectors, sum(len(own.ids) for own in encoded))

    async def generate(
        self,
        model: str | None,
        prompt: Any,
        decoding: Decoding,
        *,
        samples: int = 1,
        template: bool = False,
        top: int = 0,
        open_ended: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        held = self._asked("generate", model)
        generator = held.generator
        if template:
            layout = template_of(held.bundle, always=True)
            assert layout is not None
            ids = list(layout.fitted(prompt, 40).ids)
            if open_ended:
                room = (held.served.context_length or 64) - len(ids)
                decoding = replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room))
        else:
            try:
                ids = generator.prompt(prompt)
            except PretuneError as error:
                raise invalid(error.message, "prompt") from None
        # All at once, and again piece by piece: the same seed draws the same tokens.
        greedy = decoding.temperature == 0
        asked = replace(decoding, samples=1 if greedy else samples)
        wholes = generator.generate([ids], asked)
        written, ended = [0] * len(wholes), False
        try:
            for chunk in generator.stream([ids], asked):
                whole, place = wholes[chunk.sample], written[chunk.sample]
                written[chunk.sample] += 1
                before = [*ids, *whole.tokens[:place]]
                piece = self._piece(held, chunk, whole, place, before, top, len(ids))
                for sample in range(samples) if greedy else (chunk.sample,):
                    if self.fails_after is not None and self.pieces >= self.fails_after:
                        raise self.failure
                    self.pieces += 1
                    yield replace(piece, sample=sample)
                await asyncio.sleep(0.001)
            ended = True
        finally:
            self.closed += not ended

    def _piece(
        self,
        held: Held,
        chunk: Any,
        whole: Any,
        place: int,
        before: list[int],
        top: int,
        prompt_tokens: int,
    ) -> Piece:
        names = TokenBytes(held.bundle.tokenizer)
        # A continuation that every token would have repeated ends without one.
        tokens = whole.tokens[place : place + 1]
        best = None
        if top:
            logits, _ = held.generator.model.start([before])
            scores, ids = logits.float().log_softmax(-1)[0].topk(top)
            pairs = zip(ids.tolist(), scores.tolist(), strict=True)
            best = (tuple((token, names.of(token), score) for token, score in pairs),)
        return Piece(
            chunk.sample,
            chunk.text,
            tokens=tokens,
            logprobs=whole.logprobs[place : place + 1],
            strings=tuple(names.of(token) for token in tokens),
            top=best,
            finish=None if chunk.done is None else chunk.done.finish,
            prompt_tokens=prompt_tokens,
        )

    async def tokenize(
        self, model: str | None, texts: list[str], *, special: bool = True
    ) -> list[list[Token]]:
        tokenizer = self._asked("tokenize", model).bundle.tokenizer
        encoded = [tokenizer.engine.encode(text, add_special_tokens=special) for text in texts]
        return [
            [
                Token(number, text, bool(mask), *(place if place[1] else (None, None)))
                for number, text, mask, place in zip(
                    own.ids, own.tokens, own.special_tokens_mask, own.offsets, strict=True
                )
            ]
            for own in encoded
        ]

    async def fill(
        self,
        model: str | None,
        texts: list[str],
        *,
        top_k: int = 5,
        targets: Sequence[str | int] | None = None,
    ) -> list[list[list[dict[str, Any]]]]:
        try:
            filler = MaskFiller(self._asked("fill", model).predictor)
            return filler.fill(texts, top_k=top_k, targets=targets)
        except PretuneError as error:
            raise invalid(error.message, "inputs") from None

    async def likelihood(self, model: str | None, pairs: list[tuple[str, str]]) -> list[Likelihood]:
        scorer = LikelihoodScorer.of(self._asked("likelihood", model).bundle, device="cpu")
        return scorer.score([scorer.pair(*pair) for pair in pairs])

    async def explain(
        self, model: str | None, inputs: list[Any], *, attention: bool = False
    ) -> list[dict[str, Any]]:
        raise Refusal(422, "unsupported", "This model explains nothing.")

    async def start(self) -> None:
        self.ready = True

    async def close(self, drain: float) -> None:
        self.ready = False
