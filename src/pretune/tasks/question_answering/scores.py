"""How like the right answer an answer is, as SQuAD and CMRC 2018 measure it."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: What SQuAD's normalisation takes away.
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: What CMRC 2018's takes away (Cui et al. 2019, section 4; the list of its script).
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_IDEOGRAPH = re.compile("[\u4e00-\u9fa5]")
#: A run of letters and digits, or one other character that is no space.
_WORD = re.compile(r"\w+|[^\w\s]")

#: Exact match and F1 of an answer with the right ones.
Compare = Callable[[Sequence[str], str], tuple[float, float]]


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, without articles, one space between words.

    Rajpurkar et al. 2016, section 6.1.
    """
    plain = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(plain.split())


def _word_f1(right: str, given: str, *, empty_counts: bool) -> float:
    ours, theirs = normalized(given).split(), normalized(right).split()
    if empty_counts and not (ours and theirs):
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return (2 * precision * recall) / (precision + recall)


def squad_v1(right: Sequence[str], given: str) -> tuple[float, float]:
    """As SQuAD 1.1's script: the best of all right answers."""
    exact = float(any(normalized(text) == normalized(given) for text in right))
    return exact, max((_word_f1(text, given, empty_counts=False) for text in right), default=0.0)


def squad_v2(right: Sequence[str], given: str) -> tuple[float, float]:
    """As SQuAD 2.0's script: where there is no right answer, none (an empty one) is right."""
    texts = [text for text in right if normalized(text)] or [""]
    exact = float(any(normalized(text) == normalized(given) for text in texts))
    return exact, max(_word_f1(text, given, empty_counts=True) for text in texts)


def mixed_segments(text: str) -> list[str]:
    """Chinese characters one by one, and words of other scripts; without CMRC's marks.

    The script cuts what is not Chinese by NLTK's Treebank rules; here letters and digits stay
    together, and every other character is by itself.
    """
    kept = "".join(character for character in text.lower().strip() if character not in _CMRC_MARKS)
    apart = _IDEOGRAPH.sub(lambda found: f" {found[0]} ", kept)
    return _WORD.findall(apart)


def cmrc(right: Sequence[str], given: str) -> tuple[float, float]:
    """As CMRC 2018's script: F1 over the longest run of segments that both have in common."""
    plain = [_without_marks(text) for text in right]
    exact = float(_without_marks(given) in plain)
    ours = mixed_segments(given)
    best = 0.0
    for text in right:
        theirs = mixed_segments(text)
        shared = _longest_run(theirs, ours)
        if shared:
            precision, recall = shared / len(ours), shared / len(theirs)
            best = max(best, (2 * precision * recall) / (precision + recall))
    return exact, best


def _without_marks(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_MARKS)


def _longest_run(first: list[str], second: list[str]) -> int:
    """The length of the longest run of items that both lists have."""
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
    answered = [texts for texts in right if texts]
    found = sum(_IDEOGRAPH.search(texts[0]) is not None for texts in answered)
    return 2 * found > len(answered)


def comparison(right: Sequence[Sequence[str]], match: str, *, no_answer: bool) -> Compare:
    """The script by which answers are compared with the right ones.

    Args:
        right: the right answers of each record.
        match: as `AnswerOptions` has it.
        no_answer: whether there may be none.
    """
    if no_answer:
        return squad_v2
    if match == "characters" or (match == "auto" and is_chinese(right)):
        return cmrc
    return squad_v1


@dataclass(frozen=True)
class Threshold:
    """The threshold at which most is right.

    Attributes:
        best: the figure there, in percent.
        at: the threshold: where the score for no answer is above it, none is given. It is halfway
            between two odds, for data that are like these.
        last: the odds of the last answer that is given, which SQuAD 2.0's script calls the
            threshold; the figure is the same.
        none: whether nothing is better than to give no answer at all; `at` and `last` are 0 then,
            in the script too.
    """

    best: float
    at: float
    last: float
    none: bool


def best_threshold(
    scores: Sequence[float], odds: Sequence[float], answered: Sequence[bool], given: Sequence[str]
) -> Threshold:
    """Go through all thresholds, from the answer that the model is surest of on.

    Answers of the same odds are given or not given together. (SQuAD 2.0's script adds them up one
    by one, so that its best figure may be one that no threshold gives.)

    Args:
        scores: of each answer, were it given.
        odds: how much more no answer scores.
        answered: whether there is a right answer.
        given: the answers; an empty one is no answer whatever the threshold.
    """
    now = best = float(len(answered) - sum(answered))
    last, following, none = 0.0, math.inf, True
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
    # Halfway, if that is a number below the next odds: they may be neighbours, or none.
    at = middle if math.isfinite(middle) and middle < following else last
    return Threshold(100.0 * best / max(len(scores), 1), at, last, none)
