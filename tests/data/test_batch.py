"""Packing: nothing is lost, mixed up or padded."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.batch import Feature, FeatureSet, Layout, PackedBatch

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def features_of(lengths: list[int]) -> list[Feature]:
    """Features whose every value tells which feature and which token it belongs to."""
    return [
        Feature(
            tokens=[100 * i + j for j in range(length)],
            segments=[(i + j) % 2 for j in range(length)],
            targets={"label": i, "tags": [1000 * i + j for j in range(length)]},
            record=7 * i,
            truncated=i % 2 == 1,
        )
        for i, length in enumerate(lengths)
    ]


@st.composite
def batches(draw) -> tuple[list[Feature], PackedBatch]:
    """Some features in any order, some left out, and the batch of them."""
    features = features_of(draw(LENGTHS))
    order = draw(st.permutations(range(len(features))))
    which = order[: draw(st.integers(1, len(order)))]
    packed = FeatureSet.of(features).batch(np.array(which), sort=draw(st.booleans()))
    return [features[i] for i in packed.index.tolist()], packed


def pieces(packed: PackedBatch, values: torch.Tensor) -> list[list[int]]:
    """`[T]` values of each sequence."""
    ends = packed.cu_seqlens.tolist()
    return [values[a:b].tolist() for a, b in pairwise(ends)]


class TestBatch:
    @given(batches())
    def test_tokens_come_back(self, drawn):
        features, packed = drawn
        assert pieces(packed, packed.tokens) == [list(f.tokens) for f in features]

    @given(batches())
    def test_segments_come_back(self, drawn):
        features, packed = drawn
        assert pieces(packed, packed.segments) == [list(f.segments) for f in features]

    @given(batches())
    def test_positions_count_from_0_in_each(self, drawn):
        features, packed = drawn
        assert pieces(packed, packed.positions) == [list(range(len(f.tokens))) for f in features]

    @given(batches())
    def test_targets_of_sequences_follow(self, drawn):
        features, packed = drawn
        assert packed.targets["label"].tolist() == [f.targets["label"] for f in features]

    @given(batches())
    def test_targets_of_tokens_follow(self, drawn):
        features, packed = drawn
        assert pieces(packed, packed.targets["tags"]) == [f.targets["tags"] for f in features]

    @given(batches())
    def test_last_end_is_the_number_of_tokens(self, drawn):
        _, packed = drawn
        assert packed.cu_seqlens[-1] == packed.num_tokens == len(packed.tokens)

    @given(batches())
    def test_first_is_the_first_token_of_each(self, drawn):
        features, packed = drawn
        assert packed.tokens[packed.first.rows].tolist() == [f.tokens[0] for f in features]

    @given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6))
    def test_the_last_but_padding_is_the_one_that_transformers_takes(self, sequences):
        packed = PackedBatch.of(sequences)
        places = packed.last_but(0).rows - packed.first.rows
        # GenericForSequenceClassification: the highest place of what is no padding, or 0.
        expected = [
            int((torch.arange(len(ids)) * (torch.tensor(ids) != 0)).argmax()) for ids in sequences
        ]
        assert places.tolist() == expected
        assert packed.last_but(0).layout.lengths == (1,) * len(sequences)
        assert packed.last_but(7) is packed.last

    @given(batches())
    def test_first_has_one_row_of_each(self, drawn):
        features, packed = drawn
        assert packed.first.layout.lengths == (1,) * len(features)

    @given(LENGTHS)
    def test_sorting_puts_the_shortest_first(self, lengths):
        packed = FeatureSet.of(features_of(lengths)).batch(np.arange(len(lengths)))
        assert list(packed.layout.lengths) == sorted(lengths)

    @given(LENGTHS)
    def test_sorting_keeps_the_order_of_equals(self, lengths):
        packed = FeatureSet.of(features_of(lengths)).batch(np.arange(len(lengths)))
        by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
        assert packed.index.tolist() == by_length

    @given(LENGTHS)
    def test_unsorted_keeps_the_given_order(self, lengths):
        which = np.arange(len(lengths))[::-1]
        packed = FeatureSet.of(features_of(lengths)).batch(which, sort=False)
        assert packed.index.tolist() == which.tolist()

    def test_index_does_not_share_memory_with_what_was_asked_for(self):
        which = np.array([0, 1])
        packed = FeatureSet.of(features_of([1, 2])).batch(which, sort=False)
        which[:] = 0
        assert packed.index.tolist() == [0, 1]

    def test_a_feature_may_come_twice(self):
        packed = FeatureSet.of(features_of([2, 3])).batch(np.array([0, 0]))
        assert packed.tokens.tolist() == [0, 1, 0, 1]

    def test_integer_types(self):
        packed = FeatureSet.of(features_of([2, 3])).batch(np.array([0, 1]))
        tensors = (packed.tokens, packed.positions, packed.segments, packed.index)
        assert [t.dtype for t in tensors] == [torch.int64] * 4
        assert packed.cu_seqlens.dtype == torch.int32

    def test_batch_does_not_share_memory_with_the_set(self):
        features = FeatureSet.of(features_of([2, 3]))
        features.batch(np.array([0, 1]), sort=False).tokens.zero_()
        assert features.batch(np.array([1])).tokens.tolist() == [100, 101, 102]

    def test_float_targets_stay_floats(self):
        packed = PackedBatch.of([[1], [2]], targets={"score": [0.5, 1.5]})
        assert packed.targets["score"].tolist() == [0.5, 1.5]


class TestPackedBatchOf:
    def test_keeps_the_order(self):
        packed = PackedBatch.of([[1, 2, 3], [4], [5, 6]])
        assert (packed.tokens.tolist(), packed.cu_seqlens.tolist()) == (
            [1, 2, 3, 4, 5, 6],
            [0, 3, 4, 6],
        )

    def test_without_segments_there_are_none(self):
        assert PackedBatch.of([[1]]).segments is None

    def test_numbers(self):
        packed = PackedBatch.of([[1, 2, 3], [4]])
        assert (packed.num_sequences, packed.num_tokens, packed.max_seqlen) == (2, 4, 3)

    def test_of_nothing(self):
        packed = PackedBatch.of([])
        assert (packed.num_sequences, packed.num_tokens, packed.max_seqlen) == (0, 0, 0)


class TestTo:
    """The meta device stands for any other: the CPU has no second one."""

    def packed(self) -> PackedBatch:
        return FeatureSet.of(features_of([2, 3])).batch(np.arange(2))

    def test_same_device_gives_the_same_batch(self):
        packed = self.packed()
        assert packed.to("cpu") is packed

    def test_everything_a_model_reads_moves(self):
        moved = self.packed().to("meta")
        tensors = [moved.tokens, moved.positions, moved.segments, moved.cu_seqlens]
        tensors += [*moved.targets.values(), moved.first.rows, moved.first.layout.cu_seqlens]
        assert {t.device.type for t in tensors} == {"meta"}

    def test_what_only_the_host_reads_stays(self):
        moved = self.packed().to("meta")
        assert (moved.index.tolist(), moved.layout.lengths) == ([0, 1], (2, 3))

    def test_plans_of_the_old_device_are_left_behind(self):
        packed = self.packed()
        packed.layout.plans["attention"] = "of the cpu"
        assert packed.to("meta").layout.plans == {}

    def test_first_of_the_old_device_is_left_behind(self):
        packed = self.packed()
        assert packed.first is not packed.to("meta").first


class TestLayout:
    @given(st.lists(st.integers(0, 9), max_size=12))
    def test_starts_and_ends(self, lengths):
        layout = Layout.of(lengths)
        assert (*layout.starts, layout.total) == tuple(layout.cu_seqlens.tolist()) or not lengths

    @given(st.lists(st.integers(0, 9), max_size=12))
    def test_lengths_are_the_differences(self, lengths):
        layout = Layout.of(lengths)
        assert layout.cu_seqlens.diff().tolist() == list(layout.lengths) == lengths

    def test_of_nothing(self):
        layout = Layout.of([])
        assert (layout.total, layout.max_seqlen, layout.starts, len(layout.cu_seqlens)) == (
            0,
            0,
            (),
            1,
        )


class TestFeatureSet:
    def test_records_are_those_the_features_came_from(self):
        assert FeatureSet.of(features_of([1, 2, 3])).records.tolist() == [0, 7, 14]

    def test_truncated_features_are_counted(self):
        assert FeatureSet.of(features_of([1, 2, 3, 4])).truncated == 2

    def test_lengths(self):
        assert FeatureSet.of(features_of([3, 1, 2])).lengths.tolist() == [3, 1, 2]

    def test_a_token_takes_four_bytes(self):
        assert FeatureSet.of(features_of([3, 1, 2])).tokens.nbytes == 4 * 6

    def test_features_may_be_a_generator(self):
        assert len(FeatureSet.of(feature for feature in features_of([1, 2]))) == 2

    def test_of_nothing(self):
        features = FeatureSet.of([])
        assert (len(features), features.lengths.tolist()) == (0, [])

    @pytest.mark.parametrize(
        ("second", "named"),
        [
            (Feature([1], None, {"label": 1}), "segments"),
            (Feature([1], [0]), "label"),
            (Feature([1], [0], {"label": 1, "more": 2}), "more"),
        ],
    )
    def test_uneven_features_are_refused(self, second, named):
        with pytest.raises(ValueError, match=f"only some features have {named}"):
            FeatureSet.of([Feature([1, 2], [0, 0], {"label": 1}), second])

    def test_target_of_another_length_is_refused(self):
        with pytest.raises(ValueError, match=r"target 'tags': 3 values for 2 tokens"):
            FeatureSet.of([Feature([1, 2], targets={"tags": [1, 2, 3]})])

    def test_target_of_sequences_and_of_tokens_is_refused(self):
        features = [Feature([1, 2], targets={"x": 1}), Feature([1, 2], targets={"x": [1, 2]})]
        with pytest.raises(ValueError, match="target 'x'"):
            FeatureSet.of(features)

    def test_token_id_over_32_bits_is_refused(self):
        with pytest.raises(OverflowError):
            FeatureSet.of([Feature([2**31])])


class TestPartsAndJoined:
    def features(self, first: int, count: int, *, choices: bool = False) -> list[Feature]:
        return [
            Feature(
                tokens=[*range(first + i, first + 2 * i + 2)],
                segments=[i % 2] * (i + 2),
                targets={"label": i, "each": [*range(i + 2)], "pair": [[i, first]]},
                record=i // 2,
                choices=[1, i + 1] if choices else None,
            )
            for i in range(count)
        ]

    @pytest.mark.parametrize("choices", [False, True])
    def test_sets_that_are_joined_are_one_set(self, choices: bool) -> None:
        lists = [self.features(first, first, choices=choices) for first in (5, 1, 4)]
        joined = FeatureSet.joined([FeatureSet.of(features) for features in lists])
        whole, before = [], 0
        for features in lists:
            whole += [replace(own, record=own.record + before) for own in features]
            before += 1 + max(own.record for own in features)
        assert joined.fingerprint() == FeatureSet.of(whole).fingerprint()
        assert joined.records.tolist() == FeatureSet.of(whole).records.tolist()

    @pytest.mark.parametrize("choices", [False, True])
    def test_a_part_has_the_features_in_between(self, choices: bool) -> None:
        features = self.features(3, 7, choices=choices)
        part = FeatureSet.of(features).part(2, 6)
        assert part.fingerprint() == FeatureSet.of(features[2:6]).fingerprint()
        assert part.records.tolist() == [own.record for own in features[2:6]]
        assert len(FeatureSet.of(features).part(3, 3)) == 0
