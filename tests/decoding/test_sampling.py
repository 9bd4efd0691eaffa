"""Filters against transformers', draws against their probabilities, options against nonsense."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from pretune.decoding import sampling
from pretune.decoding.decoding import Decoding
from pretune.decoding.sampling import draw, generator, narrow, penalize
from pretune.errors import PretuneError

OFF = Decoding(top_p=1.0)


def random_logits(seed: int, vocabulary: int, rows: int = 3) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


seeds = st.integers(0, 2**31)
sizes = st.integers(2, 70)
shares = st.floats(0.01, 0.99)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@given(seeds, sizes, st.integers(1, 80))
def test_top_k(seed: int, size: int, k: int) -> None:
    logits = random_logits(seed, size)
    same(narrow(logits, dataclasses.replace(OFF, top_k=k)), TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("candidates", [5, 1024])
@given(seed=seeds, size=sizes, p=shares)
def test_top_p(candidates: int, seed: int, size: int, p: float) -> None:
    logits = random_logits(seed, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "NUCLEUS_CANDIDATES", candidates)  # 5: often not enough of them
        ours = narrow(logits, dataclasses.replace(OFF, top_p=p))
    same(ours, TopPLogitsWarper(p)(None, logits))


@given(seeds, sizes, st.floats(0.001, 1.0))
def test_min_p(seed: int, size: int, p: float) -> None:
    logits = random_logits(seed, size)
    same(narrow(logits, dataclasses.replace(OFF, min_p=p)), MinPLogitsWarper(p)(None, logits))


@given(seeds, sizes, shares)
def test_typical(seed: int, size: int, p: float) -> None:
    logits = random_logits(seed, size)
    ours = narrow(logits, dataclasses.replace(OFF, typical_p=p))
    same(ours, TypicalLogitsWarper(p)(None, logits))


@given(seeds, sizes, st.floats(0.2, 3), st.integers(1, 40), shares, shares, shares)
def test_all_filters_in_a_row(
    seed: int, size: int, temperature: float, k: int, p: float, least: float, typical: float
) -> None:
    logits = random_logits(seed, size)
    chain = LogitsProcessorList(
        [
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(k),
            TopPLogitsWarper(p),
            MinPLogitsWarper(least),
            TypicalLogitsWarper(typical),
        ]
    )
    options = Decoding(temperature=temperature, top_k=k, top_p=p, min_p=least, typical_p=typical)
    same(narrow(logits, options), chain(None, logits))


histories = st.lists(st.integers(0, 5), min_size=1, max_size=30)


@given(seeds, histories, st.floats(0.1, 5))
def test_repetition_penalty(seed: int, history: list[int], penalty: float) -> None:
    logits = random_logits(seed, 9, rows=1)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), logits.clone())
    same(penalize(logits, [history], Decoding(repetition_penalty=penalty)), theirs)


@given(histories, st.integers(1, 5))
def test_no_repeat_ngram(history: list[int], size: int) -> None:
    logits = random_logits(0, 9, rows=1)
    theirs = NoRepeatNGramLogitsProcessor(size)(torch.tensor([history]), logits.clone())
    same(penalize(logits, [history], Decoding(no_repeat_ngram=size)), theirs)


def test_penalties_leave_the_logits_as_they_were() -> None:
    logits = random_logits(0, 9, rows=1)
    before = logits.clone()
    penalize(logits, [[1, 2, 1]], Decoding(repetition_penalty=2.0, no_repeat_ngram=2))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"top_k": 4}, {"min_p": 0.2}])
def test_tokens_are_drawn_as_often_as_they_are_probable(options: dict[str, Any]) -> None:
    logits = random_logits(5, 11, rows=1) / 3
    scores = narrow(logits, dataclasses.replace(OFF, **options))
    random, count = generator(1, 0), 20_000
    drawn = draw(scores.expand(count, -1), [random.random() for _ in range(count)])
    observed = np.bincount(drawn.numpy(), minlength=11)
    expected = scores[0].double().softmax(-1).numpy() * count
    assert not observed[expected == 0].any()
    allowed = expected > 0
    assert chisquare(observed[allowed], expected[allowed]).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_what_is_possible(uniform: float) -> None:
    never = float("-inf")
    scores = torch.tensor([[never, 1.0, 2.0, never], [never, never, 0.3, never]])
    first = 1 if uniform == 0 else 2
    assert draw(scores, [uniform] * 2).tolist() == [first, 2]


def test_samples_have_generators_of_their_own() -> None:
    drawn = [generator(seed, sample).random() for seed in (0, 1) for sample in (0, 1)]
    assert len(set(drawn)) == 4
    assert generator(1, 1).random() == drawn[3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"temperature": -0.1}, "temperature must be a number from 0 to 1000, not -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_p": 0}, "top_p must be a number above 0 to 1, not 0"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"no_repeat_ngram": -2}, "no_repeat_ngram"),
        ({"beams": 0}, "beams"),
        ({"samples": True}, "samples"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "stop"),
        ({"stop": "", "beams": 2}, "stop"),
        ({"temperature": 0, "samples": 2}, "samples is 2, but with temperature 0"),
        ({"beams": 2, "top_k": 5}, "top_k is about drawing"),
        ({"beams": 2, "samples": 3}, "samples is 3, but a search with 2 beams"),
    ],
)
def test_nonsense_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PretuneError, match="^" + said.replace("(", r"\(")):
        Decoding(**options)


def test_one_stop_text_needs_no_list() -> None:
    assert Decoding(stop="ab").stop == ("ab",)
