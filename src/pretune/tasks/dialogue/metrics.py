"""How good replies are: perplexity of those that were given, and figures of those written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pretune.data.batch import Features, FeatureSet, PackedBatch
from pretune.tasks.dialogue.replies import TURN, Replied
from pretune.tasks.question_answering.scores import mixed_segments, normalized

#: Replies that `details` shows.
SHOWN = 20
#: The most nats that a perplexity is made of: it would be no number any more.
MOST_NATS = 700.0


@dataclass(frozen=True)
class Sample:
    """A reply beside the one that was given.

    Attributes:
        history: what was said before, oldest first.
        reply: as it was written.
        reference: as it was given.
    """

    history: Sequence[str]
    reply: str
    reference: str


#: Figures of written replies, by name.
Compare = Callable[[Sequence[Sample]], dict[str, float]]


def distinct(texts: Sequence[str], size: int) -> float:
    """How many different n-grams there are, over how many words (Li et al. 2016, section 5.3).

    Words are characters in Chinese; case does not count.
    """
    words = [mixed_segments(text) for text in texts]
    ngrams = {tuple(own[i : i + size]) for own in words for i in range(len(own) - size + 1)}
    return len(ngrams) / max(1, sum(map(len, words)))


def variety(samples: Sequence[Sample]) -> dict[str, float]:
    """`distinct_1`, `distinct_2` and the mean length in words."""
    texts = [sample.reply for sample in samples]
    words = sum(len(mixed_segments(text)) for text in texts)
    return {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "reply_words": words / max(1, len(texts)),
    }


def rouge_l(reference: str, text: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, section 3; beta = 1).

    Words are characters in Chinese; case does not count.
    """
    ours, theirs = mixed_segments(text), mixed_segments(reference)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = row
        row = [0]
        for j, other in enumerate(theirs, start=1):
            row.append(before[j - 1] + 1 if word == other else max(before[j], row[j - 1]))
    return 2 * row[-1] / (len(ours) + len(theirs)) if row[-1] else 0.0


def matches(samples: Sequence[Sample]) -> dict[str, float]:
    """`rouge_l` and `exact_match`, of 1: how like the references the replies are."""
    count = max(1, len(samples))
    same = sum(normalized(one.reply) == normalized(one.reference) for one in samples)
    return {
        "rouge_l": sum(rouge_l(one.reference, one.reply) for one in samples) / count,
        "exact_match": same / count,
    }


class ReplyMetrics:
    """Over all replies of the data, and over those that were written.

    A reply is each turn but the first of a conversation, whether the first is learned or not.

    Args:
        features: what is evaluated on.
        sample: what stands beside a written reply, by the record's columns and that reply.
        compare: figures of the written ones.
    """

    def __init__(
        self,
        features: Features | None,
        sample: Callable[[Any, str], Sample],
        compare: Compare,
    ) -> None:
        self._features = features if isinstance(features, FeatureSet) else None
        self._sample, self._compare = sample, compare
        self._nats: dict[int, float] = {}  # by the turn
        self._tokens: dict[int, int] = {}
        self._means, self._replies = 0.0, 0
        self._written: dict[int, str] = {}  # by the record

    def update(self, outputs: Replied, batch: PackedBatch) -> None:
        """Take in one batch."""
        assert outputs.scores is not None  # noqa: S101 - there are targets
        assert outputs.select is not None  # noqa: S101
        nats = outputs.scores.nats.double().cpu().numpy()
        turns = batch.targets[TURN][outputs.select.rows].cpu().numpy()
        sequences = np.repeat(np.arange(batch.num_sequences), outputs.select.layout.lengths)
        each, which = np.unique(np.stack([sequences, turns]), axis=1, return_inverse=True)
        sums, counts = np.bincount(which.ravel(), nats), np.bincount(which.ravel())
        for turn, total, count in zip(each[1].tolist(), sums, counts, strict=True):
            if turn > 0:
                self._nats[turn] = self._nats.get(turn, 0.0) + float(total)
                self._tokens[turn] = self._tokens.get(turn, 0) + int(count)
                self._means += float(total / count)
                self._replies += 1
        if self._features is not None:
            for place, found in outputs.written.items():
                record = self._features.record(int(batch.index[place]))
                self._written[record] = found.text.strip()

    def merge(self, other: Self) -> None:
        """Take in another's."""
        for turn in other._nats:
            self._nats[turn] = self._nats.get(turn, 0.0) + other._nats[turn]
            self._tokens[turn] = self._tokens.get(turn, 0) + other._tokens[turn]
        self._means += other._means
        self._replies += other._replies
        self._written |= other._written

    def result(self) -> dict[str, float]:
        """Of the given replies `perplexity`, a token, and `reply_perplexity`, where each reply
        counts as much as any other; and the figures of the written ones."""
        figures = {
            "perplexity": _perplexity(sum(self._nats.values()), sum(self._tokens.values())),
            "reply_perplexity": _perplexity(self._means, self._replies),
        }
        samples = self._samples()
        return figures | self._compare(samples) if samples or self._features is None else figures

    def details(self) -> dict[str, Any]:
        """How many replies, the perplexity of the second turn, of the third, ...; samples."""
        by_turn = {
            str(turn + 1): _perplexity(self._nats[turn], self._tokens[turn])
            for turn in sorted(self._nats)
        }
        samples = self._samples()
        chosen = samples[:: max(1, -(-len(samples) // SHOWN))]
        shown = [
            {"history": [*one.history], "reply": one.reply, "reference": one.reference}
            for one in chosen
        ]
        return {"replies": self._replies, "perplexity_by_turn": by_turn, "samples": shown}

    def _samples(self) -> list[Sample]:
        if self._features is None:
            return []
        rows = self._features.rows
        return [self._sample(rows[row], self._written[row]) for row in sorted(self._written)]


def _perplexity(nats: float, count: int) -> float:
    return math.exp(min(nats / max(count, 1), MOST_NATS))
