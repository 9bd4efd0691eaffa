"""Precision, recall and F1 of entities, as conlleval counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

from pretune.data import PackedBatch
from pretune.models import TagScores
from pretune.tasks.tag_decode import WindowTags, decode, window_tags
from pretune.tasks.tag_features import BEGINS, ENDS, LABEL, WORD
from pretune.tasks.tag_schemes import Scheme, spans


class TagMetrics:
    """Counts; of a sentence in several windows, the windows until all of them are there.

    An entity is right if its type and both its ends are (Tjong Kim Sang & De Meulder 2003, section
    2.3). Tags that are not well-formed are read as that task's script reads them; see `spans`.

    Args:
        labels: of the model.
        scheme: that these are in.
    """

    def __init__(self, labels: Sequence[str], scheme: Scheme) -> None:
        self._labels, self._scheme = list(labels), scheme
        self._right: Counter[str] = Counter()
        self._guessed: Counter[str] = Counter()
        self._true: Counter[str] = Counter()
        self._words = self._words_right = self._sentences = 0
        # By its number: a window, its truth, and whether its sentence ends with it.
        self._parts: dict[int, tuple[WindowTags, list[int], bool]] = {}

    def update(self, outputs: TagScores, batch: PackedBatch) -> None:
        """Take in one batch."""
        select = batch.where(batch.targets[WORD] >= 0)
        truth = iter(batch.targets[LABEL][select.rows].tolist())
        begins, ends = (batch.targets[name].tolist() for name in (BEGINS, ENDS))
        found = window_tags(outputs, select.layout.lengths)
        whole = []
        for index, part, first, last in zip(batch.index.tolist(), found, begins, ends, strict=True):
            own = [next(truth) for _ in range(len(part.logits))]
            if first and last:
                whole.append(([part], own))
            else:
                self._parts[index] = part, own, last
        self._count(whole)

    def _count(self, sentences: Sequence[tuple[list[WindowTags], list[int]]]) -> None:
        if not sentences:
            return
        answers = decode([parts for parts, _ in sentences], self._labels, self._scheme)
        for (_, truth), (guess, _) in zip(sentences, answers, strict=True):
            right = {*spans([self._labels[i] for i in truth])}
            found = {*spans([self._labels[i] for i in guess.tolist()])}
            self._true.update(span.type for span in right)
            self._guessed.update(span.type for span in found)
            self._right.update(span.type for span in right & found)
            self._words += len(truth)
            self._words_right += sum(a == b for a, b in zip(truth, guess.tolist(), strict=True))
            self._sentences += 1

    def merge(self, other: Self) -> None:
        """Add another's counts and windows."""
        self._right.update(other._right)
        self._guessed.update(other._guessed)
        self._true.update(other._true)
        self._words += other._words
        self._words_right += other._words_right
        self._sentences += other._sentences
        self._parts.update(other._parts)

    def _close(self) -> None:
        """Count the sentences that are in several windows, now that all are there."""
        sentences: list[tuple[list[WindowTags], list[int]]] = [([], [])]
        for index in sorted(self._parts):
            part, truth, last = self._parts[index]
            sentences[-1][0].append(part)
            sentences[-1][1].extend(truth)
            if last:
                sentences.append(([], []))
        self._parts = {}
        self._count([one for one in sentences if one[0]])

    def result(self) -> dict[str, float]:
        """From 0 to 1: of all entities together; the mean over the types; the share of right tags.

        A figure without anything to count is 0, as in conlleval.
        """
        self._close()
        totals = (sum(c.values()) for c in (self._right, self._guessed, self._true))
        precision, recall, f1 = _figures(*totals)
        types = {*self._true, *self._guessed}
        each = [_figures(self._right[t], self._guessed[t], self._true[t])[2] for t in types]
        return {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "macro_f1": sum(each) / max(len(each), 1),
            "accuracy": self._words_right / max(self._words, 1),
        }

    def details(self) -> dict[str, Any]:
        """Figures and counts of each type."""
        self._close()
        per_class = {}
        for kind in sorted({*self._true, *self._guessed}):
            counts = self._right[kind], self._guessed[kind], self._true[kind]
            precision, recall, f1 = _figures(*counts)
            per_class[kind] = {
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "support": counts[2],
                "found": counts[1],
                "right": counts[0],
            }
        return {"examples": self._sentences, "words": self._words, "per_class": per_class}


def _figures(right: int, guessed: int, true: int) -> tuple[float, float, float]:
    return (
        right / guessed if guessed else 0.0,
        right / true if true else 0.0,
        2 * right / (guessed + true) if guessed + true else 0.0,
    )
