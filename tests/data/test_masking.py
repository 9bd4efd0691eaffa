"""Masks: how many, which, what becomes of them, and that nothing else decides it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.masking import (
    MASK_STREAM,
    NOT_MASKED,
    PAIR_STREAM,
    Masked,
    MaskRule,
    MaskVocabulary,
    RandomStreams,
    draw_masks,
    draw_spans,
)
from pretune.errors import CheckpointError
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

#: Ids 0 to 4 are special, 4 is the mask; 5 to 99 are ordinary.
SPECIAL = 5
VOCABULARY = MaskVocabulary(4, np.arange(100) < SPECIAL, np.arange(SPECIAL, 100))
UNITS = ("tokens", "words", "spans")


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Token ids, some special, and which word each belongs to."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=40))
        begins = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        found.append((ids, np.cumsum(begins).tolist()))
    return found


def draw_for(
    given: list[tuple[list[int], list[int]]],
    rule: MaskRule,
    index: list[int] | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> list[Masked]:
    """The masks of a batch, taken apart by sequence."""
    lengths = np.array([len(ids) for ids, _ in given])
    tokens = np.concatenate([np.array(ids, dtype=np.int64) for ids, _ in given])
    words = np.concatenate([np.array(word, dtype=np.int32) for _, word in given])
    drawn = draw_masks(
        tokens,
        lengths,
        np.array(index if index is not None else range(len(given))),
        None if rule.unit == "tokens" else words,
        rule,
        VOCABULARY,
        seed=seed,
        epoch=epoch,
    )
    cuts = np.cumsum(lengths)[:-1]
    parts = (np.split(part, cuts) for part in (drawn.tokens, drawn.labels, drawn.groups))
    return [Masked(*part) for part in zip(*parts, strict=True)]


def units_of(ids: list[int], words: list[int], unit: str) -> list[list[int]]:
    """The slow and obvious way: neighbours of one word, special tokens left out."""
    found: list[list[int]] = []
    for place, token in enumerate(ids):
        if token < SPECIAL:
            continue
        joined = (
            unit != "tokens"
            and found
            and found[-1][-1] == place - 1
            and words[place] == words[place - 1]
        )
        if joined:
            found[-1].append(place)
        else:
            found.append([place])
    return found


class TestInvariants:
    @given(sequences(), st.sampled_from(UNITS), st.floats(0.01, 1), st.integers(0, 2**63 - 1))
    def test_of_every_draw(self, given, unit: Any, share: float, seed: int) -> None:
        rule = MaskRule(unit, share, as_mask=0.4, as_random=0.4)
        for (ids, words), found in zip(given, draw_for(given, rule, seed=seed), strict=True):
            masked = found.labels != NOT_MASKED
            original = np.array(ids)
            assert (found.labels[masked] == original[masked]).all()
            assert (found.tokens[~masked] == original[~masked]).all()
            assert not (original[masked] < SPECIAL).any()
            assert ((found.tokens[masked] == 4) | (found.tokens[masked] >= SPECIAL)).all()
            units = units_of(ids, words, unit)
            whole = [[bool(masked[i]) for i in places] for places in units]
            assert all(len(set(each)) == 1 for each in whole)
            chosen = sum(each[0] for each in whole)
            exact = share * len(units)
            least, most = max(1, int(exact)), max(1, int(np.ceil(exact)))
            assert min(least, len(units)) <= chosen <= most

    @given(sequences(), st.floats(0.1, 1), st.integers(1, 6))
    def test_of_spans(self, given, share: float, most: int) -> None:
        rule = MaskRule("spans", share, as_mask=0.5, as_random=0.0, span_max=most)
        for (ids, words), found in zip(given, draw_for(given, rule), strict=True):
            units = units_of(ids, words, "spans")
            for group in set(found.groups.tolist()) - {NOT_MASKED}:
                places = np.flatnonzero(found.groups == group)
                assert places.tolist() == list(range(places[0], places[-1] + 1))
                assert 1 <= sum(unit[0] in places for unit in units) <= most
                treated = {bool(found.tokens[i] == 4) for i in places if ids[i] != 4}
                assert len(treated) == 1

    @given(sequences(), st.sampled_from(UNITS), st.data())
    def test_nothing_else_in_the_batch_matters(self, given, unit: Any, data) -> None:
        rule = MaskRule(unit)
        whole = draw_for(given, rule, [7 * i for i in range(len(given))], seed=3, epoch=2)
        order = data.draw(st.permutations(range(len(given))))
        some = order[: data.draw(st.integers(1, len(given)))]
        parts = draw_for([given[i] for i in some], rule, [7 * i for i in some], seed=3, epoch=2)
        for i, part in zip(some, parts, strict=True):
            assert (part.tokens == whole[i].tokens).all()
            assert (part.labels == whole[i].labels).all()


def text(length: int = 100) -> tuple[list[int], list[int]]:
    """Words of 1, 2, 3, 1, 2, 3, ... tokens."""
    words = [number for number in range(length) for _ in range(1 + number % 3)][:length]
    return [10 + i % 80 for i in range(length)], words


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"epoch": -1}, {"index": [1]}])
def test_each_address_has_a_draw_of_its_own(unit: Any, change: dict[str, Any]) -> None:
    (one,) = draw_for([text()], MaskRule(unit))
    (same,) = draw_for([text()], MaskRule(unit))
    (other,) = draw_for([text()], MaskRule(unit), **change)
    assert (one.labels == same.labels).all()
    assert (one.labels != other.labels).any()


def test_streams_are_those_of_numpy() -> None:
    """Each is a Philox with that key and counter, whatever was drawn before."""
    streams = RandomStreams(-5, 3, MASK_STREAM)
    for index in (4, 0, 2**40, 4):
        expected = np.random.Philox(
            key=np.array([2**64 - 5, 3], dtype=np.uint64),
            counter=np.array([0, index, 0, MASK_STREAM], dtype=np.uint64),
        )
        found = streams.at(index)
        found.integers(7, dtype=np.int32)  # leaves half a number in the buffer
        again = np.random.Generator(expected)
        again.integers(7, dtype=np.int32)
        assert (found.random(3) == again.random(3)).all()
    assert (
        RandomStreams(1, 0, MASK_STREAM).at(0).random()
        != RandomStreams(1, 0, PAIR_STREAM).at(0).random()
    )


def within(found: float, expected: float, trials: float, sigmas: float = 4.5) -> bool:
    """Whether a share of independent trials is where chance would have it; 4.5 sigma: 7e-6."""
    return abs(found - expected) < sigmas * np.sqrt(expected * (1 - expected) / trials)


class TestRates:
    """With fixed seeds; bounds are those of binomial distributions."""

    @pytest.mark.parametrize("length", [8, 50, 123])
    @pytest.mark.parametrize("unit", ["tokens", "words"])
    def test_each_token_is_chosen_equally_often(self, unit: Any, length: int) -> None:
        count = 4000
        drawn = draw_for([text(length)] * count, MaskRule(unit))
        chosen = np.mean([found.labels != NOT_MASKED for found in drawn], axis=0)
        assert len(chosen) == length
        units = len(units_of(*text(length), unit))
        # Below that the one that each sequence has at least would be more than the share.
        expected = 0.15 if units * 0.15 >= 1 else 1 / units
        assert all(within(share, expected, count) for share in chosen)

    def test_the_count_is_exact_in_the_mean(self) -> None:
        """50 tokens: 7 or 8, evenly."""
        drawn = draw_for([text(50)] * 2000, MaskRule())
        counts = [int((found.labels != NOT_MASKED).sum()) for found in drawn]
        assert set(counts) == {7, 8}
        assert within(np.mean(counts) - 7, 0.5, 2000)

    def test_one_at_least(self) -> None:
        for found in draw_for([text(3)] * 50, MaskRule()):
            assert (found.labels != NOT_MASKED).sum() == 1

    @pytest.mark.parametrize("unit", ["tokens", "words"])
    def test_what_becomes_of_them(self, unit: Any) -> None:
        drawn = draw_for([text(100)] * 2000, MaskRule(unit))
        labels = np.concatenate([found.labels for found in drawn])
        tokens = np.concatenate([found.tokens for found in drawn])[labels != NOT_MASKED]
        labels = labels[labels != NOT_MASKED]
        trials = len(labels)
        assert within((tokens == 4).mean(), 0.8, trials)
        # A random token is the one that was there in 1 of 95 cases.
        assert within((tokens == labels).mean(), 0.1 + 0.1 / 95, trials)
        other = tokens[(tokens != 4) & (tokens != labels)]
        assert set(other.tolist()) <= set(range(SPECIAL, 100))
        assert all(within(n, 1 / 95, len(other), 5) for n in np.bincount(other)[5:] / len(other))

    def test_of_spans(self) -> None:
        drawn = draw_for([text(200)] * 1500, MaskRule("spans"))
        words = np.array(text(200)[1])
        budget = 0.15 * (words[-1] + 1)
        masked = [found.groups != NOT_MASKED for found in drawn]
        counts = [len(set(words[each].tolist())) for each in masked]
        assert set(counts) <= {int(budget), int(np.ceil(budget))}
        assert np.mean(masked) == pytest.approx(0.15, abs=0.003)
        spans = [len(set(f.groups[f.groups != NOT_MASKED].tolist())) for f in drawn]
        # The last span is cut by the budget and some by their neighbours: a little under 3.8.
        assert 3.0 < np.sum(counts) / np.sum(spans) < 3.8

    def test_lengths_of_spans_are_geometric(self) -> None:
        """The first of a sequence, where neither a neighbour nor the end is in its way."""
        rule, places = MaskRule("spans"), np.arange(1000)
        shares = rule.span_lengths()
        assert shares.sum() == pytest.approx(1)
        assert shares @ np.arange(1, 11) == pytest.approx(3.8, abs=0.01)  # Joshi et al., 3.1
        assert shares[1:] / shares[:-1] == pytest.approx(np.full(9, 0.8))
        streams = RandomStreams(0, 0, MASK_STREAM)
        firsts = [draw_spans(places, places + 1, 10, rule, streams.at(i))[0] for i in range(4000)]
        lengths = [last - first for first, last in firsts if first <= 990]
        seen = np.bincount(lengths, minlength=11)[1:] / len(lengths)
        assert len(seen) == 10
        assert all(within(n, share, len(lengths)) for n, share in zip(seen, shares, strict=True))
        starts = np.array([first for first, _ in firsts])
        assert within((starts < 250).mean(), 0.25, 4000)
        assert within((starts < 500).mean(), 0.5, 4000)


class TestVocabulary:
    @pytest.fixture
    def tokenizer(self, tiny_vocab_folder) -> Tokenizer:
        return load_tokenizer(tiny_vocab_folder)

    def test_special_tokens_are_told(self, tokenizer: Tokenizer) -> None:
        found = MaskVocabulary.of(tokenizer)
        names = tokenizer.tokens(np.flatnonzero(found.special).tolist())
        assert sorted(names) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]
        assert tokenizer.tokens([found.mask]) == ["[MASK]"]
        assert sorted([*found.ordinary, *np.flatnonzero(found.special)]) == list(
            range(tokenizer.vocab_size)
        )

    def test_without_a_mask_token(self, tokenizer: Tokenizer) -> None:
        special = {k: v for k, v in tokenizer.special.items() if k != "mask_token"}
        with pytest.raises(CheckpointError, match="no mask token"):
            MaskVocabulary.of(replace(tokenizer, special=special))
