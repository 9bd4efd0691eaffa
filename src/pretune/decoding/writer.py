"""Text generation: prompts in, continuations out as they come, by sampling or beam search."""

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
from pretune.decoding.sequence_reader import SequenceReader
from pretune.decoding.text_stream import Detokenizer, StopText, continuation
from pretune.models.language_model import LanguageModel
from pretune.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generation:
    """One continuation of a prompt.

    Attributes:
        prompt: as it was given.
        sample: the number of this continuation of the prompt, from 0.
        text: what follows the prompt, without a stop text and without an incomplete character.
        finish: why it ended: `stop_token`, `stop_text`, `length` (max_new_tokens), `exhausted`
            (every token would have repeated an n-gram) or `blank` (the line had no prompt).
        tokens: the generated tokens, including a stop token or the tokens of a stop text.
        logprobs: natural logarithm of the probability that the model gave each token, before
            penalties, temperature and filters.
        score: the value that a search compares: the sum of log-probabilities after penalties, over
            length**length_penalty; None without a search.
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
        """The sum over all tokens."""
        return sum(self.logprobs)

    def mean_logprob(self, length_penalty: float = 1.0) -> float:
        """`score`, or without a search the same formula on the model's log-probabilities."""
        if self.score is not None:
            return self.score
        return self.logprob / float(max(1, len(self.tokens)) ** length_penalty)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, with the sum of the log-probabilities."""
        return {**asdict(self), "logprob": self.logprob}


@dataclass(frozen=True)
class TextChunk:
    """A piece of the text of a continuation."""

    prompt: int  # the number of the prompt, from 0
    sample: int  # the number of the continuation, from 0
    text: str  # the new text; may be empty
    done: Generation | None = None  # the whole continuation, with its last chunk; None before


@dataclass(frozen=True)
class Prompt:
    """What to continue."""

    given: str | tuple[int, ...]  # the prompt as it was given
    ids: list[int]  # its tokens
    salt: int = 0  # prompts with different salts draw from independent random generators


@dataclass
class _Draft:
    """A continuation in progress."""

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

    def take(self, token: int, logprob: float) -> TextChunk:
        """Add a token and return the text it completes."""
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

    def piece(self, text: str = "", score: float | None = None) -> TextChunk:
        """Wrap new text, together with the whole continuation if it has ended."""
        done = None
        if self.finish is not None:
            text += self._gate.rest()
        self.texts.append(text)
        if self.finish is not None:
            text_so_far, given = "".join(self.texts), (self.whole.given, self.sample)
            written = tuple(self.tokens), tuple(self.logprobs)
            done = Generation(*given, text_so_far, self.finish, *written, score)
        return TextChunk(self.prompt, self.sample, text, done)


class Writer:
    """Generates text with a language model.

    Args:
        model: on `device`, in evaluation mode.
        tokenizer: decodes the tokens.
        device: where the model is.
        batch_size: continuations at a time; affects memory and speed only.
        stop_tokens: token ids that end a continuation.
        stop_texts: texts that end a continuation and are not part of it. If a `Decoding` has
            `stop_tokens`, those replace both.
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
        """Generate all continuations, ordered by prompt and then by sample."""
        pieces = (piece for piece in self.stream(prompts, decoding) if piece.done is not None)
        ordered = sorted(pieces, key=lambda piece: (piece.prompt, piece.sample))
        return [piece.done for piece in ordered if piece.done is not None]

    @torch.inference_mode()
    def stream(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[TextChunk]:
        """Generate continuations and yield their text as it comes; several prompts take turns."""
        # Stop tokens of the request replace the model's own stop tokens and texts.
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

    def _write(self, drafts: Sequence[_Draft], decoding: Decoding) -> Iterator[TextChunk]:
        """Sample token by token. Finished drafts leave the batch and waiting ones join it."""
        reader = SequenceReader(self.model, self.device, self._context)
        waiting, live = deque(drafts), list[_Draft]()
        while waiting or live:
            # Admit only when half the batch is free: each admission copies the state of the rest.
            if waiting and len(live) <= self._batch_size // 2:
                room = min(self._batch_size - len(live), len(waiting))
                admitted = [waiting.popleft() for _ in range(room)]
                _admit(reader, admitted)
                live += admitted
            # One token for each draft.
            tokens, logprobs, exhausted = _choose(reader, live, decoding)
            for draft, token, logprob, none_left in zip(
                live, tokens, logprobs, exhausted, strict=True
            ):
                if none_left:
                    draft.finish = "exhausted"
                    yield draft.piece()
                else:
                    yield draft.take(token, logprob)
            # Drop what has ended, and read the new tokens.
            going = _remaining([draft.finish is not None for draft in live])
            live = [live[i] for i in going]
            reader.keep(going)
            if live:
                reader.feed([draft.tokens[-1] for draft in live])

    def _search(self, drafts: Sequence[_Draft], decoding: Decoding) -> Iterator[TextChunk]:
        """Run a beam search for each prompt, several at a time."""
        first = [draft for draft in drafts if draft.sample == 0]
        size = max(1, self._batch_size // decoding.beams)
        for start in range(0, len(first), size):
            chunk = first[start : start + size]
            for draft, search in zip(chunk, self._searched(chunk, decoding), strict=True):
                best = search.finished[: decoding.samples]
                for sample, hypothesis in enumerate(best):
                    mine = drafts[draft.prompt * decoding.samples + sample]
                    text = ""
                    for token, logprob in zip(hypothesis.tokens, hypothesis.logprobs, strict=True):
                        text += mine.take(token, logprob).text
                    mine.finish, mine.texts = hypothesis.stopped, [text]
                    piece = mine.piece(score=hypothesis.score)
                    yield TextChunk(piece.prompt, piece.sample, text + piece.text, piece.done)

    def _searched(self, drafts: Sequence[_Draft], decoding: Decoding) -> list[BeamSearch]:
        """Run the searches of some drafts in one batch."""
        reader = SequenceReader(self.model, self.device, self._context)
        reader.add([draft.ids for draft in drafts], [1] * len(drafts))
        searches = [
            BeamSearch(
                *(decoding.beams, decoding.length_penalty, decoding.early_stopping),
                *(len(draft.stops), partial(_ending, draft)),
            )
            for draft in drafts
        ]
        active = searches
        while active:
            # The live hypotheses of all searches are the rows of one batch: their best next tokens.
            own = reader.logits.log_softmax(-1)
            scores = penalize(own, reader.histories, decoding)
            best = Candidates.of(scores, own, max(search.candidates for search in active))
            rows, tokens, start = list[int](), list[int](), 0
            # Each search extends its own rows, and keeps those it continues.
            for search in active:
                end = start + len(search.live)
                origins = search.advance(best.rows(start, end))
                if not search.done:
                    rows += [start + origin for origin in origins]
                    tokens += [hypothesis.tokens[-1] for hypothesis in search.live]
                start = end
            # Searches that are done leave the batch.
            active = [search for search in active if not search.done]
            if active:
                reader.keep(rows)
                reader.feed(tokens)
        return searches


def _admit(reader: SequenceReader, drafts: Sequence[_Draft]) -> None:
    """Start drafts; the samples of a prompt read it once."""
    prompts, copies = list[list[int]](), list[int]()
    for i, draft in enumerate(drafts):
        if i and draft.prompt == drafts[i - 1].prompt:
            copies[-1] += 1
        else:
            prompts.append(draft.ids)
            copies.append(1)
    reader.add(prompts, copies)


def _remaining(ended: Sequence[bool]) -> list[int]:
    """Rows that go on, the last ones in the places of those that ended: few states move."""
    count = len(ended) - sum(ended)
    last = [row for row in range(count, len(ended)) if not ended[row]]
    return [last.pop() if ended[row] else row for row in range(count)]


def _choose(
    reader: SequenceReader, drafts: Sequence[_Draft], decoding: Decoding
) -> tuple[list[int], list[float], list[bool]]:
    """Choose the next token of each draft: token, log-probability, and whether none is allowed."""
    logits = reader.logits
    scores = penalize(logits, reader.histories, decoding)
    # With n-grams forbidden, every token may be: such drafts end, whatever is chosen for them.
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
    # The log-probability is the model's own, before penalties and filters.
    logprobs: Tensor = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    return chosen.tolist(), logprobs.tolist(), exhausted


def _ending(draft: _Draft, tokens: Sequence[int]) -> str | None:
    """Why a continuation with these tokens ends at its last one; None: it does not."""
    if tokens[-1] in draft.stops:
        return "stop_token"
    if draft.decoding.stop:
        text = continuation(draft.tokenizer, draft.before, tokens)
        if any(stop in text for stop in draft.decoding.stop):
            return "stop_text"
    return "length" if len(tokens) == draft.limit else None
