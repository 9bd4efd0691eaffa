"""A model in a worker: what it can be asked, and how a request becomes work for it.

Most work is packed: features that are run together with those of other requests, along a `Lane`.
Some is done in steps, one between two batches; continuations are written a token at a time.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretune.bundle.bundle import Bundle, load
from pretune.bundle.task_file import with_options
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.data.readers.conversations import MESSAGES, messages_of
from pretune.data.records import Records
from pretune.decoding.continuations import Prompt
from pretune.decoding.decoding import Decoding
from pretune.decoding.live_batch import LiveBatch
from pretune.decoding.text_stream import TokenBytes
from pretune.errors import (
    CheckpointError,
    DataError,
    NotFiniteError,
    PretuneError,
    did_you_mean,
)
from pretune.evaluation.explain import explain_records
from pretune.inference.embed import Embedder
from pretune.inference.fill import MaskFiller
from pretune.inference.generate import TextGenerator
from pretune.inference.likelihood import LikelihoodScorer
from pretune.inference.predict import Predictor, TokenizedRecords, records_of, shown_inputs
from pretune.inference.prompts import stop_tokens_of, template_of
from pretune.inference.runtime import writing_context
from pretune.serving.identity import digest_of, update_of
from pretune.serving.jobs import (
    Ability,
    Ask,
    Embedded,
    Generate,
    Kind,
    Piece,
    Served,
    Token,
)
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, invalid, over_limit
from pretune.tasks.base import (
    AnyTask,
    CarriesState,
    ReadsStream,
    WritesAnswers,
)
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.dialogue.dialogue import Chat
from pretune.tasks.dialogue.layouts import ConversationLayout, Ends, TurnLayout
from pretune.tasks.masked_lm.mask_lm import MaskLm
from pretune.tasks.sentences import SentenceTask
from pretune.tasks.translation.rewriting import Rewriting

#: Continuations of a model that are written side by side.
LIVE = 32
#: Sequences at a time of a model that writes its answers: it takes as many passes as tokens.
WRITTEN_ROWS = 16
#: Inputs in one step of work that is not packed.
INPUTS_A_STEP = 8
#: Variants of a task, for requests with options of their own, that are kept.
MAX_VARIANTS = 8
#: Yields between two steps, and returns the answer.
Steps = Generator[None, None, Any]
#: Characters of a model card that are kept.
MAX_CARD = 200_000


@dataclass(frozen=True, eq=False)
class Lane:
    """A way to run a model on features, which may come from any number of requests."""

    model: str
    kind: Kind
    run: Callable[[FeatureSet], Sequence[Any]]  # an item for each feature, in their order
    batch_tokens: int  # at a time, unless one feature has more
    whole_records: bool = False  # whether the features of a record have to be run together
    rows: int | None = None  # features at a time; None: as many as have room


@dataclass(eq=False)
class Work:
    """What is to be done for a request."""

    ask: Ask
    received: float  # when the worker got it, by `time.monotonic`
    version: int  # of the model
    tokens: int = 0  # that the model reads
    truncated: int = 0  # texts that were cut
    started: float | None = None  # when the model first ran on it
    compute: float = 0.0  # seconds in batches that it was a part of

    def ran(self, started: float, seconds: float) -> None:
        """Note that the model ran on it."""
        self.started = started if self.started is None else self.started
        self.compute += seconds


@dataclass(eq=False)
class ReadyWork(Work):
    """A request that is answered without the model."""

    value: Any = None


@dataclass(eq=False)
class PackedWork(Work):
    """A request whose features are run together with those of others."""

    lane: Lane = field(kw_only=True)
    features: FeatureSet = field(kw_only=True)
    finish: Callable[[list[Any]], Any] = field(kw_only=True)  # the items of all features -> answer
    items: list[Any] = field(default_factory=list)  # of the features that were run
    attained: int = 0  # tokens of the features that were run

    @property
    def signature(self) -> tuple[object, ...]:
        """What works must have in common to be run together."""
        own = self.features
        return (self.lane, frozenset(own.targets), own.segments is None, own.choices is None)


@dataclass(eq=False)
class StepWork(Work):
    """A request that is answered in steps, each a few inputs."""

    steps: Steps = field(kw_only=True)


@dataclass(eq=False)
class LiveWork(Work):
    """A request whose answer is written token by token."""

    model: HeldModel = field(kw_only=True)
    prompt: Prompt = field(kw_only=True)
    decoding: Decoding = field(kw_only=True)
    stops: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    top: int = 0
    copies: int = 1  # how many times each continuation is told: greedy ones are all the same
    open: int = 1  # continuations that have not ended


class HeldModel:
    """A loaded model with everything that it can be asked.

    Args:
        name: of the model in requests.
        source: where to load it from.
        version: how many times it was loaded, this time included.
        options: of the service.
        folder: where its files are for now, if no longer at its source.

    Raises:
        PretuneError: it cannot be loaded, or cannot be asked for anything.
    """

    def __init__(
        self,
        name: str,
        source: str,
        version: int,
        options: ServeOptions,
        folder: str | None = None,
    ) -> None:
        # Weights are read, not mapped: a file that is overwritten in place must not end a worker.
        bundle = load(folder or source, mmap=False, allow_pickle=options.allow_pickle)
        self.name, self.version, self.bundle, self._options = name, version, bundle, options
        self._tokenizer = bundle.tokenizer
        run: dict[str, Any] = {"device": options.device, "precision": options.precision}
        batch: dict[str, Any] = {**run, "batch_tokens": options.max_batch_tokens}
        self._predictor = None if bundle.task is None else Predictor(bundle, **batch)
        self._embedder = _unless_refused(lambda: _embedder_of(bundle, batch))
        self._generator = _unless_refused(lambda: TextGenerator.of(bundle, template=None, **run))
        self._scorer = None
        if self._generator is not None:
            self._scorer = _unless_refused(lambda: LikelihoodScorer.of(bundle, **run))
        self._layout, self._ends = None, Ends()
        if self._generator is not None and (layout := _unless_refused(lambda: _layout_of(bundle))):
            self._layout, self._ends = layout, layout.ends()
        self._lanes: dict[object, Lane] = {}
        self._variants: dict[int, Predictor] = {}
        self._guard = threading.Lock()  # of the variants
        self._live: LiveBatch | None = None
        self._token_bytes = TokenBytes(self._tokenizer)
        # A tokenizer that reads texts literally is changed while it does: one thread at a time.
        literal = isinstance(bundle.task, WritesAnswers) or self._layout is not None
        self._lock: AbstractContextManager[Any] = threading.RLock() if literal else nullcontext()
        self.served = self._described(source)
        if not self.served.abilities:
            raise PretuneError(
                f"{source}: this {bundle.family.model_type} model can neither answer, embed nor "
                "write",
                "Fine-tune it first: pretune train RECIPE model.from=" + source,
            )

    # What it is.

    def _described(self, source: str) -> Served:
        bundle, task = self.bundle, self.bundle.task
        labels = getattr(task, "labels", None)
        embedder, generator = self._embedder, self._generator
        # The most tokens of a text.
        if generator is not None:
            context = generator.model.context_length
        elif task is not None:
            context = self._longest(task)
        else:
            context = None if embedder is None else embedder.max_length
        settings = None if embedder is None else embedder.settings
        return Served(
            name=self.name,
            source=source,
            task=None if task is None else task.name,
            version=self.version,
            model_type=bundle.family.model_type,
            labels=tuple(labels) if labels else None,
            inputs=() if task is None else tuple(task.inputs),
            abilities=self._abilities(),
            context_length=context,
            embedding_size=None if embedder is None else embedder.size,
            parameters=sum(p.numel() for p in bundle.model.parameters()),
            loaded=time.time(),
            card=_card(bundle.folder),
            prompt_names=() if settings is None else tuple(settings.prompts),
            vocab_size=self._tokenizer.vocab_size,
            step=None if bundle.folder is None else update_of(bundle.folder),
            digest=None if bundle.folder is None else digest_of(bundle.folder),
            max_candidates=task.options.beams if isinstance(task, Rewriting) else 1,
        )

    def _abilities(self) -> frozenset[Ability]:
        task = self.bundle.task
        having: dict[Ability, bool] = {
            "predict": self._predictor is not None,
            "logits": isinstance(task, SentenceTask),
            "embed": self._embedder is not None,
            "generate": self._generator is not None,
            "chat": self._layout is not None,
            "explain": isinstance(task, HasCertainty),
            "fill": isinstance(task, MaskLm),
            "likelihood": self._scorer is not None,
        }
        return frozenset(ability for ability, has in having.items() if has)

    def probe(self) -> None:
        """Ask it something: what is made at the first use is made, and a broken model is seen.

        Raises:
            CheckpointError: it computes numbers that are not finite.
        """
        try:
            self._try()
        except NotFiniteError as error:
            raise CheckpointError(f"{self.served.source}: {error.message}", error.hint) from None

    def _try(self) -> None:
        if self._embedder is not None:
            self._embedder.embed(["a"])
        task = self.bundle.task
        if self._predictor is not None and not isinstance(task, WritesAnswers):
            with suppress(DataError):  # some tasks want more than any text
                rows = [dict.fromkeys(self.served.inputs, "a")]
                self._predictor.predict(records_of(self._predictor.task, rows))
        if self._generator is not None:
            self._generator.generate(["a"], Decoding(max_new_tokens=1, temperature=0))

    # From a request to work.

    def prepare(self, ask: Ask, received: float) -> Work:
        """Tokenize what a request asks; any thread may do it, beside the model.

        Raises:
            PretuneError: an input cannot be used.
            Refusal: the model cannot do that, or a limit is passed.
        """
        make: Callable[[Ask], Work]
        make = {
            "predict": self._predict,
            "logits": self._logits,
            "embed": self._embed,
            "generate": self._generate,
            "tokenize": self._tokenize,
            "fill": self._fill,
            "likelihood": self._likelihood,
            "explain": self._explain,
        }[ask.kind]
        with self._lock:
            work = make(ask)
        limit = self._options.max_request_tokens
        if work.tokens > limit:
            raise over_limit(
                413,
                "max_request_tokens",
                f"The inputs have {work.tokens:,} tokens, and a request may have {limit:,}: send "
                "several requests.",
            )
        work.received = received
        return work

    def _begun(self, ask: Ask) -> dict[str, Any]:
        return {"ask": ask, "received": 0.0, "version": self.version}

    def _unable(self, what: str) -> Refusal:
        known = ", ".join(sorted(self.served.abilities))
        return Refusal(
            422,
            "unsupported",
            f"The model '{self.name}' cannot {what}; it can be asked to: {known}.",
            param="model",
        )

    def _predict(self, ask: Ask) -> Work:
        if self._predictor is None:
            raise self._unable("predict: it was not trained for a task")
        predictor = self._variant(ask.options.get("candidates"))
        part, top_k = self._tokenized(predictor, ask), ask.options.get("top_k")

        def finish(items: list[Any]) -> list[dict[str, Any]]:
            answers = predictor.assembled(part, items)
            return [
                {**shown_inputs(predictor.task, row), **answer.top(top_k).to_dict()}
                for row, answer in zip(part.records.rows, answers, strict=True)
            ]

        task = _answering(predictor.task)
        return self._packed(ask, part, predictor, task.predict, finish)

    def _logits(self, ask: Ask) -> Work:
        predictor = self._predictor
        if predictor is None or not isinstance(predictor.task, SentenceTask):
            raise self._unable("give the scores of labels")
        part = self._tokenized(predictor, ask)

        def read(outputs: torch.Tensor, batch: PackedBatch) -> list[list[float]]:
            rows: list[list[float]] = outputs.float().tolist()
            return rows

        return self._packed(ask, part, predictor, read, lambda items: items)

    def _tokenized(self, predictor: Predictor, ask: Ask) -> TokenizedRecords:
        """Make the inputs of a request ready for a model.

        Raises:
            Refusal: one is longer than the model reads, and the request wants none to be cut.
        """
        records = records_of(predictor.task, ask.payload, "inputs")
        # The service refused what is too long for it; other limits are for mistakes in files.
        longest = max(records.max_chars, self._options.max_chars)
        part = predictor.tokenize(replace(records, max_chars=longest, lines=None))
        cut = 0 if part.features is None else part.features.truncated
        if cut and ask.options.get("truncate") is False:
            raise self._too_long(self._longest(predictor.task), part.records)
        return part

    def _longest(self, task: AnyTask) -> int:
        """Return the most tokens of a text of which a task leaves nothing out."""
        if isinstance(task, SentenceTask):
            return task.reading.longest(self._tokenizer)
        length: int = task.options.max_length
        return length

    def _too_long(self, limit: int, records: Records) -> Refusal:
        message = f"`inputs` must have less than {limit + 1} tokens."
        columns = [
            [records.text(row, name) for row in range(len(records))] for name in records.columns
        ]
        if len(columns) in (1, 2):
            given = max(len(encoded.ids) for encoded in self._tokenizer.encode(*columns))
            message += f" Given: {given}"
        return Refusal(413, "too_long", message, param="inputs")

    def _packed(
        self,
        ask: Ask,
        part: TokenizedRecords,
        predictor: Predictor,
        read: Callable[[Any, PackedBatch], Sequence[Any]],
        finish: Callable[[list[Any]], Any],
    ) -> Work:
        if part.features is None:
            return ReadyWork(**self._begun(ask), value=finish([]))
        own = self._begun(ask)
        own |= {"tokens": int(part.features.starts[-1]), "truncated": part.features.truncated}
        lane = self._lanes.get((ask.kind, predictor))
        if lane is None:
            task = _answering(predictor.task)
            lane = self._lanes[ask.kind, predictor] = Lane(
                self.name,
                ask.kind,
                partial(predictor.items, read=read, task=task),
                predictor.batch_tokens,
                whole_records=self._carries(task, part.features),
                rows=WRITTEN_ROWS if isinstance(task, WritesAnswers) else None,
            )
        return PackedWork(**own, lane=lane, features=part.features, finish=finish)

    def _carries(self, task: AnyTask, features: FeatureSet | None) -> bool:
        """Whether the model goes on from its state after the feature before."""
        if features is None or not isinstance(task, CarriesState):
            return False
        return task.follows(self.bundle.model, features) is not None

    def _variant(self, candidates: int | None) -> Predictor:
        """The predictor for requests that want a number of candidates of each answer."""
        assert self._predictor is not None  # noqa: S101 - the caller checked
        if candidates is None:
            return self._predictor
        with self._guard:
            if candidates not in self._variants:
                # The task as the model was built and bound with it, but for its options.
                task = copy.copy(self._predictor.task)
                task.options = with_options(task, {"candidates": candidates}).options
                variant = copy.copy(self._predictor)
                variant.task = task
                if len(self._variants) == MAX_VARIANTS:
                    oldest = self._variants.pop(next(iter(self._variants)))
                    self._lanes.pop(("predict", oldest), None)
                self._variants[candidates] = variant
            return self._variants[candidates]

    def _embed(self, ask: Ask) -> Work:
        embedder, options = self._embedder, ask.options
        if embedder is None:
            raise self._unable("embed")
        prompt, name = options.get("prompt"), options.get("prompt_name")
        if name is not None:
            known = {} if embedder.settings is None else embedder.settings.prompts
            if name not in known:
                hint = did_you_mean(name, known) if known else "The model names none."
                raise invalid(f"No prompt is called '{name}'. {hint}", "prompt_name")
            prompt = known[name]
        size = options.get("dimensions")
        if size is not None and not 1 <= size <= embedder.size:
            raise invalid(
                f"The vectors of this model have {embedder.size} numbers, so dimensions must be "
                f"from 1 to {embedder.size}, not {size}.",
                "dimensions",
            )
        where = lambda row: f"inputs, row {row + 1}"  # noqa: E731
        features, left_out = embedder.tokenize(ask.payload, prompt, where=where)
        if features.truncated and options.get("truncate") is False:
            rows = [{"text": (prompt or "") + text} for text in ask.payload]
            raise self._too_long(embedder.max_length, Records(rows, "inputs", columns=("text",)))
        tokens = int(features.starts[-1])

        def finish(items: list[Any]) -> Embedded:
            pooled = torch.from_numpy(np.stack(items))
            normalize = options.get("normalize")
            return Embedded(embedder.finished(pooled, normalize=normalize, size=size), tokens)

        lane = self._lanes.get(("embed", left_out))
        if lane is None:
            run = lambda given: list(embedder.pooled(given, left_out).numpy())  # noqa: E731
            lane = Lane(self.name, "embed", run, embedder.batch_tokens)
            self._lanes["embed", left_out] = lane
        own = {**self._begun(ask), "tokens": tokens, "truncated": features.truncated}
        return PackedWork(**own, lane=lane, features=features, finish=finish)

    def _tokenize(self, ask: Ask) -> Work:
        tokenizer, texts = self._tokenizer, list(ask.payload)
        if not ask.options.get("special", True):
            bare = tokenizer.encode_bare(texts)
            encoded = [(own.ids, own.offsets, own.special_tokens_mask) for own in bare]
        else:
            names = {tokenizer.special_id(name) for name in tokenizer.special}
            encoded = [
                (own.ids, own.offsets, [int(token in names) for token in own.ids])
                for own in tokenizer.encode(texts)
            ]
        tokens = [
            [
                Token(number, text, bool(special), *(place if place[1] else (None, None)))
                for number, text, special, place in zip(
                    ids, tokenizer.tokens(ids), mask, places, strict=True
                )
            ]
            for ids, places, mask in encoded
        ]
        return ReadyWork(**self._begun(ask), tokens=sum(map(len, tokens)), value=tokens)

    # In steps.

    def _fill(self, ask: Ask) -> Work:
        if self._predictor is None or not isinstance(self._predictor.task, MaskLm):
            raise self._unable("fill gaps")
        filler, texts, options = MaskFiller(self._predictor), ask.payload, ask.options
        # A text that cannot be used is told by its place among all of them.
        part = self._tokenized(self._predictor, ask)

        def steps() -> Steps:
            filled: list[Any] = []
            for start in range(0, len(texts), INPUTS_A_STEP):
                filled += filler.fill(texts[start : start + INPUTS_A_STEP], **options)
                yield
            return filled

        tokens = 0 if part.features is None else int(part.features.starts[-1])
        return StepWork(**self._begun(ask), tokens=tokens, steps=self._locked(steps()))

    def _likelihood(self, ask: Ask) -> Work:
        scorer = self._scorer
        if scorer is None:
            raise self._unable("say how probable a continuation is")
        pairs = [scorer.pair(context, text) for context, text in ask.payload]
        limit = scorer.model.context_length
        longest = max(pair.length for pair in pairs)
        if limit is not None and longest > limit:
            raise Refusal(
                413,
                "too_long",
                f"A context with its continuation has {longest:,} tokens, and the model reads "
                f"{limit:,}.",
                param="inputs",
            )

        def steps() -> Steps:
            scored: list[Any] = []
            for start in range(0, len(pairs), INPUTS_A_STEP):
                scored += scorer.score(pairs[start : start + INPUTS_A_STEP])
                yield
            return scored

        tokens = sum(pair.length for pair in pairs)
        return StepWork(**self._begun(ask), tokens=tokens, steps=steps())

    def _explain(self, ask: Ask) -> Work:
        predictor = self._predictor
        if predictor is None or not isinstance(predictor.task, HasCertainty):
            raise self._unable("explain its answers")
        part, attention = self._tokenized(predictor, ask), bool(ask.options.get("attention"))
        features, whole = part.features, self._carries(predictor.task, part.features)

        def steps() -> Steps:
            items: list[Any] = []
            # The answers, some sequences at a time; then each sequence is explained by itself.
            if features is not None:
                size = len(features) if whole else WRITTEN_ROWS
                for start in range(0, len(features), size):
                    some = features.part(start, min(start + size, len(features)))
                    items += predictor.items(some, part.task.predict, task=part.task)
                    yield
            explained = yield from explain_records(self.bundle, part, attention=attention)
            answers = predictor.assembled(part, items)
            return [
                {
                    "answer": {**shown_inputs(predictor.task, row), **answer.top(None).to_dict()},
                    **own.to_dict(),
                }
                for row, answer, own in zip(part.records.rows, answers, explained, strict=True)
            ]

        tokens = 0 if features is None else int(features.starts[-1])
        return StepWork(**self._begun(ask), tokens=tokens, steps=steps())

    def _locked(self, steps: Steps) -> Steps:
        """Run steps that tokenize, while no other thread does with this model."""
        while True:
            with self._lock:
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value
            yield

    # Token by token.

    def _generate(self, ask: Ask) -> Work:
        generator, payload = self._generator, ask.payload
        assert isinstance(payload, Generate)  # noqa: S101 - the service made it
        if generator is None:
            raise self._unable("write")
        decoding: Decoding = payload.decoding
        if decoding.beams > 1:
            raise invalid("A search (beams) is not written token by token: leave out beams.")
        messages = payload.prompt
        laid_out = payload.template or _is_messages(messages)
        stops, stop_texts = stop_tokens_of(self.bundle), tuple[str, ...]()
        if laid_out:
            if self._layout is None:
                raise self._unable("chat: it has no chat template")
            ids, room = self._history(self._layout, payload)
            if payload.open_ended:
                decoding = replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room))
            stops, stop_texts = stops | self._ends.tokens, self._ends.texts
        else:
            ids = generator.prompt(messages)
        # Greedy continuations are all the same: one is written.
        several = payload.samples if not decoding.greedy else 1
        return LiveWork(
            **self._begun(ask),
            tokens=len(ids),
            model=self,
            prompt=Prompt("", ids),
            decoding=replace(decoding, samples=several),
            stops=frozenset(stops),
            stop_texts=stop_texts,
            top=payload.top,
            copies=payload.samples // several,
            open=several,
        )

    def _history(self, layout: ConversationLayout, payload: Generate) -> tuple[list[int], int]:
        """Lay out messages as `pretune chat` does: of a long conversation the last ones.

        Returns:
            the tokens, and how many more the model can read after them.

        Raises:
            DataError: a message is none.
            Refusal: the last message alone is longer than what the model reads.
        """
        given = payload.prompt
        messages = given if _is_messages(given) else [{"role": "user", "content": given}]
        rows, longest = [{MESSAGES: list(messages)}], self._options.max_chars
        talk = messages_of(Records(rows, "messages", columns=(MESSAGES,), max_chars=longest), 0)
        if talk[-1]["role"] != "user":
            raise invalid("The last message has to be the user's.", "messages")
        trained = None if self.bundle.task is None else self.bundle.task.options.max_length
        assert self._generator is not None  # noqa: S101 - the caller checked
        limits = [self._generator.model.context_length, trained]
        window = min((limit for limit in limits if limit is not None), default=1024)
        # An open-ended reply has as much room as is kept for others, or what a long message leaves.
        asked = payload.decoding.max_new_tokens
        kept = min(Decoding.max_new_tokens if payload.open_ended else asked, window // 2)
        read = layout.fitted(talk, window - kept)
        if read.cut and payload.open_ended:
            kept = 1
            read = layout.fitted(talk, window - kept)
        if read.cut:
            raise Refusal(
                413,
                "too_long",
                f"The last message is longer than the {window - kept:,} tokens that the model "
                f"reads before it writes {kept:,}.",
                param="messages",
            )
        return list(read.ids), window - len(read.ids)

    @property
    def live(self) -> LiveBatch:
        """The continuations that are being written; made when it is first asked for."""
        if self._live is None:
            assert self._generator is not None  # noqa: S101 - whoever has work for it
            device = self._generator.device
            self._live = LiveBatch(
                self._generator.model,
                self._tokenizer.written,
                device=device,
                context=partial(writing_context, device, self._options.precision),
                batch_size=LIVE,
            )
        return self._live

    def reset_live(self) -> None:
        """Drop all continuations, after an error."""
        self._live = None

    def piece(self, work: LiveWork, chunk: Any) -> Piece:
        """Make the piece that a client gets of a `TextChunk`."""
        name = self._token_bytes.of
        top = None
        if work.top:
            top = tuple(
                tuple((token, name(token), logprob) for token, logprob in best)
                for best in chunk.top
            )
        return Piece(
            chunk.sample,
            chunk.text,
            tokens=chunk.tokens,
            logprobs=chunk.logprobs,
            strings=tuple(map(name, chunk.tokens)),
            top=top,
            finish=None if chunk.done is None else chunk.done.finish,
            prompt_tokens=work.tokens,
        )


def _answering(task: AnyTask) -> AnyTask:
    """The task as it answers: each record by itself."""
    return task.isolated() if isinstance(task, ReadsStream) else task


def _is_messages(prompt: object) -> bool:
    """Whether a prompt is messages, rather than a text or tokens."""
    return not isinstance(prompt, str) and any(not isinstance(item, int) for item in prompt)  # type: ignore[attr-defined]


def _layout_of(bundle: Bundle) -> ConversationLayout | None:
    """How messages become tokens; None where the model cannot chat."""
    if isinstance(bundle.task, Chat):
        return None if bundle.task.options.reverse else TurnLayout.of(bundle.tokenizer)
    return template_of(bundle, always=True)


def _embedder_of(bundle: Bundle, options: Mapping[str, Any]) -> Embedder:
    """Return what embeds texts; a PretuneError where the model has no vectors of single texts."""
    embedder = Embedder(bundle, **options)
    embedder.embed(["a"])
    return embedder


def _unless_refused(make: Callable[[], Any]) -> Any:
    """Return what is made; None where the model is not one for that."""
    try:
        return make()
    except PretuneError:
        return None


def _card(folder: Path | None) -> str | None:
    """Return the model card in a model's folder, or in the run's that it belongs to."""
    if folder is None:
        return None
    for place in (folder, folder.parent):
        try:
            with (place / "README.md").open(encoding="utf-8", errors="replace") as file:
                return file.read(MAX_CARD)
        except OSError:
            continue
    return None
