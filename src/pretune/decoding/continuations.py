"""Continuations of prompts: what is asked for, the pieces as they come, and the whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from pretune.decoding.decoding import Decoding
from pretune.decoding.sampling import generator
from pretune.decoding.text_stream import Detokenizer, StopText
from pretune.tokenizers.tokenizer import Tokenizer

#: The most probable tokens at a place: pairs of a token id and its log-probability, best first.
TopTokens = tuple[tuple[int, float], ...]


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
    """A piece of a continuation.

    Attributes:
        prompt: the number of the prompt, in the order of asking, from 0.
        sample: the number of the continuation, from 0.
        text: the new text; may be empty.
        done: the whole continuation, with its last chunk; None before.
        tokens: the new tokens. Their text may come with a later chunk, or never.
        logprobs: of the new tokens, as in `Generation`.
        top: for each new token the most probable tokens of its place, where they were asked for.
    """

    prompt: int
    sample: int
    text: str
    done: Generation | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[TopTokens, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What to continue."""

    given: str | tuple[int, ...]  # the prompt as it was given
    ids: list[int]  # its tokens
    salt: int = 0  # prompts with different salts draw from independent random generators


def without_blanks(decoding: Decoding, tokenizer: Tokenizer, rows: int) -> Decoding:
    """Let a continuation never have tokens that only fill up a vocabulary, and stand for no text.

    Args:
        decoding: how to continue.
        tokenizer: of what is written.
        rows: V, the length of a row of logits. Some models have more of them than tokens.
    """
    if tokenizer.engine.get_vocab_size(with_added_tokens=True) >= rows:  # quick, and mostly so
        return decoding
    named = {*tokenizer.engine.get_vocab(with_added_tokens=True).values()}
    blank = (row for row in range(rows) if row not in named)
    return replace(decoding, never=(*decoding.never, *blank))


@dataclass(frozen=True)
class WritingRequest:
    """A prompt, and how to continue it.

    Attributes:
        number: in the order of asking, from 0.
        prompt: what to continue.
        decoding: how; its `stop` has all stop texts.
        stops: token ids that end a continuation.
        tag: whatever the asker recognises the request by.
        top_logprobs: how many of the most probable tokens to report for each place.
    """

    number: int
    prompt: Prompt
    decoding: Decoding
    stops: Collection[int]
    tag: Any = None
    top_logprobs: int = 0

    @cached_property
    def choosing(self) -> Decoding:
        """See `Decoding.choosing`."""
        return self.decoding.choosing

    @classmethod
    def of(
        cls,
        number: int,
        prompt: Prompt,
        decoding: Decoding,
        stops: Collection[int],
        stop_texts: Sequence[str],
        **more: Any,
    ) -> Self:
        """Make a request; stop tokens of the decoding replace the model's own tokens and texts.

        Args:
            number: in the order of asking.
            prompt: what to continue.
            decoding: how.
            stops: the model's own stop tokens.
            stop_texts: the model's own stop texts.
            more: `tag`, `top_logprobs`.
        """
        if decoding.stop_tokens is not None:
            stops = decoding.stop_tokens
        elif stop_texts:
            decoding = replace(decoding, stop=(*decoding.stop, *stop_texts))
        return cls(number, prompt, decoding, frozenset(stops), **more)


@dataclass(eq=False)
class Draft:
    """A continuation in progress.

    Attributes:
        request: what it continues, and how.
        sample: its number among the continuations of the request.
        tokenizer: decodes the tokens.
        opening: what every text of the model begins with; see `LanguageModel.opening`.
        finish: why it ended; None: it has not.
    """

    request: WritingRequest
    sample: int
    tokenizer: Tokenizer
    opening: Sequence[int] | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish: str | None = None

    def __post_init__(self) -> None:
        prompt, decoding = self.request.prompt, self.request.decoding
        self.limit = decoding.limit(prompt.ids)
        self.random = generator(decoding.seed, self.sample, prompt.salt)
        self.before = prompt.ids if self.opening is None else self.opening
        self._detokenizer = Detokenizer(self.tokenizer, self.before)
        self._gate = StopText(decoding.stop)

    def take(self, token: int, logprob: float, top: TopTokens = ()) -> TextChunk:
        """Add a token and return the text it completes."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        text = ""
        if token in self.request.stops:
            self.finish = "stop_token"
        else:
            text = self._gate.push(self._detokenizer.push(token))
            if self._gate.found:
                self.finish = "stop_text"
            elif len(self.tokens) == self.limit:
                self.finish = "length"
        asked = (top,) if self.request.top_logprobs else ()
        return self.piece(text, tokens=(token,), logprobs=(logprob,), top=asked)

    def piece(self, text: str = "", score: float | None = None, **new: Any) -> TextChunk:
        """Wrap new text and tokens, with the whole continuation if it has ended."""
        done = None
        if self.finish is not None:
            text += self._gate.rest()
        self.texts.append(text)
        if self.finish is not None:
            text_so_far, given = "".join(self.texts), (self.request.prompt.given, self.sample)
            written = tuple(self.tokens), tuple(self.logprobs)
            done = Generation(*given, text_so_far, self.finish, *written, score)
        return TextChunk(self.request.number, self.sample, text, done, **new)
