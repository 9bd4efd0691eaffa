"""From logits to the tags of sentences; figures of entities as in conlleval; kinds of mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from pretune.data.arrays import Array
from pretune.data.batch import PackedBatch
from pretune.models.heads.crf import CrfWeights, marginals, viterbi
from pretune.models.heads.token import TagScores
from pretune.tasks.classification.counts import class_table, f1_scores
from pretune.tasks.grading import Mistake
from pretune.tasks.tagging.features import BEGINS, ENDS, LABEL, WORD
from pretune.tasks.tagging.schemes import EntitySpan, Scheme, follows, spans


@dataclass(frozen=True)
class WindowTags:
    """The outputs for the words that count in a window: logits `[W, labels]` float32.

    `field` has the weights of the model's CRF, the same for all windows; None without a CRF.
    """

    logits: Array
    field: CrfWeights | None


def window_tags(outputs: TagScores, batch: PackedBatch) -> list[WindowTags]:
    """Split the outputs of a batch by window, on the host."""
    lengths = batch.where(batch.targets[WORD] >= 0).layout.lengths
    logits = outputs.logits.detach().float().cpu().numpy()
    field = None if outputs.field is None else outputs.field.cpu()
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))[:-1]
    return [WindowTags(part.copy(), field) for part in np.split(logits, ends)]


def decode_tags(
    sentences: Sequence[Sequence[WindowTags]], labels: Sequence[str], scheme: Scheme
) -> list[tuple[Array, Array]]:
    """Choose the label of every word from the windows of its sentence, which are in order.

    Without a CRF, each word gets its most probable label. With a CRF, a sentence gets the best
    sequence among those that are well-formed in the scheme, across its windows; the probabilities
    are the marginals of the CRF, for which all sequences count.

    Returns:
        for each sentence `[W]` int64, the labels, and `[W, labels]` float32, the probabilities.
    """
    whole = [np.concatenate([part.logits for part in parts]) for parts in sentences]
    lengths = [len(logits) for logits in whole]
    logits = torch.from_numpy(np.concatenate(whole))
    field = sentences[0][0].field
    if field is None:
        best, probabilities = logits.argmax(-1), logits.softmax(-1)
    else:
        best = viterbi(logits, lengths, well_formed(field, labels, scheme))
        probabilities = marginals(logits, lengths, field)
    ends = np.cumsum(lengths)[:-1]
    parts = np.split(best.numpy(), ends), np.split(probabilities.numpy(), ends)
    return list(zip(*parts, strict=True))


def well_formed(field: CrfWeights, labels: Sequence[str], scheme: Scheme) -> CrfWeights:
    """Set to minus infinity what no sequence of tags has that is well-formed in a scheme."""
    steps = torch.tensor([[follows(a, b, scheme) for b in labels] for a in labels])
    starts = torch.tensor([follows(None, label, scheme) for label in labels])
    stops = torch.tensor([follows(label, None, scheme) for label in labels])
    return field.only(steps, starts, stops)


class TagMetrics:
    """Count entities and tags; a sentence in several windows counts once all of them have come.

    An entity is right if its type and both its ends are (Tjong Kim Sang & De Meulder 2003, section
    2.3). Tags that are not well-formed are read as the script of that shared task reads them; see
    `spans`.
    """

    def __init__(self, labels: Sequence[str], scheme: Scheme) -> None:
        self._labels, self._scheme = list(labels), scheme
        #: By ("right", type), ("found", type) and ("true", type): numbers of entities.
        self._entities: Counter[tuple[str, str]] = Counter()
        #: `sentences`, `words`, and the words whose tag is right, `words_right`.
        self._totals: Counter[str] = Counter()
        # By its number: a window, its truth, and whether it ends its sentence.
        self._parts: dict[int, tuple[WindowTags, list[int], bool]] = {}

    def update(self, outputs: TagScores, batch: PackedBatch) -> None:
        """Add one batch."""
        truth = iter(batch.targets[LABEL][batch.targets[WORD] >= 0].tolist())
        begins, ends = (batch.targets[name].tolist() for name in (BEGINS, ENDS))
        windows, numbers, whole = window_tags(outputs, batch), batch.index.tolist(), []
        for index, part, first, last in zip(numbers, windows, begins, ends, strict=True):
            own = [next(truth) for _ in range(len(part.logits))]
            if first and last:
                whole.append(([part], own))
            else:
                self._parts[index] = part, own, last
        self._count(whole)

    def _count(self, sentences: Sequence[tuple[list[WindowTags], list[int]]]) -> None:
        if not sentences:
            return
        answers = decode_tags([parts for parts, _ in sentences], self._labels, self._scheme)
        for (_, truth), (labels, _) in zip(sentences, answers, strict=True):
            true = {*spans([self._labels[i] for i in truth])}
            predicted = {*spans([self._labels[i] for i in labels.tolist()])}
            groups = {"right": true & predicted, "found": predicted, "true": true}
            for count, entities in groups.items():
                self._entities.update((count, span.type) for span in entities)
            right = int((np.array(truth) == labels).sum())
            self._totals.update(sentences=1, words=len(truth), words_right=right)

    def merge(self, other: Self) -> None:
        """Add the counts and windows of another process."""
        self._entities.update(other._entities)
        self._totals.update(other._totals)
        self._parts.update(other._parts)

    def _table(self) -> tuple[list[str], Array, Array, Array]:
        """Return the types, and of each how many are right, true and predicted."""
        # Count the sentences in several windows, now that all windows have come.
        sentences: list[tuple[list[WindowTags], list[int]]] = [([], [])]
        for index in sorted(self._parts):
            part, truth, last = self._parts[index]
            sentences[-1][0].append(part)
            sentences[-1][1].extend(truth)
            if last:
                sentences.append(([], []))
        self._parts = {}
        self._count([sentence for sentence in sentences if sentence[0]])
        types = sorted({kind for _, kind in self._entities})
        right, true, predicted = (
            np.array([self._entities[count, kind] for kind in types], dtype=float)
            for count in ("right", "true", "found")
        )
        return types, right, true, predicted

    def result(self) -> dict[str, float]:
        """Compute the figures of `entity_figures` and the share of right tags, from 0 to 1."""
        _, *counts = self._table()
        figures = {name: float(value) for name, value in entity_figures(*counts).items()}
        return {**figures, "accuracy": self._totals["words_right"] / max(self._totals["words"], 1)}

    def details(self) -> dict[str, Any]:
        """Return figures and counts of each type."""
        types, right, true, predicted = self._table()
        per_class: dict[str, dict[str, Any]] = {**class_table(types, right, true, predicted)}
        for i, kind in enumerate(types):
            per_class[kind] |= {"found": int(predicted[i]), "right": int(right[i])}
        totals = {"examples": self._totals["sentences"], "words": self._totals["words"]}
        return {**totals, "per_class": per_class}


def entity_figures(right: Array, true: Array, predicted: Array) -> dict[str, Array]:
    """Compute figures of entities of all types together, and the mean of the types' F1.

    A figure without anything to count is 0, as in conlleval.

    Args:
        right: `[..., types]`, how many of each type were predicted rightly.
        true: `[..., types]`, how many there are.
        predicted: `[..., types]`, how many were predicted. A type that neither occurs nor was
            predicted does not count in the mean.
    """
    hits, total, guesses = right.sum(-1), true.sum(-1), predicted.sum(-1)
    occurring = (true + predicted > 0).sum(-1)
    return {
        "f1": f1_scores(hits, total, guesses),
        "precision": hits / np.maximum(guesses, 1),
        "recall": hits / np.maximum(total, 1),
        "macro_f1": f1_scores(right, true, predicted).sum(-1) / np.maximum(occurring, 1),
    }


def span_mistakes(
    right: Sequence[EntitySpan],
    predicted: Mapping[EntitySpan, float],
    text: Callable[[EntitySpan], str],
) -> list[Mistake]:
    """Return the mistakes in the entities of a sentence, each counted once.

    A wrong entity is paired with a missing one that it overlaps: first those of the same place
    (`type`), then those of the same type (`boundary`), then all others (`boundary and type`),
    longest overlap first. The rest is `spurious` or `missed`. Predicted entities have scores.
    """
    missing, wrong = set(right) - predicted.keys(), predicted.keys() - set(right)
    # All overlapping pairs, in the order in which they are taken.
    pairs = []
    for guess in wrong:
        for truth in missing:
            shared = min(guess.end, truth.end) - max(guess.start, truth.start)
            same = (guess.start, guess.end) == (truth.start, truth.end)
            if shared > 0:
                order = 0 if same else 1 if guess.type == truth.type else 2
                pairs.append((order, -shared, truth, guess))
    mistakes = []
    for order, _, truth, guess in sorted(pairs):
        if guess in wrong and truth in missing:
            wrong.remove(guess)
            missing.remove(truth)
            kind = ("type", "boundary", "boundary and type")[order]
            detail = guess.type if order == 1 else f"{truth.type} taken for {guess.type}"
            both = text(guess) if order == 0 else f"{text(guess)} (right: {text(truth)})"
            mistakes.append((guess.start, Mistake(kind, detail, predicted[guess], both)))
    # The entities without a partner.
    mistakes += [
        *((s.start, Mistake("spurious", s.type, predicted[s], text(s))) for s in wrong),
        *((s.start, Mistake("missed", s.type, None, text(s))) for s in missing),
    ]
    return [mistake for _, mistake in sorted(mistakes, key=lambda item: (item[0], str(item[1])))]
