"""Writing: tokens in, continuations out, as they come; by drawing or by a beam search."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pretune.decoding.beam_search import BeamSearch, Candidates
from pretune.decoding.sampling import NEVER, Decoding, draw, generator, narrow, penalize
from pretune.decoding.sequence_reader import Reader
from pretune.decoding.text_stream import Detokenizer, StopText, continuation
from pretune.models.language_model import LanguageModel
from pretune.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generation:
    """One continuation of a prompt.

    Attributes:
        prompt: as it was given.
        sample: which continuation of it, from 0.
        text: what follows the prompt; without a stop text, and without half a character at its end.
        finish: why it ended: `stop_token`, `stop_text`, `length` (max_new_tokens) or `exhausted`
            (every token would have repeated an n-gram).
        tokens: the tokens that were generated, the stop token or those of the stop text included.
        logprobs: natural logarithm of the probability that the model gave each token, before
            penalties, temperature and filters.
        score: what a search compares: the sum of log-probabilities (after penalties) over
            length**length_penalty; None where there was no search.
    """

    prompt: str | tuple[int, ...]
    sample: int
    text: str
    finish: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float | None = None

    @property
    def logprob(self) -> float:
        """Of the whole continuation: the sum."""
        return sum(self.logprobs)

    def mean_logprob(self, length_penalty: float = 1.0) -> float:
        """`score`; where there was no search, the same of the model's own log-probabilities."""
        if self.score is not None:
            return self.score
        return self.logprob / float(max(1, len(self.tokens)) ** length_penalty)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the sum of the log-probabilities."""
        return {**asdict(self), "logprob": self.logprob}


@dataclass(frozen=True)
class Piece:
    """Some more text of one continuation.

    Attributes:
        prompt: which prompt, from 0.
        sample: which continuation of it, from 0.
        text: what is new; may be empty.
        done: the whole continuation, with its last piece; None before.
    """

    prompt: int
    sample: int
    text: str
    done: Generation | None = None


@dataclass(frozen=True)
class Prompt:
    """What to go on from.

    Attributes:
        given: as it was given.
        ids: its tokens.
        salt: another one than another prompt's where what is drawn for the two shall be unlike.
    """

    given: str | tuple[int, ...]
    ids: list[int]
    salt: int = 0


@dataclass
class _Draft:
    """A continuation that is being written."""

    prompt: int
    sample: int
    whole: Prompt
    decoding: Decoding
    stops: Collection[int]
    tokenizer: Tokenizer
    opening: Sequence[int] | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish: str | None = None

    def __post_init__(self) -> None:
        self.ids = self.whole.ids
        self.limit = self.decoding.limit(self.ids)
        self.random = generator(self.decoding.seed, self.sample, self.whole.salt)
        self.before = self.ids if self.opening is None else self.opening
        self._detokenizer = Detokenizer(self.tokenizer, self.before)
        self._gate = StopText(self.decoding.stop)

    def take(self, token: int, logprob: float) -> Piece:
        """Add a token."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        text = ""
        if token in self.stops:
            self.finish = "stop_token"
        else:
            text = self._gate.push(self._detokenizer.push(token))
            if self._gate.found:
                self.finish = "stop_text"
            elif len(self.tokens) == self.limit:
                self.finish = "length"
        return self.piece(text)

    def piece(self, text: str = "", score: float | None = None) -> Piece:
        """What is new; with the whole where it has ended."""
        done = None
        if self.finish is not None:
            text += self._gate.rest()
        self.texts.append(text)
        if self.finish is not None:
            done = Generation(
                self.whole.given,
                self.sample,
                "".join(self.texts),
                self.finish,
                tuple(self.tokens),
                tuple(self.logprobs),
                score,
            )
        return Piece(self.prompt, self.sample, text, done)


class Writer:
    """A model that goes on from tokens.

    Args:
        model: on `device`, in evaluation mode.
        tokenizer: makes text of tokens.
        device: where the model is.
        batch_size: continuations at a time; changes memory and speed only.
        stop_tokens: at which a continuation ends.
        stop_texts: at which one ends, too; they are not part of it. `stop_tokens` of a `Decoding`
            stand for all of the model's own ends, these among them.
        context: entered whenever the model runs, e.g. for bf16.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        batch_size: int = 16,
        stop_tokens: Collection[int] = (),
        stop_texts: Sequence[str] = (),
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self._batch_size = max(1, batch_size)
        self._stop_tokens, self._stop_texts = frozenset(stop_tokens), tuple(stop_texts)
        self._context = context

    def write(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Generation]:
        """All continuations: those of the first prompt, those of the second, ..."""
        pieces = (piece for piece in self.stream(prompts, decoding) if piece.done is not None)
        ordered = sorted(pieces, key=lambda piece: (piece.prompt, piece.sample))
        return [piece.done for piece in ordered if piece.done is not None]

    @torch.inference_mode()
    def stream(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[Piece]:
        """Continuations piece by piece, as they come; those of several prompts take turns."""
        stops = self._stop_tokens
        if decoding.stop_tokens is not None:
            stops = frozenset(decoding.stop_tokens)
        else:
            decoding = replace(decoding, stop=(*decoding.stop, *self._stop_texts))
        drafts = [
            _Draft(index, sample, prompt, decoding, stops, self.tokenizer, self.model.opening)
            for index, prompt in enumerate(prompts)
            for sample in range(decoding.samples)
        ]
        write = self._search if decoding.beams > 1 else self._write
        yield from write(drafts, decoding)

    def _reader(self) -> Reader:
        return Reader(self.model, self.device, self._context)

    def _write(self, drafts: Sequence[_Draft], decoding: Decoding) -> Iterator[Piece]:
        """Token by token; what has ended leaves the batch, and others take its place."""
        reader = self._reader()
        waiting, live = deque(drafts), list[_Draft]()
        while waiting or live:
            # Room is made by the half batch: each admission copies the state of those at work.
            if waiting and len(live) <= self._batch_size // 2:
                room = min(self._batch_size - len(live), len(waiting))
                admitted = [waiting.popleft() for _ in range(room)]
                _admit(reader, admitted)
                live += admitted
            tokens, logprobs, exhausted = _choose(reader, live, decoding)
            for draft, token, logprob, none_left in zip(
                live, tokens, logprobs, exhausted, strict=True
            ):
                if none_left:
                    draft.finish = "exhausted"
                    yield draft.piece()
                else:
                    yield draft.take(token, logprob)
            going = [i for i, draft in enumerate(live) if draft.finish is None]
            live = [live[i] for i in going]
            reader.keep(going)
            if live:
                reader.feed([draft.tokens[-1] for draft in live])

    def _search(self, drafts: Sequence[_Draft], decoding: Decoding) -> Iterator[Piece]:
        """A beam search for each prompt, several side by side."""
        first = [draft for draft in drafts if draft.sample == 0]
        size = max(1, self._batch_size // decoding.beams)
        for start in range(0, len(first), size):
            chunk = first[start : start + size]
            for draft, search in zip(chunk, self._searched(chunk, decoding), strict=True):
                best = search.finished[: decoding.samples]
                for sample, found in enumerate(best):
                    mine = drafts[draft.prompt * decoding.samples + sample]
                    text = ""
                    for token, logprob in zip(found.tokens, found.logprobs, strict=True):
                        text += mine.take(token, logprob).text
                    mine.finish, mine.texts = found.stopped, [text]
                    piece = mine.piece(score=found.score)
                    yield Piece(piece.prompt, piece.sample, text + piece.text, piece.done)

    def _searched(self, drafts: Sequence[_Draft], decoding: Decoding) -> list[BeamSearch]:
        reader = self._reader()
        reader.add([draft.ids for draft in drafts], [1] * len(drafts))
        searches = [
            BeamSearch(
                decoding.beams,
                decoding.length_penalty,
                decoding.early_stopping,
                len(draft.stops),
                partial(_ending, draft),
            )
            for draft in drafts
        ]
        active = searches
        while active:
            own = reader.logits.log_softmax(-1)
            scores = penalize(own, reader.histories, decoding)
            best = Candidates.of(scores, own, max(search.candidates for search in active))
            rows, tokens, start = list[int](), list[int](), 0
            for search in active:
                end = start + len(search.live)
                origins = search.advance(best.rows(start, end))
                if not search.done:
                    rows += [start + origin for origin in origins]
                    tokens += [hypothesis.tokens[-1] for hypothesis in search.live]
                start = end
            active = [search for search in active if not search.done]
            if active:
                reader.keep(rows)
                reader.feed(tokens)
        return searches


def _admit(reader: Reader, drafts: Sequence[_Draft]) -> None:
    """Begin drafts; samples of one prompt share its reading."""
    prompts, copies = list[list[int]](), list[int]()
    for i, draft in enumerate(drafts):
        if i and draft.prompt == drafts[i - 1].prompt:
            copies[-1] += 1
        else:
            prompts.append(draft.ids)
            copies.append(1)
    reader.add(prompts, copies)


def _choose(
    reader: Reader, drafts: Sequence[_Draft], decoding: Decoding
) -> tuple[list[int], list[float], list[bool]]:
    """The next token of each, its log-probability, and whether none was left to choose."""
    logits = reader.logits
    scores = penalize(logits, reader.histories, decoding)
    exhausted = [False] * len(drafts)
    if decoding.no_repeat_ngram:
        none_left = (scores == NEVER).all(-1)
        exhausted = none_left.tolist()
        scores = torch.where(none_left[:, None], logits, scores)
    if decoding.greedy:
        chosen = scores.argmax(-1)
    else:
        uniform = [draft.random.random() for draft in drafts]
        chosen = draw(narrow(scores, decoding), uniform)
    logprobs: Tensor = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    return chosen.tolist(), logprobs.tolist(), exhausted


def _ending(draft: _Draft, tokens: Sequence[int]) -> str | None:
    """Why a continuation of a draft's prompt would end with its last token, or None."""
    if tokens[-1] in draft.stops:
        return "stop_token"
    if draft.decoding.stop:
        text = continuation(draft.tokenizer, draft.before, tokens)
        if any(stop in text for stop in draft.decoding.stop):
            return "stop_text"
    return "length" if len(tokens) == draft.limit else None
