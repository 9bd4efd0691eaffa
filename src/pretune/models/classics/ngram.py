"""The baseline that counts: n-grams with interpolated modified Kneser-Ney smoothing.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3;
how n-grams at the beginning of a text are counted is as in Heafield et al. 2013 ("Scalable Modified
Kneser-Ney Language Model Estimation", section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.errors import DataError
from pretune.models.classics.common import NO_TOKEN, MutableState, WindowState

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: D1, D2, D3+ where the counts of counts are zero (KenLM's `--discount_fallback`).
FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class Level:
    """All n-grams of one length."""

    #: `[M]` ascending: the index, in the level below, of the n-gram's first n - 1 tokens, times
    #: the number of symbols, plus its last token.
    keys: Ints
    probability: Floats  # `[M]`: p(last token | the tokens before it), interpolated over all levels
    #: `[C]`, for each n-gram of the level below: the share of the probability after it that
    #: goes to the context one token shorter; 1 if no token ever followed.
    backoff: Floats
    discounts: tuple[float, float, float]  # D1, D2, D3+


class NGram:
    """An n-gram model of token ids and a `LanguageModel`; made by `fit`.

    Its logits are log-probabilities.

    Args:
        vocab_size: V: tokens are 0 to V - 1.
        unigrams: `[V]`: probabilities without any context.
        levels: the 2-grams up to the n-grams.
        discounts: of the unigrams.
    """

    context_length = None  # a text may continue without end
    opening = None  # generated text continues the prompt

    def __init__(
        self,
        vocab_size: int,
        unigrams: Floats,
        levels: Sequence[Level],
        discounts: tuple[float, float, float],
    ) -> None:
        self.vocab_size, self.levels = vocab_size, tuple(levels)
        self.unigrams, self.discounts = unigrams, discounts

    @property
    def order(self) -> int:
        """n, the length of the longest n-grams."""
        return len(self.levels) + 1

    @classmethod
    def fit(cls, sequences: Iterable[Sequence[int]], *, order: int, vocab_size: int) -> NGram:
        """Count, discount and interpolate.

        Each sequence begins with a beginning-of-text symbol, which is never predicted; no n-gram
        crosses the border of two sequences. Memory and time grow with tokens times order.

        Args:
            sequences: token ids.
            order: n.
            vocab_size: V.

        Raises:
            DataError: there are no tokens, or a token is not in the vocabulary.
            ValueError: the order or the vocabulary is below 1.
        """
        if order < 1 or vocab_size < 1:
            raise ValueError(f"order {order}, vocab_size {vocab_size}: both are at least 1")
        symbols, position = _stream(sequences, vocab_size)
        base = vocab_size + 1
        counted = _count(symbols, position, order, base)
        counts = _adjusted(np.bincount(symbols, minlength=base), counted)
        # Unigrams are interpolated with the uniform distribution.
        discounts = _discounts(counts[0][:vocab_size])
        cut = _discounted(counts[0][:vocab_size], discounts)
        total = counts[0][:vocab_size].sum()
        unigrams = cut / total + (1 - cut.sum() / total) / vocab_size
        # Every longer n-gram is interpolated with the level below it.
        levels: list[Level] = []
        below = np.append(unigrams, 0.0)  # the beginning-of-text symbol is never predicted
        for level, count in zip(counted, counts[1:], strict=True):
            levels.append(_level(level, count, below, base))
            below = levels[-1].probability
        return cls(vocab_size, unigrams, levels, discounts)

    def logprob(self, sequence: Sequence[int]) -> Floats:
        """Log-probability of each token given the tokens before it, `[len(sequence)]`, in nats.

        Raises:
            DataError: a token is not in the vocabulary.
        """
        symbols, _ = _stream([sequence], self.vocab_size, empty=True)
        tokens = symbols[1:]
        chance = self.unigrams[tokens]
        base = self.vocab_size + 1
        ends = symbols  # index of the n-gram that ends at each position; -1: not a known one
        for level in self.levels:
            if not len(level.keys):  # no text was this long
                break
            # The context of the n-gram that ends at a position ends one position earlier.
            context = np.append(-1, ends[:-1])
            index = _lookup(level.keys, np.where(context < 0, -1, context * base + symbols))
            ends = index
            # Unknown n-grams back off to what the level below predicted.
            context, index = context[1:], index[1:]
            backed = np.where(context < 0, 1.0, level.backoff[context]) * chance
            chance = np.where(index < 0, backed, level.probability[index])
        return np.log(chance)

    def distribution(self, context: Sequence[int], *, from_start: bool = True) -> Floats:
        """The probability of each token after a context, `[V]`; they sum to 1.

        Args:
            context: token ids; only the last n - 1 matter.
            from_start: whether the text begins with the context.

        Raises:
            DataError: a token is not in the vocabulary.
        """
        symbols, _ = _stream([context], self.vocab_size, empty=True)
        return self._after(symbols if from_start else symbols[1:])

    def _after(self, symbols: Ints) -> Floats:
        """The distribution after some symbols."""
        base = self.vocab_size + 1
        chances = self.unigrams.copy()
        for n, level in enumerate(self.levels, start=2):
            if len(symbols) < n - 1:
                break
            # The level says which tokens followed this context, and gives the rest less.
            known = self._find(symbols[len(symbols) - (n - 1) :])
            if known < 0:
                continue
            low, high = np.searchsorted(level.keys, [known * base, (known + 1) * base])
            chances *= level.backoff[known]
            chances[level.keys[low:high] - known * base] = level.probability[low:high]
        return chances

    def _find(self, symbols: Ints) -> int:
        """The index of an n-gram in its level; -1: not a known one."""
        known = int(symbols[0])
        for symbol, level in zip(symbols[1:], self.levels, strict=False):
            key = np.array([known * (self.vocab_size + 1) + symbol])
            known = int(_lookup(level.keys, key)[0])
            if known < 0:
                break
        return known

    def initial(self, count: int) -> WindowState:
        """The state of `count` sequences of which nothing has been read."""
        window = torch.full((count, self.order - 1), NO_TOKEN)
        window[:, -1:] = self.vocab_size
        return WindowState(window)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, MutableState]:
        """Read the beginnings of sequences; see `LanguageModel.start`."""
        window = self.initial(len(prompts)).window.numpy()
        for row, prompt in zip(window, prompts, strict=True):
            symbols, _ = _stream([prompt], self.vocab_size, empty=True)
            kept = symbols[max(0, len(symbols) - len(row)) :]
            row[len(row) - len(kept) :] = kept
        return self._logits(window), MutableState(WindowState(torch.from_numpy(window)))

    def step(self, tokens: Tensor, state: MutableState) -> Tensor:
        """Read one token of each sequence; see `LanguageModel.step`."""
        return self.follow([[token] for token in tokens.tolist()], state)

    def follow(
        self, more: Sequence[Sequence[int]], state: MutableState, *, every: bool = False
    ) -> Tensor:
        """Read several tokens of each sequence; see `LanguageModel.follow`.

        A token outside the vocabulary is a `DataError`, here and in `start` and `step`.
        """
        assert isinstance(state.state, WindowState)  # noqa: S101 - for mypy
        before = state.state.window.numpy(force=True)
        read = [
            np.append(row, _checked(np.asarray(ids, dtype=np.int64), self.vocab_size))
            for row, ids in zip(before, more, strict=True)
        ]
        width = before.shape[1]
        rows = [row[len(row) - width :] for row in read]
        window = np.stack(rows) if rows else before
        state.state = WindowState(torch.from_numpy(window))
        if not every:
            return self._logits(window)
        each = [row[i + 1 : i + 1 + width] for row in read for i in range(len(row) - width)]
        return self._logits(np.stack(each))

    def _logits(self, window: Ints) -> Tensor:
        rows = [np.log(self._after(row[row != NO_TOKEN])) for row in window]
        return torch.from_numpy(np.stack(rows) if rows else np.empty((0, self.vocab_size)))


def _stream(
    sequences: Iterable[Sequence[int]], vocab_size: int, *, empty: bool = False
) -> tuple[Ints, Ints]:
    """Concatenate sequences, each after the symbol V; also each symbol's position in its own."""
    parts = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    lengths = np.array([len(part) + 1 for part in parts], dtype=np.int64)
    total = int(lengths.sum())
    if total == len(parts) and not empty:
        raise DataError("no tokens to count n-grams in")
    starts = np.cumsum(lengths) - lengths
    symbols = np.full(total, vocab_size, dtype=np.int64)
    position = np.arange(total) - np.repeat(starts, lengths)
    symbols[position > 0] = _checked(np.concatenate(parts), vocab_size)
    return symbols, position


def _checked(ids: Ints, vocab_size: int) -> Ints:
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        odd = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise DataError(
            f"token {odd} is not in the vocabulary of {vocab_size:,}",
            "Use the tokenizer that the model was fitted with.",
        )
    return ids


def _lookup(keys: Ints, wanted: Ints) -> Ints:
    """The index of each wanted key; -1 if it is missing."""
    if not len(keys):
        return np.full_like(wanted, -1)
    index = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[index] == wanted, index, -1)


@dataclass(frozen=True)
class _Counted:
    """The n-grams of one length."""

    keys: Ints  # as in `Level`
    raw: Ints  # how often each occurs
    link: Ints  # the index, in the level below, of the n-gram without its first token
    begins: NDArray[np.bool_]  # whether it begins a text


def _count(symbols: Ints, position: Ints, order: int, base: int) -> list[_Counted]:
    """Count the n-grams of each length from 2 to `order`."""
    counted = []
    ends = symbols  # index of the n-gram of the present length that ends at each position
    for n in range(2, order + 1):
        places = np.flatnonzero(position >= n - 1)
        keys, first, which, raw = np.unique(
            ends[places - 1] * base + symbols[places],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        # An occurrence gives the n-gram without its first token, and whether it begins a text.
        first = places[first]
        counted.append(_Counted(keys, raw, ends[first], position[first] == n - 1))
        ends = np.full_like(symbols, -1)
        ends[places] = which
    return counted


def _adjusted(unigrams: Ints, levels: list[_Counted]) -> list[Ints]:
    """The counts that smoothing works on, for each length from 1.

    The longest n-grams count by their occurrences, shorter ones by the number of different symbols
    before them. N-grams that begin a text have none before them and count by their occurrences.
    """
    raw = [unigrams, *(level.raw for level in levels)]
    begins = [np.zeros(len(unigrams), dtype=bool), *(level.begins for level in levels)]
    counts = [
        np.where(at_start, occurring, np.bincount(longer.link, minlength=len(occurring)))
        for occurring, at_start, longer in zip(raw, begins, levels, strict=False)
    ]
    return [*counts, raw[-1]]


def _discounts(counts: Ints) -> tuple[float, float, float]:
    """D1, D2, D3+ (Chen & Goodman 1999, equation 26).

    Y = t1 / (t1 + 2 t2), Dk = k - (k + 1) Y t(k + 1) / tk, tk the number of n-grams with count k.
    """
    t = np.bincount(counts[counts <= 4], minlength=5).astype(np.float64)
    if not t[1:].all():
        return FALLBACK
    y = t[1] / (t[1] + 2 * t[2])
    d1, d2, d3 = (float(k - (k + 1) * y * t[k + 1] / t[k]) for k in (1, 2, 3))
    # Dk never exceeds k. At 0 or below, no probability would be left for unseen n-grams.
    return (d1, d2, d3) if min(d1, d2, d3) > 0 else FALLBACK


def _discounted(counts: Ints, discounts: tuple[float, float, float]) -> Floats:
    """Subtract the discounts from the counts."""
    return np.asarray(counts - np.array([0.0, *discounts])[np.minimum(counts, 3)])


def _level(counted: _Counted, counts: Ints, below: Floats, base: int) -> Level:
    """Interpolate one level with the one below it (equation 25)."""
    discounts = _discounts(counts)
    cut = _discounted(counts, discounts)
    # For each context: what was counted after it, and what the discounts leave of that.
    context = counted.keys // base
    total = np.bincount(context, weights=counts, minlength=len(below))
    kept = np.bincount(context, weights=cut, minlength=len(below))
    followed = total > 0
    backoff = np.where(followed, 1 - kept / np.where(followed, total, 1), 1.0)
    probability = cut / total[context] + backoff[context] * below[counted.link]
    return Level(counted.keys, probability, backoff, discounts)
