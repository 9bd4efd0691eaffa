"""Active learning: which texts to label next, those a model is unsure of and that differ.

Uncertainty is that of the answer (Settles 2009, "Active Learning Literature Survey", section 3.1).
Texts that differ are chosen by greedy k-center on their embeddings: each next one is the farthest
from all that are chosen or labelled (Sener & Savarese 2018, "Active Learning for Convolutional
Neural Networks: A Core-Set Approach", arXiv:1708.00489, algorithm 1). Both together weigh that
distance by the uncertainty, as Zhdanov 2019 ("Diverse mini-batch Active Learning",
arXiv:1901.05954, section 3) weighs its clusters, so that a batch does not ask the same thing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretune.bundle.bundle import Bundle
from pretune.data.arrays import Array
from pretune.data.columns import as_text
from pretune.data.records import Record, Records
from pretune.errors import RunError, did_you_mean
from pretune.inference.answer_table import answered_row
from pretune.inference.embed import Embedder
from pretune.inference.predict import Predictor
from pretune.tasks.base import Prediction
from pretune.tasks.grading import TellsTruths

#: Measures of uncertainty, and what is looked for beside it.
MEASURES = ("entropy", "margin", "confidence")
CHOICES = ("both", "uncertain", "diverse")


@dataclass(frozen=True)
class RankedTexts:
    """Records in the order in which to label them.

    Attributes:
        records: as they were read.
        order: `[N]` their numbers, the first to label first.
        uncertainty: `[N]` of each record, from 0 (sure) to 1.
        answers: the model's, to each record.
        chosen: how many of the first were chosen with an eye on one another.
        inputs: the columns that the model reads.
        blank: how many have no text; they come last.
    """

    records: Records
    order: list[int]
    uncertainty: Array
    answers: list[Prediction]
    chosen: int
    inputs: tuple[str, ...]
    blank: int = 0

    def rows(self) -> list[Record]:
        """Return the records in their order, with answers, `uncertainty` and `rank` (from 1)."""
        return [
            {
                **answered_row(
                    self.records.rows[number],
                    self.records.renamed,
                    self.answers[number],
                    everything=False,
                ),
                "uncertainty": float(self.uncertainty[number]),
                "rank": place,
            }
            for place, number in enumerate(self.order, start=1)
        ]


def rank_texts(
    bundle: Bundle,
    records: Records,
    *,
    by: str = "entropy",
    choose: str = "both",
    count: int = 100,
    known: Records | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> RankedTexts:
    """Order unlabelled records by what a label of them would teach.

    Args:
        bundle: a model whose answers are labels with probabilities.
        records: of its task, without labels.
        by: the measure of uncertainty, one of `MEASURES`.
        choose: `uncertain` (by that alone), `diverse` (by k-center alone) or `both`.
        count: how many records to choose with an eye on one another; the rest follow by their
            uncertainty. Not for `uncertain`, which needs no embeddings.
        known: records that have labels already: what is like them is chosen late.
        device: where to compute.
        precision: as for predictions.
        progress: called with the number of sequences answered, and of all.

    Raises:
        RunError: the task's answers have no probabilities, or there is no such measure or choice.
        DataError: a record cannot be used.
    """
    for given, names in ((by, MEASURES), (choose, CHOICES)):
        if given not in names:
            raise RunError(f"nothing is ranked by '{given}'", did_you_mean(given, names))
    predictor = Predictor(bundle, device=device, precision=precision)
    answers = predictor.predict(records, progress=progress)
    unsure = np.array([uncertainty(predictor, answer, by) for answer in answers])
    # A record without text teaches nothing, however unsure its answer.
    texts = _texts(predictor, records)
    filled = [number for number, text in enumerate(texts) if text.strip()]
    first: list[int] = []
    if choose != "uncertain" and filled:
        embedder = Embedder(bundle, device=device)
        vectors = embedder.embed([texts[number] for number in filled])
        weights = unsure[filled] if choose == "both" else np.ones(len(filled))
        labelled = None
        if known is not None:
            known_texts = [text for text in _texts(predictor, known) if text.strip()]
            labelled = embedder.embed(known_texts) if known_texts else None
        places = farthest_first(vectors, weights, min(count, len(filled)), labelled)
        first = [filled[place] for place in places]
    # The rest by uncertainty; of equal ones the earlier record.
    left = {*filled} - {*first}
    rest = [int(i) for i in np.argsort(-unsure, kind="stable") if int(i) in left]
    blank = [number for number, text in enumerate(texts) if not text.strip()]
    inputs = (*predictor.task.inputs,)
    order = [*first, *rest, *blank]
    return RankedTexts(records, order, unsure, answers, len(first), inputs, len(blank))


def _texts(predictor: Predictor, records: Records) -> list[str]:
    """Return one text for each record: its inputs, one after the other."""
    names = [*predictor.task.inputs]
    return [
        " ".join(filter(None, (as_text(row.get(name)) for name in names))) for row in records.rows
    ]


def uncertainty(predictor: Predictor, answer: Prediction, by: str) -> float:
    """Compute how unsure a model is of an answer, from 0 to 1.

    With K possible answers of the probabilities p, the highest p1 and p2:

        entropy      -sum(p log p) / log K
        margin       1 - (p1 - p2)
        confidence   (1 - p1) K / (K - 1)

    Of several decisions, as of `multilabel`, the mean.

    Raises:
        RunError: the answers of the task have no probabilities.
    """
    distributions = _distributions(predictor, answer)
    values = []
    for probabilities in distributions:
        p = np.sort(np.asarray(probabilities, dtype=np.float64))[::-1]
        if by == "entropy":
            values.append(-float((p * np.log(np.maximum(p, 1e-300))).sum()) / np.log(len(p)))
        elif by == "margin":
            values.append(1.0 - float(p[0] - p[1]))
        else:
            values.append((1.0 - float(p[0])) * len(p) / (len(p) - 1))
    return float(np.clip(np.mean(values), 0.0, 1.0))


def _distributions(predictor: Predictor, answer: Prediction) -> Sequence[Sequence[float]]:
    ranked: list[tuple[Any, float]] = answer.ranked()
    if not isinstance(predictor.task, TellsTruths) or not ranked:
        raise RunError(
            f"the answers of the task {predictor.task.name} have no probabilities to rank texts by",
            "Ask a classifier: classify, multilabel or choose.",
        )
    scores = [score for _, score in ranked]
    if answer.given is not None:  # each is a yes or no of its own
        return [(score, 1 - score) for score in scores]
    return [scores]


def farthest_first(
    vectors: Array, weights: Array, count: int, known: Array | None = None
) -> list[int]:
    """Choose vectors greedily: each next one has the largest weight times distance to the others.

    With equal weights it is greedy k-center: no set of `count` vectors leaves one of the others
    less than half as far from its nearest (Gonzalez 1985).

    Args:
        vectors: `[N, D]`.
        weights: `[N]` at least 0.
        count: how many to choose.
        known: `[M, D]` vectors that count as chosen before; None: the first is the one with the
            largest weight.

    Returns:
        their numbers, in the order of the choice.
    """
    # The squared distance of each vector to the nearest that is chosen.
    nearest = np.full(len(vectors), np.inf)
    for vector in () if known is None else known:
        nearest = np.minimum(nearest, np.square(vectors - vector).sum(1))
    chosen: list[int] = []
    left = np.ones(len(vectors), dtype=bool)
    for _ in range(count):
        distance = np.sqrt(nearest) if np.isfinite(nearest).any() else np.ones(len(vectors))
        gain = np.where(left, weights * distance, -1.0)
        best = int(gain.argmax())
        if gain[best] <= 0:  # all the rest are copies, or certain: the most uncertain is next
            best = int(np.where(left, weights, -1.0).argmax())
        chosen.append(best)
        left[best] = False
        nearest = np.minimum(nearest, np.square(vectors - vectors[best]).sum(1))
    return chosen
