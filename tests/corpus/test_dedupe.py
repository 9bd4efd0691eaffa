"""Duplicates, near and exact, beside sets that are compared in full."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pretune.corpus.dedupe import PERMUTATIONS, Duplicates, digest, held_back, shingles, signature


def test_digest_is_of_the_words() -> None:
    assert digest("a  b\nc") == digest(" a b c ")
    assert digest("cafe\u0301") == digest("café")
    assert digest("a b") != digest("ab")
    assert digest("a b") != digest("A b")


def test_shingles_of_words_and_of_characters() -> None:
    assert shingles("One, two three four five six!") == {
        "one two three four five",
        "two three four five six",
    }
    assert shingles("今天下雨，我们走") == {"今天下雨我", "天下雨我们", "下雨我们走"}
    assert shingles("Short one.") == {"short one"}


def test_held_back_share_is_about_that_share() -> None:
    held = [held_back(digest(str(i)), 0.1) for i in range(20_000)]
    assert np.mean(held) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 20_000) ** 0.5)
    assert not any(held_back(digest(str(i)), 0.0) for i in range(100))


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def test_signatures_estimate_the_similarity() -> None:
    generator = random.Random(0)
    words = [f"w{i}" for i in range(500)]
    for change in (0, 1, 3, 10, 40):
        one = generator.choices(words, k=300)
        other = list(one)
        for place in generator.sample(range(300), change):
            other[place] = "x"
        first, second = " ".join(one), " ".join(other)
        estimate = float(np.mean(signature(first) == signature(second)))
        # Four standard errors of a mean of 128 values that are 0 or 1.
        assert estimate == pytest.approx(jaccard(first, second), abs=4 * 0.5 / 128**0.5)


@pytest.mark.parametrize("language", ["words", "characters"])
def test_near_duplicates_are_dropped_and_the_first_stays(language: str) -> None:
    generator = random.Random(1)
    if language == "words":
        units, joint = [f"w{i}" for i in range(2000)], " "
    else:
        units, joint = [chr(0x4E00 + i) for i in range(2000)], ""
    index = Duplicates(exact=True, near=0.8)
    near = far = 0
    for _ in range(40):
        one = generator.choices(units, k=400)
        text = joint.join(one)
        assert index.reason(digest(text), signature(text)) is None
        assert index.reason(digest(text), signature(text)) == "duplicate"
        close = joint.join([*one[:200], units[0], *one[201:]])
        assert jaccard(text, close) > 0.95
        near += index.reason(digest(close), signature(close)) == "near-duplicate"
        other = joint.join([*one[:200], *generator.choices(units, k=200)])
        assert jaccard(text, other) < 0.4
        far += index.reason(digest(other), signature(other)) is not None
    assert (near, far) == (40, 0)


def test_a_candidate_of_the_index_is_compared_in_full() -> None:
    """LSH proposes all documents that share one band, however different they are otherwise."""
    index = Duplicates(exact=False, near=0.8)
    band = index._index.r
    first = np.arange(PERMUTATIONS, dtype=np.uint32)
    second = first + PERMUTATIONS
    second[:band] = first[:band]
    assert index.reason(b"first", first) is None
    assert index._index.query(index._minhash(second)) == [0]
    assert index.similar(second) is None
    assert index.reason(b"second", second) is None
    # At the bound they are alike, one value below it they are not.
    for equal, reason in ((103, "near-duplicate"), (102, None)):
        values = first + 2 * PERMUTATIONS + equal * PERMUTATIONS
        values[:equal] = first[:equal]
        assert index.reason(b"third", values) == reason
