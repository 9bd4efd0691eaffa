"""Orders and batches: functions of the seed and a place alone."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.batch_order import (
    Cursor,
    DataOrder,
    StreamOrder,
    batches_by_length,
    batches_in_turn,
    epoch_order,
)

SEEDS = st.integers(-(2**63), 2**64 - 1)
# Few different lengths, so that sums often meet a budget exactly.
LENGTHS = st.lists(st.integers(1, 6), max_size=40).map(lambda n: np.array(n, dtype=np.int64))


def everything(batches: list) -> list[int]:
    return [int(i) for batch in batches for i in batch]


def epoch_batches(lengths, *, seed=0, epoch=0, batch_size=None, batch_tokens=None, shuffle=True):
    """All batches of one epoch."""
    if len(lengths) == 0:
        return []
    in_tokens = batch_tokens is not None
    order = DataOrder(lengths, seed=seed, in_tokens=in_tokens, shuffle=shuffle)
    batches, at = [], Cursor(epoch)
    while at.epoch == epoch:
        which, at = order.take(at, batch_tokens if in_tokens else batch_size)
        batches.append(which)
    return batches


class TestEpochOrder:
    @given(count=st.integers(0, 200), seed=SEEDS, epoch=st.integers(0, 1000))
    def test_is_a_permutation(self, count, seed, epoch):
        assert sorted(epoch_order(count, seed, epoch)) == list(range(count))

    @given(seed=SEEDS, epoch=st.integers(0, 1000))
    def test_is_the_same_again(self, seed, epoch):
        assert epoch_order(50, seed, epoch).tolist() == epoch_order(50, seed, epoch).tolist()

    @given(seed=SEEDS, epoch=st.integers(0, 1000))
    def test_differs_in_the_next_epoch(self, seed, epoch):
        assert epoch_order(50, seed, epoch).tolist() != epoch_order(50, seed, epoch + 1).tolist()

    @given(seed=st.integers(-(2**63), 2**63 - 1), epoch=st.integers(0, 1000))
    def test_differs_with_the_next_seed(self, seed, epoch):
        assert epoch_order(50, seed, epoch).tolist() != epoch_order(50, seed + 1, epoch).tolist()

    @pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
    def test_large_seeds_do_not_warn(self, seed):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            epoch_order(5, seed, 0)

    def test_does_not_touch_the_global_generator(self):
        np.random.seed(0)  # noqa: NPY002 - the global one is what this is about
        before = np.random.get_state()[1].tolist()  # noqa: NPY002
        epoch_order(50, 0, 0)
        assert np.random.get_state()[1].tolist() == before  # noqa: NPY002

    def test_is_what_it_was_when_runs_were_saved(self):
        # A run that is resumed under another numpy must go on in the order it began with.
        assert epoch_order(10, 42, 3).tolist() == [8, 4, 7, 1, 6, 3, 0, 2, 9, 5]

    def test_places_are_evenly_spread(self):
        first = [epoch_order(5, 0, epoch)[0] for epoch in range(2000)]
        assert np.bincount(first, minlength=5).min() > 320  # 400 expected, sd 18


class TestEpochBatches:
    @given(lengths=LENGTHS, seed=SEEDS, size=st.integers(1, 50), shuffle=st.booleans())
    def test_by_size_every_feature_comes_once(self, lengths, seed, size, shuffle):
        batches = epoch_batches(lengths, seed=seed, epoch=0, batch_size=size, shuffle=shuffle)
        assert sorted(everything(batches)) == list(range(len(lengths)))

    @given(lengths=LENGTHS, seed=SEEDS, tokens=st.integers(1, 20), shuffle=st.booleans())
    def test_by_tokens_every_feature_comes_once(self, lengths, seed, tokens, shuffle):
        batches = epoch_batches(lengths, seed=seed, epoch=0, batch_tokens=tokens, shuffle=shuffle)
        assert sorted(everything(batches)) == list(range(len(lengths)))

    @given(lengths=LENGTHS, size=st.integers(1, 50))
    def test_all_but_the_last_are_full(self, lengths, size):
        batches = epoch_batches(lengths, seed=0, epoch=0, batch_size=size)
        assert all(len(batch) == size for batch in batches[:-1])
        assert all(0 < len(batch) <= size for batch in batches)

    @given(lengths=LENGTHS, tokens=st.integers(1, 20))
    def test_token_budget_is_kept_but_for_a_longer_feature_alone(self, lengths, tokens):
        batches = epoch_batches(lengths, seed=0, epoch=0, batch_tokens=tokens)
        assert all(len(batch) == 1 or lengths[batch].sum() <= tokens for batch in batches)

    @given(lengths=LENGTHS, tokens=st.integers(1, 20))
    def test_no_batch_ends_before_it_must(self, lengths, tokens):
        batches = epoch_batches(lengths, seed=0, epoch=0, batch_tokens=tokens)
        for batch, following in pairwise(batches):
            assert lengths[batch].sum() + lengths[following[0]] > tokens

    @given(lengths=LENGTHS, seed=SEEDS)
    def test_order_is_that_of_the_epoch(self, lengths, seed):
        batches = epoch_batches(lengths, seed=seed, epoch=3, batch_size=4)
        assert everything(batches) == epoch_order(len(lengths), seed, 3).tolist()

    @pytest.mark.parametrize("size", [{"batch_size": 2}, {"batch_tokens": 7}])
    def test_without_shuffling_the_order_is_that_of_the_data(self, size):
        batches = epoch_batches(np.array([3, 1, 4, 1, 5]), seed=0, epoch=0, shuffle=False, **size)
        assert everything(batches) == [0, 1, 2, 3, 4]

    def test_exact_fit_is_one_batch(self):
        batches = epoch_batches(np.array([2, 3, 1]), seed=0, epoch=0, batch_tokens=5, shuffle=False)
        assert [batch.tolist() for batch in batches] == [[0, 1], [2]]

    @given(lengths=LENGTHS, tokens=st.integers(1, 20))
    def test_no_batch_is_empty(self, lengths, tokens):
        batches = epoch_batches(lengths, seed=0, epoch=0, batch_tokens=tokens)
        assert all(len(batch) > 0 for batch in batches)

    def test_longer_feature_is_alone(self):
        batches = epoch_batches(np.array([2, 9, 2]), seed=0, epoch=0, batch_tokens=5, shuffle=False)
        assert [batch.tolist() for batch in batches] == [[0], [1], [2]]

    @pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"batch_tokens": 0}])
    def test_wrong_sizes_are_refused(self, sizes):
        with pytest.raises(ValueError, match="positive"):
            epoch_batches(np.array([1, 2]), **sizes)

    def test_there_must_be_something_to_order(self):
        with pytest.raises(ValueError, match="no examples"):
            DataOrder(np.array([], dtype=np.int64), seed=0)


class TestSeeking:
    @given(
        lengths=LENGTHS.filter(len),
        sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
        in_tokens=st.booleans(),
        data=st.data(),
    )
    def test_from_any_place_the_batches_are_those_of_the_whole_way(
        self, lengths, sizes, in_tokens, data
    ):
        """Sizes that change on the way, and a fresh order in the middle of it."""
        order = DataOrder(lengths, seed=7, in_tokens=in_tokens)
        places, batches = [Cursor()], []
        for size in sizes:
            which, after = order.take(places[-1], size)
            batches.append(which.tolist())
            places.append(after)
        start = data.draw(st.integers(0, len(sizes) - 1))
        fresh = DataOrder(lengths, seed=7, in_tokens=in_tokens)
        at = places[start]
        for size, expected in zip(sizes[start:], batches[start:], strict=True):
            which, at = fresh.take(at, size)
            assert which.tolist() == expected
        assert at == places[-1]

    @given(
        lengths=LENGTHS.filter(len),
        whole=st.integers(0, 3),
        size=st.integers(1, 9),
        in_tokens=st.booleans(),
    )
    def test_updates_counts_the_batches(self, lengths, whole, size, in_tokens):
        order = DataOrder(lengths, seed=1, in_tokens=in_tokens)
        key = "batch_tokens" if in_tokens else "batch_size"
        each = [
            len(epoch_batches(lengths, seed=1, epoch=epoch, **{key: size}))
            for epoch in range(whole + 1)
        ]
        assert order.updates(whole, lambda step: size) == sum(each[:whole])
        half = order.updates(whole + 0.5, lambda step: size)
        assert half == sum(each[:whole]) + math.ceil(each[whole] / 2)

    @given(
        lengths=LENGTHS.filter(len),
        whole=st.integers(0, 5),
        part=st.sampled_from([0.0, 0.25, 0.5]),
        start=st.integers(1, 8),
        ramp=st.integers(0, 20),
    )
    def test_updates_after_a_ramp_are_those_of_the_whole_way(
        self, lengths, whole, part, start, ramp
    ):
        def size(step):
            return start if step < ramp else 8

        order = DataOrder(lengths, seed=0)
        at, done = Cursor(), [0] * (whole + 1)
        while at.epoch <= whole:
            epoch, at = at.epoch, order.take(at, size(sum(done)))[1]
            done[epoch] += 1
        expected = sum(done[:whole]) + math.ceil(part * done[whole])
        assert order.updates(whole + part, size, ramp) == expected

    def test_a_billion_epochs_are_counted_at_once(self):
        assert DataOrder(np.ones(20), seed=0).updates(10.0**9, lambda step: 8) == 3 * 10**9

    def test_updates_follow_a_growing_batch(self):
        order = DataOrder(np.ones(20, dtype=np.int64), seed=0)
        # 1 + 2 + 3 + 4 + 5 = 15 of 20, and the 5 that are left.
        assert order.updates(1, lambda step: step + 1, ramp=20) == 6

    def test_places_compare_by_which_comes_first(self):
        assert Cursor(0, 9) < Cursor(1, 0) < Cursor(1, 3)


class TestBatchesByLength:
    @given(lengths=LENGTHS, tokens=st.integers(1, 20))
    def test_every_feature_comes_once(self, lengths, tokens):
        assert sorted(everything(batches_by_length(lengths, tokens))) == list(range(len(lengths)))

    @given(lengths=LENGTHS, tokens=st.integers(1, 20))
    def test_longest_come_first(self, lengths, tokens):
        order = everything(batches_by_length(lengths, tokens))
        assert lengths[order].tolist() == sorted(lengths.tolist(), reverse=True)

    @given(lengths=LENGTHS, tokens=st.integers(1, 20))
    def test_token_budget_is_kept_but_for_a_longer_feature_alone(self, lengths, tokens):
        batches = batches_by_length(lengths, tokens)
        assert all(len(batch) == 1 or lengths[batch].sum() <= tokens for batch in batches)

    def test_budget_must_be_positive(self):
        with pytest.raises(ValueError, match="batch_tokens"):
            batches_by_length(np.array([1]), 0)


TEXTS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


class TestStreams:
    @staticmethod
    def follows(texts: list[int]) -> np.ndarray:
        return np.concatenate([[False] + [True] * (size - 1) for size in texts])

    @given(TEXTS, st.integers(1, 12), st.integers(0, 99))
    def test_every_epoch_has_every_example_once(self, texts, streams, seed):
        order = StreamOrder(np.ones(sum(texts)), self.follows(texts), seed=seed, streams=streams)
        at, found = Cursor(), {0: [], 1: []}
        while at.epoch < 2:
            epoch = at.epoch
            which, at = order.take(at, 1)
            found[epoch] += which.tolist()
        assert sorted(found[0]) == sorted(found[1]) == list(range(sum(texts)))

    @given(TEXTS, st.integers(1, 12), st.integers(0, 99))
    def test_a_stream_reads_texts_in_order(self, texts, streams, seed):
        follows = self.follows(texts)
        order = StreamOrder(np.ones(len(follows)), follows, seed=seed, streams=streams)
        at, read = Cursor(), [[] for _ in range(order.streams)]
        while at.epoch == 0:
            for stream, example in zip(read, order.take(at, 1)[0].tolist(), strict=False):
                stream.append(example)
            at = order.take(at, 1)[1]
        for stream in read:
            for one, two in pairwise(stream):
                assert two == one + 1 if follows[two] else not follows[two]
        assert max(map(len, read)) - min(map(len, read)) <= 1
        # What ends one stream goes on in the next one, or a new text begins there.
        for one, two in pairwise(read):
            assert not follows[two[0]] or two[0] == one[-1] + 1

    @given(TEXTS, st.integers(1, 5), st.integers(0, 30))
    def test_a_place_is_a_seek(self, texts, streams, batches):
        follows = self.follows(texts)
        one, other = (
            StreamOrder(np.ones(len(follows)), follows, seed=3, streams=streams) for _ in "ab"
        )
        at = Cursor()
        for _ in range(batches):
            at = one.take(at, 1)[1]
        assert one.take(at, 1)[0].tolist() == other.take(at, 1)[0].tolist()

    def test_texts_come_in_another_order_in_each_epoch(self):
        order = StreamOrder(np.ones(20), np.zeros(20, dtype=bool), seed=0, streams=20)
        first, second = (order.take(Cursor(epoch), 1)[0].tolist() for epoch in (0, 1))
        assert first != second

    @given(TEXTS, st.integers(1, 30))
    def test_evaluation_has_each_example_after_the_one_before(self, texts, tokens):
        follows = self.follows(texts)
        lengths = np.full(len(follows), 3)
        groups = batches_in_turn(lengths, follows, tokens)
        assert sorted(everything([b for group in groups for b in group])) == list(
            range(len(follows))
        )
        sizes = [len(group) for group in groups]
        assert sizes == sorted(sizes, reverse=True)
        for group in groups:
            assert not follows[group[0]].any()
            for one, two in pairwise(group):
                assert set(two - 1) <= set(one)
                assert follows[two].all()
            assert all(3 * len(batch) <= max(tokens, 3) for batch in group)

    def test_bad_sizes(self):
        with pytest.raises(ValueError, match="stream"):
            StreamOrder(np.ones(2), np.zeros(2, dtype=bool), seed=0, streams=0)
        with pytest.raises(ValueError, match="positive"):
            batches_in_turn(np.ones(2), np.zeros(2, dtype=bool), 0)
        assert batches_in_turn(np.array([]), np.array([], dtype=bool), 5) == []
