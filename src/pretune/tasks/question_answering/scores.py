"""Comparison of answers with the right ones as in SQuAD and CMRC 2018; the best threshold."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Removed by SQuAD's normalisation.
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: Removed by CMRC 2018's normalisation (Cui et al. 2019, section 4; the list of its script).
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_IDEOGRAPH = re.compile("[\u4e00-\u9fa5]")
#: A run of letters and digits, or a single other character that is no space.
_WORD = re.compile(r"\w+|[^\w\s]")

#: Returns exact match and F1 of an answer, given the right ones.
Compare = Callable[[Sequence[str], str], tuple[float, float]]


def normalized(text: str) -> str:
    """Return a text in lower case without ASCII punctuation, articles and extra spaces.

    Rajpurkar et al. 2016, section 6.1.
    """
    plain = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(plain.split())


def _word_f1(right: str, given: str, *, empty_counts: bool) -> float:
    ours, theirs = normalized(given).split(), normalized(right).split()
    if empty_counts and not (ours and theirs):
        return float(ours == theirs)
    return _f1(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def _f1(shared: int, ours: int, theirs: int) -> float:
    """Compute F1 of lists of these lengths, in the order of operations of the scripts."""
    if shared == 0:
        return 0.0
    precision, recall = shared / ours, shared / theirs
    return (2 * precision * recall) / (precision + recall)


def squad_v1(right: Sequence[str], given: str) -> tuple[float, float]:
    """Compare as SQuAD 1.1's script does: with the right answer that fits best."""
    exact = float(any(normalized(text) == normalized(given) for text in right))
    return exact, max((_word_f1(text, given, empty_counts=False) for text in right), default=0.0)


def squad_v2(right: Sequence[str], given: str) -> tuple[float, float]:
    """Compare as SQuAD 2.0's script does: where there is no right answer, an empty one is right."""
    texts = [text for text in right if normalized(text)] or [""]
    exact = float(any(normalized(text) == normalized(given) for text in texts))
    return exact, max(_word_f1(text, given, empty_counts=True) for text in texts)


def mixed_segments(text: str) -> list[str]:
    """Split a text without CMRC's marks into Chinese characters and words of other scripts.

    CMRC's script splits what is not Chinese by NLTK's Treebank rules; here letters and digits stay
    together, and every other character stands alone.
    """
    return _WORD.findall(_IDEOGRAPH.sub(r" \g<0> ", _without_marks(text)))


def cmrc(right: Sequence[str], given: str) -> tuple[float, float]:
    """Compare as CMRC 2018's script does: F1 over the longest run of segments in common."""
    exact = float(_without_marks(given) in map(_without_marks, right))
    ours, best = mixed_segments(given), 0.0
    for theirs in map(mixed_segments, right):
        best = max(best, _f1(_longest_run(theirs, ours), len(ours), len(theirs)))
    return exact, best


def _without_marks(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_MARKS)


def _longest_run(first: list[str], second: list[str]) -> int:
    """Return the length of the longest run of items that both lists have."""
    best, before = 0, [0] * (len(second) + 1)
    for item in first:
        row = [0] * (len(second) + 1)
        for j, other in enumerate(second, start=1):
            if item == other:
                row[j] = before[j - 1] + 1
                best = max(best, row[j])
        before = row
    return best


def is_chinese(right: Sequence[Sequence[str]]) -> bool:
    """Whether more than half of the records that have right answers have Chinese ones."""
    chinese = [_IDEOGRAPH.search(texts[0]) is not None for texts in right if texts]
    return 2 * sum(chinese) > len(chinese)


def comparison(right: Sequence[Sequence[str]], match: str, *, no_answer: bool) -> Compare:
    """Choose how answers are compared with the right ones of all records, as `match` says."""
    if no_answer:
        return squad_v2
    if match == "characters" or (match == "auto" and is_chinese(right)):
        return cmrc
    return squad_v1


@dataclass(frozen=True)
class NullThreshold:
    """The threshold of the odds of no answer that gives the best figure.

    Attributes:
        best: the figure there, in percent.
        at: the threshold: no answer is given where the odds are above it. It lies halfway between
            two odds of these data, to suit data like them.
        last: the highest odds at which an answer is given, which SQuAD 2.0's script calls the
            threshold; the figure is the same.
        none: whether nothing is better than to give no answer at all; `at` and `last` are then 0,
            as in the script.
    """

    best: float
    at: float
    last: float
    none: bool


def best_null_threshold(
    scores: Sequence[float], odds: Sequence[float], answered: Sequence[bool], given: Sequence[str]
) -> NullThreshold:
    """Find the threshold with the highest sum of scores.

    Answers of equal odds are given or withheld together. (SQuAD 2.0's script adds them one at a
    time, so its best figure may be one that no threshold gives.) The scores are for answers that
    are given; an empty answer is none whatever the threshold.
    """
    # Where no answer is given at all, the records without a right answer are right.
    now = best = float(len(answered) - sum(answered))
    last, following, none = 0.0, math.inf, True
    # Then answers are given, from the one with the lowest odds on.
    order = sorted(range(len(odds)), key=odds.__getitem__)
    above = [*(odds[i] for i in order), math.inf][1:]
    for i, after in zip(order, above, strict=True):
        if answered[i]:
            now += scores[i]
        elif given[i]:
            now -= 1
        if now > best and odds[i] < after:
            best, last, following, none = now, odds[i], after, False
    middle = (last + following) / 2
    # Neighbouring floats have no number between them, and after the last odds comes infinity.
    at = middle if math.isfinite(middle) and middle < following else last
    return NullThreshold(100.0 * best / max(len(scores), 1), at, last, none)
