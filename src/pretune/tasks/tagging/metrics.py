"""Precision, recall and F1 of entities, as conlleval counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from pretune.data.arrays import Array
from pretune.data.batch import PackedBatch
from pretune.models.heads.token import TagScores
from pretune.tasks.tagging.decode import WindowTags, decode, window_tags
from pretune.tasks.tagging.features import BEGINS, ENDS, LABEL, WORD
from pretune.tasks.tagging.schemes import Scheme, spans


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
        figures = entity_figures(*self._counts(sorted({*self._true, *self._guessed})))
        found = {name: float(value) for name, value in figures.items()}
        return {**found, "accuracy": self._words_right / max(self._words, 1)}

    def _counts(self, types: Sequence[str]) -> list[Array]:
        """`[types]` each: those that were found rightly, those found, those there."""
        counts = (self._right, self._guessed, self._true)
        return [np.array([own[kind] for kind in types], dtype=float) for own in counts]

    def details(self) -> dict[str, Any]:
        """Figures and counts of each type."""
        self._close()
        types = sorted({*self._true, *self._guessed})
        precision, recall, f1 = _figures(*self._counts(types))
        per_class = {
            kind: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": self._true[kind],
                "found": self._guessed[kind],
                "right": self._right[kind],
            }
            for i, kind in enumerate(types)
        }
        return {"examples": self._sentences, "words": self._words, "per_class": per_class}


def entity_figures(right: Array, guessed: Array, true: Array) -> dict[str, Array]:
    """Figures of entities of all types together, and the mean of the types' F1.

    Args:
        right: `[..., types]` how many of each type were found rightly; and so on
        guessed: how many were found.
        true: how many there are; a type of which there is none, found or not, is left out.
    """
    precision, recall, f1 = _figures(right.sum(-1), guessed.sum(-1), true.sum(-1))
    seen = (guessed + true > 0).sum(-1)
    macro = _figures(right, guessed, true)[2].sum(-1) / np.maximum(seen, 1)
    return {"f1": f1, "precision": precision, "recall": recall, "macro_f1": macro}


def _figures(right: Array, guessed: Array, true: Array) -> tuple[Array, Array, Array]:
    """Precision, recall, F1; 0 where undefined."""
    return (
        right / np.maximum(guessed, 1),
        right / np.maximum(true, 1),
        2 * right / np.maximum(guessed + true, 1),
    )
