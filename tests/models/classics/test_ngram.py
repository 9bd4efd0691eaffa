"""Kneser-Ney against a slow implementation from the definitions, and by hand."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretune.errors import DataError
from pretune.models.classics.common import MutableState
from pretune.models.classics.ngram import NGram

START = "<s>"
FALLBACK = (Fraction(1, 2), Fraction(1), Fraction(3, 2))


class Slow:
    """Chen & Goodman 1999, section 3, in exact fractions and dictionaries of tuples."""

    def __init__(self, sequences, order: int, vocab_size: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        texts = [(START, *ids) for ids in sequences]
        raw = {
            n: Counter(t[i : i + n] for t in texts for i in range(len(t) - n + 1))
            for n in range(1, order + 1)
        }
        self.counts = {order: raw[order]}
        for n in range(1, order):
            before = {gram: set() for gram in raw[n]}
            for gram in raw[n + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[n] = {
                gram: raw[n][gram] if gram[0] == START else len(seen)
                for gram, seen in before.items()
            }
        for counts in self.counts.values():
            counts.pop((START,), None)
        self.discounts = {n: self.discounts_of(counts) for n, counts in self.counts.items()}

    @staticmethod
    def discounts_of(counts):
        n = Counter(counts.values())
        if not all(n[k] for k in (1, 2, 3, 4)):
            return FALLBACK
        y = Fraction(n[1], n[1] + 2 * n[2])
        found = tuple(k - (k + 1) * y * Fraction(n[k + 1], n[k]) for k in (1, 2, 3))
        return found if min(found) > 0 else FALLBACK

    def probability(self, token: int, context: tuple) -> Fraction:
        context = context[max(0, len(context) - self.order + 1) :]
        n = len(context) + 1
        lower = self.probability(token, context[1:]) if context else Fraction(1, self.vocab_size)
        after = {g[-1]: c for g, c in self.counts.get(n, {}).items() if g[:-1] == context and c}
        if not after:
            return lower
        one, two, three = self.discounts[n]
        total = sum(after.values())
        freed = sum({1: one, 2: two}.get(count, three) for count in after.values())
        count = after.get(token, 0)
        cut = count - ({1: one, 2: two}.get(count, three) if count else 0)
        return Fraction(cut) / total + Fraction(freed) / total * lower


CORPUS = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=8).filter(any)


@given(CORPUS, st.integers(1, 5), st.lists(st.integers(0, 4), max_size=7))
def test_it_is_the_slow_one(sequences, order, probe):
    fast = NGram.fit(sequences, order=order, vocab_size=5)
    slow = Slow(sequences, order, 5)
    for n in range(1, order + 1):
        discounts = fast.discounts if n == 1 else fast.levels[n - 2].discounts
        assert discounts == pytest.approx([float(d) for d in slow.discounts[n]], abs=1e-12)
    for ids in [*sequences, probe]:
        expected = [
            math.log(slow.probability(token, (START, *ids[:i]))) for i, token in enumerate(ids)
        ]
        np.testing.assert_allclose(fast.logprob(ids), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_discounts_are_estimated_where_there_are_enough_counts(order):
    text = np.random.default_rng(0).zipf(1.5, 3000).clip(max=29).reshape(100, 30).tolist()
    fast, slow = NGram.fit(text, order=order, vocab_size=30), Slow(text, order, 30)
    highest = fast.levels[-1].discounts if order > 1 else fast.discounts
    assert order == 1 or highest != (0.5, 1.0, 1.5)
    assert highest == pytest.approx([float(d) for d in slow.discounts[order]], abs=1e-12)
    ids = text[3][:8]
    expected = [math.log(slow.probability(t, (START, *ids[:i]))) for i, t in enumerate(ids)]
    np.testing.assert_allclose(fast.logprob(ids), expected, rtol=0, atol=1e-10)


def test_estimates_that_would_leave_nothing_for_the_unseen_are_not_used():
    # One token each seen once, twice and four times, five seen three times: D2 = 2 - 3 (1/3) 5 < 0.
    counts = [1, 2, 4, *[3] * 5]
    text = [token for token, count in enumerate(counts) for _ in range(count)]
    model = NGram.fit([text], order=1, vocab_size=9)
    assert model.discounts == (0.5, 1.0, 1.5)
    freed = (0.5 + 1 + 6 * 1.5) / sum(counts) / 9
    assert model.distribution([])[[8, 1]] == pytest.approx([freed, 1 / sum(counts) + freed])


@given(CORPUS, st.integers(1, 5), st.lists(st.integers(0, 4), max_size=6), st.booleans())
def test_sums_to_1_after_any_context(sequences, order, context, from_start):
    found = NGram.fit(sequences, order=order, vocab_size=5).distribution(
        context, from_start=from_start
    )
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert (found > 0).all()


@given(CORPUS, st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_one_token_at_a_time_is_the_whole(sequences, order, ids):
    model = NGram.fit(sequences, order=order, vocab_size=5)
    expected = model.logprob(ids)
    for i, token in enumerate(ids):
        assert np.log(model.distribution(ids[:i])[token]) == pytest.approx(expected[i], abs=1e-10)


def test_by_hand():
    # "a b a c", "a b" with a, b, c = 0, 1, 2 and d = 3 never seen; bigrams. Too few counts for
    # estimates, so D1 = 1/2, D2 = 1.
    model = NGram.fit([[0, 1, 0, 2], [0, 1]], order=2, vocab_size=4)
    # Before a stand <s> and b; before b and c only a. Four pairs in all, so the unigrams are
    # a (2 - 1) / 4, b and c (1 - 1/2) / 4, each with a share of what was cut, (1 + 1/2 + 1/2) / 4,
    # over four tokens.
    unigrams = np.array([1 / 4, 1 / 8, 1 / 8, 0]) + 1 / 2 / 4
    np.testing.assert_allclose(model.distribution([], from_start=False), unigrams)
    # After <s> twice a: (2 - 1) / 2, and half to the unigrams.
    np.testing.assert_allclose(model.distribution([]), np.array([1 / 2, 0, 0, 0]) + unigrams / 2)
    # After a twice b, once c: (2 - 1) / 3, (1 - 1/2) / 3, and 1.5 / 3 to the unigrams.
    after_a = np.array([0, 1 / 3, 1 / 6, 0]) + unigrams / 2
    np.testing.assert_allclose(model.distribution([0]), after_a)
    np.testing.assert_allclose(model.distribution([3, 3, 0]), after_a)
    # Nothing ever followed c, or d.
    np.testing.assert_allclose(model.distribution([2]), unigrams)
    np.testing.assert_allclose(model.distribution([3]), unigrams)
    expected = [1 / 2 + unigrams[0] / 2, after_a[1]]
    np.testing.assert_allclose(model.logprob([0, 1]), np.log(expected))


def test_a_count_reaches_over_no_border():
    apart = NGram.fit([[0, 1], [2, 3]], order=3, vocab_size=4)
    swapped = NGram.fit([[2, 3], [0, 1]], order=3, vocab_size=4)
    together = NGram.fit([[0, 1, 2, 3]], order=3, vocab_size=4)
    for context in ([], [1], [0, 1], [3]):
        np.testing.assert_array_equal(apart.distribution(context), swapped.distribution(context))
    assert apart.distribution([0, 1])[2] < together.distribution([0, 1])[2] / 2


def test_empty_sequences_and_orders_beyond_every_text():
    model = NGram.fit([[], [0, 1], []], order=9, vocab_size=2)
    same = NGram.fit([[0, 1]], order=9, vocab_size=2)
    assert model.logprob([]).shape == (0,)
    assert model.order == 9
    ids = [0, 1, 1, 0] * 5
    np.testing.assert_array_equal(model.logprob(ids), same.logprob(ids))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_steps_are_the_whole(order):
    rng = np.random.default_rng(0)
    model = NGram.fit(rng.integers(0, 4, (50, 9)).tolist(), order=order, vocab_size=5)
    ids = rng.integers(0, 5, (3, 8))
    logits, state = model.start([ids[0, :2], ids[1, :4]])
    more, other = model.start([ids[2, :1]])
    state.extend(other)
    logits = torch.cat([logits, more])
    at, order_of = [2, 4, 1], [0, 1, 2]
    for _ in range(4):
        for row, i in enumerate(order_of):
            expected = np.log(model.distribution(ids[i, : at[i]]))
            np.testing.assert_allclose(logits[row].numpy(), expected, rtol=0, atol=1e-12)
        state.select([2, 0, 1])
        order_of = [order_of[i] for i in (2, 0, 1)]
        logits = model.step(torch.tensor([int(ids[i, at[i]]) for i in order_of]), state)
        at = [n + 1 for n in at]
    first = model.step(torch.tensor([2]), MutableState(model.initial(1)))
    np.testing.assert_allclose(first[0].exp().numpy(), model.distribution([2]), atol=1e-12)


@pytest.mark.parametrize("token", [-1, 4, 10**9])
def test_a_token_from_elsewhere_is_an_error(token):
    model = NGram.fit([[0, 1]], order=2, vocab_size=4)
    for use in (
        lambda: NGram.fit([[0, token]], order=2, vocab_size=4),
        lambda: model.logprob([token]),
        lambda: model.start([[token]]),
        lambda: model.distribution([token]),
        lambda: model.step(torch.tensor([token]), MutableState(model.initial(1))),
    ):
        with pytest.raises(DataError, match=f"token {token} is not in the vocabulary of 4"):
            use()


def test_nothing_to_count_is_an_error():
    for nothing in ([], [[]], [[], []]):
        with pytest.raises(DataError, match="no tokens"):
            NGram.fit(nothing, order=2, vocab_size=4)
    with pytest.raises(ValueError, match="at least 1"):
        NGram.fit([[0]], order=0, vocab_size=4)


def test_learns_what_a_window_shows():
    text = [[a, b] * 8 for a in range(8) for b in range(8)]
    unigram = math.log(8)
    assert -NGram.fit(text, order=3, vocab_size=8).logprob([3, 5] * 8).mean() < 0.5 * unigram
