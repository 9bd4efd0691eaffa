"""Against the scripts of SQuAD 1.1 and 2.0 and of CMRC 2018, written anew by their definitions."""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.tasks.question_answering.scores import (
    best_null_threshold,
    cmrc,
    is_chinese,
    mixed_segments,
    normalized,
    squad_v1,
    squad_v2,
)

PARTS = [
    "the",
    "a",
    "An",
    "film",
    "Film",
    "x-ray",
    "'s",
    "1,000",
    ".",
    " ",
    "  ",
    "\t",
    "中国",
    "e",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
CHINESE = st.lists(
    st.sampled_from([*"中国电影好看，。《》-", "BERT", "3.5", " ", "a"]), max_size=8
).map("".join)


def plain_words(text: str) -> list[str]:
    """Letter by letter: lower case, no punctuation, then no articles."""
    kept = [c for c in text.lower() if c not in set(string.punctuation)]
    words = re.split(r"\b(?:a|an|the)\b", "".join(kept))
    return " ".join(words).split()


def f1(ours: list[str], theirs: list[str]) -> float:
    left, shared = Counter(theirs), 0
    for word in ours:
        if left[word] > 0:
            left[word] -= 1
            shared += 1
    if shared == 0:
        return 0.0
    precision, recall = 1.0 * shared / len(ours), 1.0 * shared / len(theirs)
    return (2 * precision * recall) / (precision + recall)


@given(TEXTS)
def test_normalisation(text: str) -> None:
    assert normalized(text) == " ".join(plain_words(text))


@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
def test_squad_1(right: list[str], answer: str) -> None:
    ours = plain_words(answer)
    exact = max(float(plain_words(text) == ours) for text in right)
    assert squad_v1(right, answer) == (exact, max(f1(ours, plain_words(t)) for t in right))


def slow_v2(right: Sequence[str], answer: str) -> tuple[float, float]:
    kept = [text for text in right if plain_words(text)] or [""]
    ours = plain_words(answer)
    exact, best = 0.0, 0.0
    for text in kept:
        theirs = plain_words(text)
        exact = max(exact, float(theirs == ours))
        one = float(theirs == ours) if not theirs or not ours else f1(ours, theirs)
        best = max(best, one)
    return exact, best


@given(st.lists(TEXTS, max_size=3), TEXTS)
def test_squad_2(right: list[str], answer: str) -> None:
    assert squad_v2(right, answer) == slow_v2(right, answer)


@pytest.mark.parametrize(
    ("compare", "right", "answer", "expected"),
    [
        (squad_v1, ["the Denver Broncos"], "Denver Broncos!", (1.0, 1.0)),
        (squad_v1, ["Denver Broncos", "Broncos"], "Broncos team", (0.0, 2 / 3)),
        (squad_v1, ["the"], "the", (1.0, 0.0)),
        (squad_v2, ["the"], "the", (1.0, 1.0)),
        (squad_v2, [], "", (1.0, 1.0)),
        (squad_v2, [], "film", (0.0, 0.0)),
        (squad_v2, ["film"], "", (0.0, 0.0)),
        (cmrc, ["《中国电影》"], "中国电影", (1.0, 1.0)),
        (cmrc, ["中国电影"], "看中国", (0.0, 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))),
        (cmrc, ["中好国"], "中国", (0.0, 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))),
        (cmrc, ["BERT模型"], "bert模型", (1.0, 1.0)),
        (cmrc, ["好"], "坏", (0.0, 0.0)),
    ],
)
def test_by_hand(
    compare: Callable[[list[str], str], tuple[float, float]],
    right: list[str],
    answer: str,
    expected: tuple[float, float],
) -> None:
    assert compare(right, answer) == pytest.approx(expected, abs=0)


def longest_common(first: list[str], second: list[str]) -> int:
    runs = {tuple(first[i:j]) for i in range(len(first)) for j in range(i + 1, len(first) + 1)} & {
        tuple(second[i:j]) for i in range(len(second)) for j in range(i + 1, len(second) + 1)
    }
    return max(map(len, runs), default=0)


@given(st.lists(CHINESE, min_size=1, max_size=3), CHINESE)
def test_cmrc(right: list[str], answer: str) -> None:
    ours, best = mixed_segments(answer), 0.0
    for text in right:
        theirs = mixed_segments(text)
        shared = longest_common(ours, theirs)
        if shared:
            precision, recall = 1.0 * shared / len(ours), 1.0 * shared / len(theirs)
            best = max(best, (2 * precision * recall) / (precision + recall))
    assert cmrc(right, answer)[1] == best


def test_segments_are_characters_and_words() -> None:
    assert mixed_segments(" 在2018年，BERT-base很好。 ") == [
        *"在",
        "2018",
        "年",
        "bertbase",
        *"很好",
    ]


def test_whether_answers_are_chinese() -> None:
    assert is_chinese([["中国"], ["x"], [], ["电影"]])
    assert not is_chinese([["中国"], ["x"]])
    assert not is_chinese([])


def slow_best(
    scores: list[float], odds: list[float], answered: list[bool], given: list[str]
) -> float:
    """The best over all thresholds, each tried by itself."""
    best = 0.0
    for threshold in [min(odds, default=0) - 1, *odds]:
        total = 0.0
        for score, odd, has, text in zip(scores, odds, answered, given, strict=True):
            silent = odd > threshold
            total += float(not has) if silent or not (has or text) else score if has else 0.0
        best = max(best, 100.0 * total / len(scores))
    return best


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans(), TEXTS), min_size=1), st.randoms())
def test_the_best_threshold(rows: list[tuple[int, bool, str]], chance: random.Random) -> None:
    """It is the best of all there are, and what applying it gives, of equal odds too."""
    several = chance.choice([1, 2, 5])
    odds = [float(i // several) - 3 for i in range(len(rows))]
    chance.shuffle(odds)
    scores = [score / 8 for score, *_ in rows]
    answered = [has for _, has, _ in rows]
    given = [text for *_, text in rows]
    found = best_null_threshold(scores, odds, answered, given)
    expected = slow_best(scores, odds, answered, given)
    assert found.best == pytest.approx(expected, abs=1e-9)
    assert (found.at, found.last) == (0.0, 0.0) or not found.none
    for threshold in () if found.none else (found.at, found.last):
        total = sum(
            float(not has) if odd > threshold or not (has or text) else score if has else 0.0
            for score, odd, has, text in zip(scores, odds, answered, given, strict=True)
        )
        assert 100.0 * total / len(rows) == pytest.approx(found.best, abs=1e-9)


NEXT = math.nextafter(1.0, 2.0)


@pytest.mark.parametrize(
    ("odds", "right", "at", "last"),
    [
        ([1.0, 1.0, 1.0], 2, 0.0, 0.0),  # never to answer is as good as any
        ([1.0, 3.0, 1.0], 2, 0.0, 0.0),
        ([1.0, 3.0, 2.0], 3, 1.5, 1.0),
        ([NEXT, 2.0, math.nextafter(NEXT, 2.0)], 3, NEXT, NEXT),  # nothing is between
        ([1.0, math.inf, math.inf], 3, 1.0, 1.0),
    ],
)
def test_equal_odds_stand_or_fall_together(
    odds: list[float], right: int, at: float, last: float
) -> None:
    """The first answer is right, and the others are to questions without one."""
    found = best_null_threshold([1.0] * 3, odds, [True, False, False], ["x", "y", "z"])
    assert found.best == pytest.approx(100 * right / 3)
    assert (found.at, found.last) == (at, last)


def test_a_threshold_is_finite_even_if_an_answer_without_a_span_is_right() -> None:
    found = best_null_threshold([1.0], [math.inf], [True], [""])
    assert (found.best, found.none) == (0.0, True)
