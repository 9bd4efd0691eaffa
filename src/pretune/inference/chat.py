"""A conversation with a language model: history within its window, replies as they are written."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pretune.bundle.bundle import Bundle
from pretune.data.readers.conversations import MESSAGES
from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Generation
from pretune.errors import DataError, PretuneError
from pretune.inference.generate import TextGenerator
from pretune.inference.likelihood import Pair, Scorer
from pretune.inference.prompts import template_of
from pretune.tasks.dialogue.dialogue import TURNS, Chat, ChatOptions, Instruct
from pretune.tasks.dialogue.layouts import Fitted, TurnLayout
from pretune.tasks.dialogue.replies import ReplyOptions
from pretune.text.decode import SURROGATE

#: The most replies that a reranker chooses from.
MOST_CANDIDATES = 10_000


class History(Protocol):
    """How a model wants to be told what was said."""

    def history(self, texts: Sequence[str], room: int) -> Fitted:
        """What a reply to the last of some turns goes on from, in `room` tokens."""


@dataclass(frozen=True)
class Said:
    """Some more text of a reply.

    Attributes:
        text: what is new; may be empty.
        done: the whole reply, with its last piece; None before.
    """

    text: str
    done: Generation | None = None


class Reranker:
    """Scores replies by how likely they make what they reply to: maximum mutual information.

    log p(history | reply) by a model that was trained on dialogues backwards (Li et al. 2016,
    section 4.2, MMI-bidi; Zhang et al. 2020, section 3.3).

    Args:
        bundle: trained by the task `chat` with `reverse`.
        options: as `Prompted`'s, e.g. `device`.

    Raises:
        PretuneError: it was trained for something else.
    """

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        trained = None if bundle.task is None else bundle.task.options
        if not isinstance(trained, ChatOptions) or not trained.reverse:
            raise PretuneError(
                "this model was not trained on dialogues backwards, so it cannot score replies",
                "Train one with: pretune train chat-zh-mmi (task.reverse=true).",
            )
        self._scorer = Scorer.of(bundle, **options)
        self._layout = TurnLayout.of(bundle.tokenizer)
        limit = self._scorer.model.context_length
        self._room = trained.max_length if limit is None else min(limit, trained.max_length)

    def scores(self, history: Sequence[str], replies: Sequence[str]) -> list[float]:
        """Of each reply log p(history | reply), in nats; the same part of the history for all.

        Args:
            history: what was said, oldest first; of a long one its end is scored. Where nothing
                was said, all scores are 0: nothing is certain after any reply.
            replies: the candidates; of a long one the beginning counts, half the window at most.
        """
        if not history or not replies:
            return [0.0] * len(replies)
        most = max(1, (self._room - len(self._layout.begin)) // 2)
        contexts = [(*self._layout.begin, *turn[:most]) for turn in self._layout.turns([*replies])]
        room = self._room + 1 - max(map(len, contexts))
        backwards: list[int] = []
        for turn in self._layout.backwards(history):
            backwards += turn
            if len(backwards) >= room:
                break
        pairs = [Pair(context, tuple(backwards[:room])) for context in contexts]
        return [found.total for found in self._scorer.score(pairs)]


def usual_decoding(bundle: Bundle) -> Decoding:
    """How a model's replies are written where nobody says otherwise: as its task has it."""
    trained = None if bundle.task is None else bundle.task.options
    return trained.decoding if isinstance(trained, ReplyOptions) else Decoding()


class Conversation:
    """Messages and replies, taking turns.

    Args:
        bundle: a language model with its tokenizer.
        decoding: how replies are written; default: `usual_decoding`.
        reranker: of `candidates` replies, the one that it scores best is given.
        candidates: how many, up to `MOST_CANDIDATES`; of no account without a reranker.
        options: as `TextGenerator`'s, e.g. `device`.

    Attributes:
        turns: what was said so far, oldest first; the person's are the first, the third, ...

    Raises:
        RunError: it is not a language model.
        PretuneError: settings that make no sense, by themselves or with a reranker.
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
        self._layout: History = template or TurnLayout.of(bundle.tokenizer)
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
        """What was said so far, as the task that the model was trained by reads it, JSON-ready."""
        if self._instruct is None:
            return {TURNS: [*self.turns]}
        system = self._instruct.options.system
        said = [("user", "assistant")[i % 2] for i in range(len(self.turns))]
        messages = [*zip(said, self.turns, strict=True)]
        if system is not None:
            messages.insert(0, ("system", system))
        return {MESSAGES: [{"role": role, "content": text} for role, text in messages]}

    def reset(self) -> None:
        """Forget what was said."""
        self.turns = []

    def fit(self, message: str) -> Fitted:
        """What the model reads when this is said now.

        Raises:
            DataError: nothing is said, or half a character.
        """
        if not message.strip():
            raise DataError("an empty message", "Write something.")
        if (half := SURROGATE.search(message)) is not None:
            raise DataError(f"message: not valid Unicode (at character {half.start() + 1})")
        kept = min(self.decoding.max_new_tokens, self._window // 2)
        return self._layout.history([*self.turns, message], self._window - kept)

    def say(self, message: str) -> Generator[Said, None, None]:
        """Say something: the reply as it is written.

        Where it is stopped in the middle, what was written so far is the reply; where nothing was,
        nothing was said. With a reranker it comes in one piece.

        Raises:
            DataError: as `fit`.
        """
        ids = self.fit(message).ids
        # Else the same message would be answered alike wherever it is said.
        seed = (self.decoding.seed + len(self.turns)) % 2**64
        decoding = replace(self.decoding, seed=seed)
        self.turns += [message, ""]
        try:
            if self._reranker is not None and self._candidates > 1:
                best = self._best(ids, decoding)
                self.turns[-1] = best.text
                yield Said(best.text, best)
                return
            for piece in self._writer.stream([ids], decoding):
                self.turns[-1] += piece.text
                yield Said(piece.text, piece.done)
        finally:
            self.turns[-1] = self.turns[-1].strip()
            if not self.turns[-1]:
                del self.turns[-2:]

    def _best(self, ids: list[int], decoding: Decoding) -> Generation:
        """Of several replies the one that makes what was said likeliest."""
        assert self._reranker is not None  # noqa: S101 - whoever calls looked
        found = self._writer.generate([ids], replace(decoding, samples=self._candidates))
        some = list({one.text.strip(): one for one in found if one.text.strip()}.values())
        if len(some) < 2:
            return (some or found)[0]
        scores = self._reranker.scores(self.turns[:-1], [one.text.strip() for one in some])
        return some[max(range(len(some)), key=scores.__getitem__)]


def _check_candidates(count: int, decoding: Decoding) -> None:
    """See that so many replies can be chosen from.

    Raises:
        PretuneError: they cannot be written, or not in this way; says what to change.
    """
    if not 1 <= count <= MOST_CANDIDATES:
        raise PretuneError(f"candidates must be from 1 to {MOST_CANDIDATES:,}, not {count:,}")
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
