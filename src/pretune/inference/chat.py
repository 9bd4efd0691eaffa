"""Conversations with a language model: the history it reads, and replies piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pretune.bundle.bundle import Bundle
from pretune.data.readers.conversations import MESSAGES
from pretune.decoding.continuations import Generation
from pretune.decoding.decoding import Decoding
from pretune.errors import DataError, PretuneError
from pretune.inference.generate import TextGenerator
from pretune.inference.likelihood import LikelihoodScorer, Pair
from pretune.inference.prompts import template_of
from pretune.tasks.dialogue.dialogue import TURNS, Chat, ChatOptions, Instruct
from pretune.tasks.dialogue.layouts import ConversationLayout, Fitted, TurnLayout
from pretune.tasks.dialogue.replies import ReplyOptions
from pretune.text.decode import SURROGATE

#: The maximum number of replies that a reranker chooses from.
MAX_CANDIDATES = 10_000


@dataclass(frozen=True)
class ReplyPart:
    """A piece of a reply."""

    text: str  # the new text; may be empty
    done: Generation | None = None  # the whole reply in the last piece; None in those before


class Reranker:
    """Scores replies by maximum mutual information: how probable they make the history.

    The score is log p(history | reply) by a model that was trained on dialogues backwards (Li et
    al. 2016, section 4.2, MMI-bidi; Zhang et al. 2020, section 3.3).

    Args:
        bundle: a model trained by the task `chat` with `reverse`.
        options: further arguments of `Prompted`, e.g. `device`.

    Raises:
        PretuneError: the model was trained for something else.
    """

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        trained = None if bundle.task is None else bundle.task.options
        if not isinstance(trained, ChatOptions) or not trained.reverse:
            raise PretuneError(
                "this model was not trained on dialogues backwards, so it cannot score replies",
                "Train one with: pretune train chat-zh-mmi (task.reverse=true).",
            )
        self._scorer = LikelihoodScorer.of(bundle, **options)
        self._layout = TurnLayout.of(bundle.tokenizer)
        limit = self._scorer.model.context_length
        self._room = trained.max_length if limit is None else min(limit, trained.max_length)

    def scores(self, history: Sequence[str], replies: Sequence[str]) -> list[float]:
        """Compute log p(history | reply) of each reply, in nats.

        Args:
            history: the turns so far, oldest first. Of a long history the end is scored, the same
                tokens for all replies; with an empty history all scores are 0.
            replies: the candidates. Of a long reply only the beginning is read, at most half the
                window.
        """
        if not history or not replies:
            return [0.0] * len(replies)
        # Replies are the contexts here, each cut so that half the window is left to the history.
        longest = max(1, (self._room - len(self._layout.begin)) // 2)
        contexts = [
            (*self._layout.begin, *turn[:longest]) for turn in self._layout.turns([*replies])
        ]
        # The history backwards, the last turn first, until the window is full.
        room = self._room + 1 - max(map(len, contexts))
        backwards: list[int] = []
        for turn in self._layout.backwards(history):
            backwards += turn
            if len(backwards) >= room:
                break
        pairs = [Pair(context, tuple(backwards[:room])) for context in contexts]
        return [likelihood.total for likelihood in self._scorer.score(pairs)]


def usual_decoding(bundle: Bundle) -> Decoding:
    """Return the decoding settings that a model's task has for replies; else the defaults."""
    trained = None if bundle.task is None else bundle.task.options
    return trained.decoding if isinstance(trained, ReplyOptions) else Decoding()


class Conversation:
    """Messages of a person and replies of a model, in turn.

    Args:
        bundle: a language model with its tokenizer.
        decoding: how replies are written; default: `usual_decoding`.
        reranker: picks the best of several candidates for each reply; None: the only one is taken.
        candidates: the number of candidates for the reranker, up to `MAX_CANDIDATES`.
        options: further arguments of `TextGenerator`, e.g. `device`.

    Attributes:
        turns: the texts so far, oldest first; the first, the third, ... are the person's.

    Raises:
        RunError: the model is not a language model.
        PretuneError: the settings make no sense, by themselves or with a reranker.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoding: Decoding | None = None,
        *,
        reranker: Reranker | None = None,
        candidates: int = 1,
        **options: Any,
    ) -> None:
        template = None if isinstance(bundle.task, Chat) else template_of(bundle, always=True)
        self._writer = TextGenerator.of(bundle, template=template, **options)
        self._layout: ConversationLayout = template or TurnLayout.of(bundle.tokenizer)
        trained = None if bundle.task is None else bundle.task.options
        if isinstance(trained, ChatOptions) and trained.reverse:
            raise PretuneError(
                "this model was trained on dialogues backwards: it scores replies, and gives none",
                "Name it with --mmi, and as RUN one that was trained on dialogues as they are.",
            )
        self._reranker, self._candidates = reranker, candidates
        self.decoding = usual_decoding(bundle) if decoding is None else decoding
        self._instruct = bundle.task if isinstance(bundle.task, Instruct) else None
        length = self._writer.model.context_length
        limits = [n for n in (length, trained.max_length if trained else None) if n is not None]
        self._window = min(limits, default=1024)
        self.turns: list[str] = []

    @property
    def decoding(self) -> Decoding:
        """How replies are written; may be changed between two messages."""
        return self._decoding

    @decoding.setter
    def decoding(self, value: Decoding) -> None:
        if self._reranker is not None:
            _check_candidates(self._candidates, value)
        self._decoding = value

    @property
    def record(self) -> dict[str, Any]:
        """The conversation as the model's task reads it from a file, JSON-ready."""
        if self._instruct is None:
            return {TURNS: [*self.turns]}
        system = self._instruct.options.system
        roles = [("user", "assistant")[i % 2] for i in range(len(self.turns))]
        messages = [*zip(roles, self.turns, strict=True)]
        if system is not None:
            messages.insert(0, ("system", system))
        return {MESSAGES: [{"role": role, "content": text} for role, text in messages]}

    def reset(self) -> None:
        """Begin a new conversation."""
        self.turns = []

    def fit(self, message: str) -> Fitted:
        """Return the tokens that the model reads to answer a message."""
        if not message.strip():
            raise DataError("an empty message", "Write something.")
        if (half := SURROGATE.search(message)) is not None:
            raise DataError(f"message: not valid Unicode (at character {half.start() + 1})")
        kept = min(self.decoding.max_new_tokens, self._window // 2)
        return self._layout.history([*self.turns, message], self._window - kept)

    def say(self, message: str) -> Generator[ReplyPart, None, None]:
        """Send a message and yield the reply piece by piece.

        If the caller stops early, the text so far is the reply; if there is no text yet, the
        message is dropped, too. With a reranker the reply comes in one piece.
        """
        ids = self.fit(message).ids
        # A seed for each turn: the same message is not answered with the same reply every time.
        seed = (self.decoding.seed + len(self.turns)) % 2**64
        decoding = replace(self.decoding, seed=seed)
        self.turns += [message, ""]
        try:
            if self._reranker is not None and self._candidates > 1:
                best = self._best(ids, decoding)
                self.turns[-1] = best.text
                yield ReplyPart(best.text, best)
                return
            for piece in self._writer.stream([ids], decoding):
                self.turns[-1] += piece.text
                yield ReplyPart(piece.text, piece.done)
        finally:
            self.turns[-1] = self.turns[-1].strip()
            if not self.turns[-1]:
                del self.turns[-2:]

    def _best(self, ids: list[int], decoding: Decoding) -> Generation:
        """Write several replies and return the one that the reranker scores best."""
        assert self._reranker is not None  # noqa: S101 - the caller checked
        replies = self._writer.generate([ids], replace(decoding, samples=self._candidates))
        # Equal replies are scored once, empty ones only if there is no other.
        distinct = {reply.text.strip(): reply for reply in replies if reply.text.strip()}
        if len(distinct) < 2:
            return [*distinct.values(), *replies][0]
        scores = self._reranker.scores(self.turns[:-1], [*distinct])
        return max(zip(scores, distinct.values(), strict=True), key=lambda pair: pair[0])[1]


def _check_candidates(count: int, decoding: Decoding) -> None:
    """Check that these decoding settings give a number of different candidates."""
    if not 1 <= count <= MAX_CANDIDATES:
        raise PretuneError(f"candidates must be from 1 to {MAX_CANDIDATES:,}, not {count:,}")
    if count > 1 and decoding.beams == 1 and decoding.greedy:
        raise PretuneError(
            f"with temperature 0 all {count:,} candidates would be the same reply, which leaves "
            "nothing to choose (--mmi)",
            "Use a temperature above 0, or one candidate, or leave out --mmi.",
        )
    if 1 < decoding.beams < count:
        raise PretuneError(
            f"a search with {decoding.beams} beams has {decoding.beams} replies, not {count:,} "
            "candidates",
            f"Use beams={count}, or fewer candidates.",
        )
