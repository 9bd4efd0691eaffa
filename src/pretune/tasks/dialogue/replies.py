"""Replies of a model: the options they are written by, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from pydantic import Field
from typing_extensions import override

from pretune.data.batch import Features, FeatureSet, PackedBatch, Selection
from pretune.decoding.continuations import Generation
from pretune.decoding.decoding import Decoding
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.base import Prediction
from pretune.tasks.losses import CrossEntropyOptions, perplexity
from pretune.tasks.question_answering.scores import mixed_segments, normalized

#: Target of each token: the number of the message that the next token belongs to.
TURN = "turn"
#: Target of a sequence: a reply is to be written after this many of its tokens; 0: none is.
ASKED = "asked"
#: How many written replies `details` has.
REPLIES_IN_DETAILS = 20


class ReplyOptions(CrossEntropyOptions):
    """Options of tasks whose models reply."""

    max_new_tokens: int = Field(64, ge=1, le=1_000_000, description="The most tokens of a reply.")
    temperature: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Of replies: above 1 bolder, below 1 safer; 0: always the likeliest token.",
    )
    top_k: int = Field(0, ge=0, description="Draw from the k likeliest tokens only; 0: from all.")
    top_p: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Draw from the likeliest tokens that have this share together; 1: from all.",
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=1000, description="Above 1, tokens that occurred already become less likely."
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Seed of the random draws.")
    samples: int = Field(
        100,
        ge=0,
        description="How many conversations, spread over the data, are replied to in an "
        "evaluation.",
    )

    @property
    def decoding(self) -> Decoding:
        """How replies are written."""
        own = {"max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed"}
        return Decoding(**self.model_dump(include=own))

    @property
    def room(self) -> int:
        """The maximum number of tokens of a history; the rest of `max_length` is for the reply."""
        return self.max_length - min(self.max_new_tokens, self.max_length // 2)

    def is_sample(self, row: int, count: int) -> bool:
        """Whether record `row` of `count` is one of the `samples`, which are evenly spread."""
        wanted = min(self.samples, count)
        return row * wanted // count != (row - 1) * wanted // count


@dataclass(frozen=True)
class ReplyPrediction(Prediction):
    """A reply.

    Attributes:
        reply: its text.
        log_probability: the sum over its tokens, the end included, in nats.
        tokens: how many tokens it has.
    """

    reply: str
    log_probability: float
    tokens: int

    @property
    @override
    def written(self) -> str:
        return self.reply


@dataclass(frozen=True)
class ReplyOutputs:
    """What a model returns for a batch of conversations."""

    # The scores of the tokens that are learned, and which tokens those are; None without targets.
    scores: Scores | None
    select: Selection | None
    # Replies by the position of their sequence in the batch.
    written: Mapping[int, Generation] = field(default_factory=dict)

    @property
    def scored(self) -> tuple[Scores, Selection]:
        """Scores and selection of a batch with targets."""
        assert self.scores is not None  # noqa: S101 - there are targets
        assert self.select is not None  # noqa: S101
        return self.scores, self.select


@dataclass(frozen=True)
class WrittenReply:
    """A reply that a model wrote in an evaluation, beside the given one."""

    history: list[str]  # the texts before it, oldest first
    reply: str
    reference: str  # the given reply


def distinct(texts: Sequence[str], size: int) -> float:
    """The number of different n-grams of `size` words divided by the number of words.

    Li et al. 2016, "A diversity-promoting objective function for neural conversation models",
    section 5.3. Words are characters in Chinese; case is ignored.
    """
    words = [mixed_segments(text) for text in texts]
    ngrams = {tuple(own[i : i + size]) for own in words for i in range(len(own) - size + 1)}
    return len(ngrams) / max(1, sum(map(len, words)))


def diversity(replies: Sequence[WrittenReply]) -> dict[str, float]:
    """`distinct_1`, `distinct_2` and `reply_words`, the mean length in words."""
    texts = [written.reply for written in replies]
    words = sum(len(mixed_segments(text)) for text in texts)
    return {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "reply_words": words / max(1, len(texts)),
    }


def rouge_l(reference: str, text: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, section 3, with beta = 1).

    Words are characters in Chinese; case is ignored.
    """
    ours, theirs = mixed_segments(text), mixed_segments(reference)
    # One row of the usual table at a time: row[j] for the first j words of the reference.
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = row
        row = [0]
        for j, other in enumerate(theirs, start=1):
            row.append(before[j - 1] + 1 if word == other else max(before[j], row[j - 1]))
    return 2 * row[-1] / (len(ours) + len(theirs)) if row[-1] else 0.0


def agreement(replies: Sequence[WrittenReply]) -> dict[str, float]:
    """`rouge_l` and `exact_match` with the references: means between 0 and 1."""
    count = max(1, len(replies))
    same = sum(normalized(w.reply) == normalized(w.reference) for w in replies)
    return {
        "rouge_l": sum(rouge_l(w.reference, w.reply) for w in replies) / count,
        "exact_match": same / count,
    }


class ReplyMetrics:
    """Streaming figures of the given replies and of those that the model wrote.

    Every message but the first of a conversation counts as a reply if it is learned. `beside` puts
    a written reply beside the given one of its record, and `figures` rates all written replies.
    """

    def __init__(
        self,
        features: Features | None,
        beside: Callable[[Any, str], WrittenReply],
        figures: Callable[[Sequence[WrittenReply]], dict[str, float]],
    ) -> None:
        self._features = features if isinstance(features, FeatureSet) else None
        self._beside, self._figures = beside, figures
        self._turns: dict[int, tuple[float, int]] = {}  # nats and tokens by number of the message
        self._means, self._replies = 0.0, 0
        self._written: dict[int, str] = {}  # by the record

    def update(self, outputs: ReplyOutputs, batch: PackedBatch) -> None:
        """Take in one batch."""
        scores, select = outputs.scored
        nats = scores.nats.double().cpu().numpy()
        # Sum up the tokens of each reply: those of one message in one sequence.
        turns = batch.targets[TURN][select.rows].cpu().numpy()
        sequences = np.repeat(np.arange(batch.num_sequences), select.layout.lengths)
        each, which = np.unique(np.stack([sequences, turns]), axis=1, return_inverse=True)
        sums, counts = np.bincount(which.ravel(), nats), np.bincount(which.ravel())
        for turn, total, count in zip(each[1].tolist(), sums, counts, strict=True):
            if turn > 0:
                self._add(turn, float(total), int(count))
                self._means += float(total / count)
                self._replies += 1
        if self._features is not None:
            for place, generation in outputs.written.items():
                record = self._features.record(int(batch.index[place]))
                self._written[record] = generation.text.strip()

    def _add(self, turn: int, nats: float, tokens: int) -> None:
        before = self._turns.get(turn, (0.0, 0))
        self._turns[turn] = before[0] + nats, before[1] + tokens

    def merge(self, other: Self) -> None:
        """Take in the sums and the replies of another process."""
        for turn, sums in other._turns.items():
            self._add(turn, *sums)
        self._means += other._means
        self._replies += other._replies
        self._written |= other._written

    def result(self) -> dict[str, float]:
        """`perplexity` over all tokens of the given replies; `reply_perplexity`, where all
        replies weigh the same; and the figures of the written replies."""
        sums = self._turns.values()
        figures = {
            "perplexity": perplexity(
                sum(nats for nats, _ in sums), sum(count for _, count in sums)
            ),
            "reply_perplexity": perplexity(self._means, self._replies),
        }
        replies = self._written_replies()
        return figures | self._figures(replies) if replies or self._features is None else figures

    def details(self) -> dict[str, Any]:
        """The number of replies, the perplexity of the second message, the third, ..., and some
        written replies."""
        by_turn = {str(t + 1): perplexity(*sums) for t, sums in sorted(self._turns.items())}
        replies = self._written_replies()
        step = max(1, -(-len(replies) // REPLIES_IN_DETAILS))
        shown = [asdict(reply) for reply in replies[::step]]
        return {"replies": self._replies, "perplexity_by_turn": by_turn, "samples": shown}

    def _written_replies(self) -> list[WrittenReply]:
        if self._features is None:
            return []
        rows = self._features.rows
        return [self._beside(rows[row], self._written[row]) for row in sorted(self._written)]
