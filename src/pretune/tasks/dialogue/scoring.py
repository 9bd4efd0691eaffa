"""How good replies are: perplexity of the given replies, and figures of those the model writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pretune.data.batch import Features, FeatureSet, PackedBatch
from pretune.tasks.dialogue.replies import TURN, ReplyOutputs
from pretune.tasks.losses import perplexity
from pretune.tasks.question_answering.scores import mixed_segments, normalized

#: How many written replies `details` has.
REPLIES_IN_DETAILS = 20


@dataclass(frozen=True)
class WrittenReply:
    """A reply that a model wrote in an evaluation, beside the given one.

    Attributes:
        history: the texts before it, oldest first.
        reply: the model's.
        reference: the given one.
    """

    history: Sequence[str]
    reply: str
    reference: str


def distinct(texts: Sequence[str], size: int) -> float:
    """The number of different n-grams divided by the number of words.

    Li et al. 2016, "A diversity-promoting objective function for neural conversation models",
    section 5.3. Words are characters in Chinese; case is ignored.

    Args:
        texts: the replies.
        size: n.
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

    Every message but the first of a conversation counts as a reply if it is learned.

    Args:
        features: what is evaluated on; None if only the names of the figures are wanted.
        beside: puts a written reply beside the given one of its record.
        figures: of the written replies.
    """

    def __init__(
        self,
        features: Features | None,
        beside: Callable[[Any, str], WrittenReply],
        figures: Callable[[Sequence[WrittenReply]], dict[str, float]],
    ) -> None:
        self._features = features if isinstance(features, FeatureSet) else None
        self._beside, self._figures = beside, figures
        self._nats: dict[int, float] = {}  # by the number of the message
        self._tokens: dict[int, int] = {}
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
                self._nats[turn] = self._nats.get(turn, 0.0) + float(total)
                self._tokens[turn] = self._tokens.get(turn, 0) + int(count)
                self._means += float(total / count)
                self._replies += 1
        if self._features is not None:
            for place, generation in outputs.written.items():
                record = self._features.record(int(batch.index[place]))
                self._written[record] = generation.text.strip()

    def merge(self, other: Self) -> None:
        """Take in the sums and the replies of another process."""
        for turn in other._nats:
            self._nats[turn] = self._nats.get(turn, 0.0) + other._nats[turn]
            self._tokens[turn] = self._tokens.get(turn, 0) + other._tokens[turn]
        self._means += other._means
        self._replies += other._replies
        self._written |= other._written

    def result(self) -> dict[str, float]:
        """`perplexity` over all tokens of the given replies; `reply_perplexity`, where all
        replies weigh the same; and the figures of the written replies."""
        figures = {
            "perplexity": perplexity(sum(self._nats.values()), sum(self._tokens.values())),
            "reply_perplexity": perplexity(self._means, self._replies),
        }
        replies = self._written_replies()
        return figures | self._figures(replies) if replies or self._features is None else figures

    def details(self) -> dict[str, Any]:
        """The number of replies, the perplexity of the second message, the third, ..., and some
        written replies."""
        by_turn = {
            str(turn + 1): perplexity(self._nats[turn], self._tokens[turn])
            for turn in sorted(self._nats)
        }
        replies = self._written_replies()
        shown = [
            {"history": [*w.history], "reply": w.reply, "reference": w.reference}
            for w in replies[:: max(1, -(-len(replies) // REPLIES_IN_DETAILS))]
        ]
        return {"replies": self._replies, "perplexity_by_turn": by_turn, "samples": shown}

    def _written_replies(self) -> list[WrittenReply]:
        if self._features is None:
            return []
        rows = self._features.rows
        return [self._beside(rows[row], self._written[row]) for row in sorted(self._written)]
