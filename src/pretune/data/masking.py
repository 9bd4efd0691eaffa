"""Which tokens a masked language model has to predict, drawn anew in each epoch.

Every draw is a function of (seed, epoch, number of the feature, position in the feature). The rest
of the batch, the number of processes and the place where a run was resumed make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tokenizers import Encoding

from pretune.data.arrays import Array, ranges
from pretune.errors import CheckpointError, RunError
from pretune.tokenizers.tokenizer import Tokenizer

#: Label of a token that is not masked.
NOT_MASKED = -1
#: Purposes of random streams, a word of their counter, so that no two share numbers (`epoch_order`
#: has 0).
MASK_STREAM, PAIR_STREAM, REPLACE_STREAM = 1, 2, 3


class RandomStreams:
    """Random numbers by address: a stream of Philox 4x64 for each (seed, epoch, index).

    The generator is a function of a key and a counter, so any stream is reached at once (Salmon et
    al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The purpose is `MASK_STREAM`,
    `PAIR_STREAM` or `REPLACE_STREAM`.
    """

    def __init__(self, seed: int, epoch: int, purpose: int) -> None:
        words = 2**64 - 1
        key = np.array([seed & words, epoch & words], dtype=np.uint64)
        self._bits = np.random.Philox(key=key)
        self._state: Any = self._bits.state
        self._purpose = purpose

    def at(self, index: int) -> np.random.Generator:
        """The stream of a feature or record; the stream returned before must not be used again."""
        # Setting the state is several times faster than a new bit generator.
        counter = np.array([0, index, 0, self._purpose], dtype=np.uint64)
        self._state["state"] = {**self._state["state"], "counter": counter}
        self._bits.state = self._state
        return np.random.Generator(self._bits)


@dataclass(frozen=True)
class MaskRule:
    """How masks are drawn."""

    # What is masked: tokens, whole words, or spans of whole words (SpanBERT, Joshi et al. 2020,
    # section 3.1).
    unit: Literal["tokens", "words", "spans"] = "tokens"
    share: float = 0.15  # the share of the tokens (or words) that are masked, to be predicted
    as_mask: float = 0.8  # the share of the masked tokens that become the mask token
    # The share of the masked tokens that become a random token; the rest are kept.
    as_random: float = 0.1
    span_p: float = 0.2  # parameter of the geometric distribution of a span's length in words
    span_max: int = 10  # the longest span, in words

    def span_lengths(self) -> Array:
        """`[span_max]`: probabilities of the lengths 1, 2, ...: geometric, truncated, normalized.

        With p = 0.2 and at most 10 words the mean is 3.8, as in the paper.
        """
        weights = self.span_p * (1 - self.span_p) ** np.arange(self.span_max)
        shares: Array = weights / weights.sum()
        return shares


@dataclass(frozen=True)
class MaskVocabulary:
    """What masking needs to know about a tokenizer."""

    mask: int  # the id of the mask token
    special: Array  # `[vocabulary]` bool: ids that are never masked
    ordinary: Array  # `[n]` int64: all other ids, which may replace a masked token

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> MaskVocabulary:
        """Make it; a tokenizer without a mask token or ordinary tokens is a CheckpointError."""
        mask = tokenizer.special_id("mask_token")
        if mask is None:
            raise CheckpointError(
                "the tokenizer has no mask token",
                "Only BERT and its relatives can fill masks; model.tokenizer=FOLDER names another "
                "tokenizer.",
            )
        known = np.array(sorted(tokenizer.engine.get_vocab(with_added_tokens=True).values()))
        special = np.zeros(tokenizer.vocab_size, dtype=bool)
        ids = (tokenizer.special_id(name) for name in tokenizer.special)
        special[[index for index in ids if index is not None]] = True
        ordinary = known[~special[known]]
        if len(ordinary) == 0:
            raise CheckpointError("the tokenizer has only special tokens", "Copy it again.")
        return cls(mask, special, ordinary)


@dataclass(frozen=True)
class Masked:
    """A batch with its masks."""

    tokens: Array  # `[T]` int64: the input of the model
    labels: Array  # `[T]` int64: the tokens to predict; `NOT_MASKED` elsewhere
    # `[T]` int64: the same number for the tokens of one masked word (or span); `NOT_MASKED`
    # elsewhere.
    groups: Array


def draw_masks(
    tokens: Array,
    lengths: Array,
    index: Array,
    words: Array | None,
    rule: MaskRule,
    vocabulary: MaskVocabulary,
    *,
    seed: int,
    epoch: int,
) -> Masked:
    """Draw the masks of a batch (Devlin et al. 2019, section 3.1).

    Of the n units (tokens or words) of a sequence, `share * n` are chosen, but at least one. A
    fraction is rounded up or down at random such that the mean is exact. The replacement is drawn
    for each chosen token by itself; in a span, for the whole span.

    Args:
        tokens: `[T]` ids, sequences end to end.
        lengths: `[B]` tokens of each sequence.
        index: `[B]` the number of each sequence's feature.
        words: `[T]`: neighbouring tokens of one word have the same number. None: each token is a
            word.
        rule: how masks are drawn.
        vocabulary: of the tokenizer.
        seed: of the run.
        epoch: 0-based; evaluation has -1.
    """
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    units = _Units.of(vocabulary.special[tokens], sequence, words, len(lengths))
    # Draw all numbers first, each sequence from its own stream: a row for the sequence (how to
    # round), then a row for each token (order, replacement, random token). Spans, whose draws
    # depend on each other, continue that stream.
    noise = np.empty((len(tokens) + len(lengths), 3))
    groups = np.full(len(tokens), NOT_MASKED, dtype=np.int64)
    streams = RandomStreams(seed, epoch, MASK_STREAM)
    ends = np.cumsum(lengths + 1)
    for i, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        stream = streams.at(int(index[i]))
        stream.random(out=noise[end - length - 1 : end])
        if rule.unit == "spans":
            mine = slice(*np.searchsorted(units.sequence, [i, i + 1]))
            count = int(_how_many(units.counts[i], rule.share, noise[end - length - 1, 0]))
            spans = draw_spans(units.starts[mine], units.ends[mine], count, rule, stream)
            for first, last in spans:
                groups[first:last] = first
    rounding, each = noise[ends - lengths - 1, 0], np.delete(noise, ends - lengths - 1, axis=0)
    # Tokens and words: the units with the smallest numbers of their sequence are chosen.
    if rule.unit != "spans":
        count_each = _how_many(units.counts, rule.share, rounding)
        groups = units.chosen(each[units.starts, 0], count_each, len(tokens))
    masked = groups != NOT_MASKED
    # Replace chosen tokens by the mask, a random token or themselves. A span is replaced as a whole
    # (Joshi et al. 2020, section 3.1): its first token's number counts.
    action = each[groups if rule.unit == "spans" else np.arange(len(tokens)), 1]
    other = vocabulary.ordinary[(each[:, 2] * len(vocabulary.ordinary)).astype(np.int64)]
    replaced = np.where(action < rule.as_mask, vocabulary.mask, tokens)
    random = (action >= rule.as_mask) & (action < rule.as_mask + rule.as_random)
    replaced = np.where(random, other, replaced)
    labels = np.where(masked, tokens, NOT_MASKED)
    return Masked(np.where(masked, replaced, tokens), labels, groups)


def draw_numbers(lengths: Array, index: Array, *, seed: int, epoch: int) -> Array:
    """Draw a number in [0, 1) for each token of a batch, by which it may be replaced.

    Args:
        lengths: `[B]` tokens of each sequence.
        index: `[B]` the number of each sequence's feature.
        seed: of the run.
        epoch: 0-based; evaluation has -1.

    Returns:
        `[T]` float32.
    """
    numbers, streams = np.empty(int(lengths.sum())), RandomStreams(seed, epoch, REPLACE_STREAM)
    for number, end, length in zip(index, np.cumsum(lengths), lengths, strict=True):
        streams.at(int(number)).random(out=numbers[end - length : end])
    return numbers.astype(np.float32)


def _how_many(units: Array, share: float, rounding: Array) -> Array:
    """How many of `units` to choose: `share` of them on average, at least one where there is one.

    Random numbers in [0, 1) decide whether a fraction is rounded up.
    """
    count: Array = np.floor(share * units + rounding).astype(np.int64)
    return np.minimum(np.maximum(count, 1), units)


@dataclass(frozen=True)
class _Units:
    """The tokens or words of a batch that may be masked, in order."""

    starts: Array  # `[U]` the first token of each unit
    ends: Array  # `[U]` one past its last token
    sequence: Array  # `[U]` the number of its sequence
    counts: Array  # `[B]` number of units of each sequence

    @classmethod
    def of(cls, special: Array, sequence: Array, words: Array | None, size: int) -> _Units:
        maskable = ~special
        begins = maskable.copy()
        if words is not None:
            same = (words[1:] == words[:-1]) & (sequence[1:] == sequence[:-1])
            begins[1:] &= ~(same & maskable[:-1])
        starts = np.flatnonzero(begins)
        # A unit ends where the next one begins or the first special token comes.
        stops = np.flatnonzero(np.append(begins | special, True))
        ends = stops[np.searchsorted(stops, starts, side="right")]
        mine = sequence[starts]
        return cls(starts, ends, mine, np.bincount(mine, minlength=size))

    def chosen(self, key: Array, counts: Array, total: int) -> Array:
        """`[T]` groups: the `counts` units of each sequence with the smallest keys."""
        # The rank of each unit among those of its sequence.
        order = np.lexsort((key, self.sequence))
        rank = np.empty(len(order), dtype=np.int64)
        firsts = np.cumsum(self.counts) - self.counts
        rank[order] = np.arange(len(order)) - firsts[self.sequence[order]]
        taken = rank < counts[self.sequence]
        starts, lengths = self.starts[taken], (self.ends - self.starts)[taken]
        groups = np.full(total, NOT_MASKED, dtype=np.int64)
        groups[ranges(starts, lengths)] = np.repeat(starts, lengths)
        return groups


def draw_spans(
    starts: Array, ends: Array, count: int, rule: MaskRule, stream: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw spans of whole words that do not overlap, `count` words in all.

    A span begins at a word that is not masked yet, each equally likely, and has a drawn number of
    words, but ends before a special token, another span or the end of the budget. `starts` and
    `ends` `[U]` are the first token of each word and one past its last.

    Returns:
        (first token, one past the last) of each span, in the order they were drawn.
    """
    free = np.ones(len(starts), dtype=bool)
    cumulative = np.cumsum(rule.span_lengths())
    spans = []
    while count > 0:
        left = np.flatnonzero(free)
        first = int(left[stream.integers(len(left))])
        drawn = 1 + int(np.searchsorted(cumulative, stream.random(), side="right"))
        limit = min(len(starts), first + min(drawn, rule.span_max, count))
        last = first + 1
        # Words that follow each other without a gap: a special token leaves one.
        while last < limit and free[last] and starts[last] == ends[last - 1]:
            last += 1
        free[first:last] = False
        count -= last - first
        spans.append((int(starts[first]), int(ends[last - 1])))
    return spans


#: From a text to its words, which end to end are the text.
Segmenter = Callable[[str], Sequence[str]]


def segmenter(kind: Literal["tokenizer", "jieba"]) -> Segmenter | None:
    """The function that finds words where the tokenizer does not, as in Chinese; or None."""
    if kind == "tokenizer":
        return None
    try:
        import rjieba
    except ImportError as error:
        raise RunError(
            f"task.words=jieba needs rjieba ({error})", "Install it with: pip install 'pretune[zh]'"
        ) from None
    cut: Segmenter = rjieba.cut
    return cut


def word_numbers(encoding: Encoding, text: str, segment: Segmenter | None = None) -> Array:
    """`[tokens]` int32: the number of each token's word in the text, counted from 0.

    The tokenizer splits the text into words: for WordPiece, a piece with `##` continues the word
    before it. A segmenter joins tokens in one of its words, such as the characters of a Chinese
    word (Cui et al. 2021, "Pre-Training with Whole Word Masking for Chinese BERT"). The encoding
    has no special tokens.
    """
    own = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
    if len(own) == 0:
        return np.empty(0, dtype=np.int32)
    new = own[1:] != own[:-1]
    if segment is not None:
        lengths = [len(word) for word in segment(text)]
        ends = np.cumsum(lengths)
        places = np.searchsorted(ends, [start for start, _ in encoding.offsets], side="right")
        new &= places[1:] != places[:-1]
    return np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
