"""Figures of translations: BLEU and chrF by sacrebleu, perplexity and accuracy of the tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from pretune.data.arrays import Array
from pretune.data.batch import Features, FeatureSet, PackedBatch
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.losses import perplexity

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

#: sacrebleu's tokenizers that need nothing else installed.
Tokenization = Literal["13a", "intl", "zh", "char", "none"]
#: How many translations `details` shows.
SHOWN = 10

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


def tokenization_for(references: Sequence[str]) -> Tokenization:
    """Return `zh` if more than a third of all characters are Chinese, else sacrebleu's default."""
    characters = sum(map(len, references))
    chinese = sum(len(_HAN.findall(text)) for text in references)
    return "zh" if 3 * chinese > characters else "13a"


@dataclass(frozen=True)
class BleuKind:
    """A variant of BLEU.

    Attributes:
        tokenization: sacrebleu's tokenizer; None: chosen by the references.
        lowercase: whether case is ignored.
    """

    tokenization: Tokenization | None = None
    lowercase: bool = False

    def metric(self, references: Sequence[str]) -> BLEU:
        """Return sacrebleu's metric for these references."""
        from sacrebleu.metrics.bleu import BLEU  # which is slow to import

        tokenization = self.tokenization or tokenization_for(references)
        metric = BLEU(tokenize=tokenization, lowercase=self.lowercase)
        metric.num_refs = 1  # part of the signature, which otherwise only a score sets
        return metric


def bleu_counts(metric: BLEU, text: str, reference: str) -> tuple[float, ...]:
    """Return the ten counts of a translation from whose sums BLEU is computed.

    They are its tokens, the reference's tokens, and for n from 1 to 4 how many of its n-grams are
    in the reference, and how many n-grams it has.
    """
    score = metric.corpus_score([text], [[reference]])
    return (score.sys_len, score.ref_len, *score.counts, *score.totals)


def bleu_of(sums: Array) -> Array:
    """Compute BLEU as sacrebleu does (smoothing `exp`) from sums `[..., 10]` of `bleu_counts`."""
    length, reference = sums[..., 0], sums[..., 1]
    right, total = sums[..., 2:6], sums[..., 6:10]
    # Instead of no match: 1/2 for the first n without any, 1/4 for the next, ...
    halvings = np.cumsum((right == 0) & (total > 0), -1)
    matches = np.where(right > 0, right, 0.5**halvings)
    logs = np.where(total > 0, np.log(matches / np.maximum(total, 1)), -np.inf)
    brevity = np.minimum(1.0, np.exp(1.0 - reference / np.maximum(length, 1)))
    bleu: Array = 100.0 * brevity * np.exp(logs.mean(-1)) * (right.sum(-1) > 0)
    return bleu


class TranslateMetrics:
    """Compare all translations with their references as they stand in the data.

    Args:
        features: of pairs, whose records have `source` and `target`.
        kind: of BLEU.
    """

    def __init__(self, features: Features | None, kind: BleuKind) -> None:
        self._features = features if isinstance(features, FeatureSet) else None
        self._kind = kind
        self._texts: dict[int, str] = {}  # by the number of the feature
        self._nats, self._right, self._tokens = 0.0, 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the features, which every process has."""
        return {**vars(self), "_features": None}

    def update(self, outputs: Any, batch: PackedBatch) -> None:
        """Add one batch of `Translated`."""
        scores: Scores = outputs.scores
        self._nats += float(scores.cross_entropy)
        self._right += scores.right
        self._tokens += scores.count
        for index, written in zip(batch.index.tolist(), outputs.written, strict=True):
            self._texts[index] = written[0].text.strip()

    def merge(self, other: Self) -> None:
        """Add the sums and translations of another process."""
        self._nats += other._nats
        self._right += other._right
        self._tokens += other._tokens
        self._texts |= other._texts

    def result(self) -> dict[str, float]:
        """Compute the figures.

        `bleu` and `chrf` from 0 to 100; `perplexity` of a token of the references; `accuracy`, how
        often the most probable token is the reference's.
        """
        texts, references = self._texts_and_references()
        bleu = chrf = 0.0
        if texts:  # else only the names are wanted, and sacrebleu is slow to import
            bleu = self._kind.metric(references).corpus_score(texts, [references]).score
            chrf, _ = _chrf(texts, references)
        return {
            "bleu": bleu,
            "chrf": chrf,
            "perplexity": perplexity(self._nats, self._tokens),
            "accuracy": self._right / max(self._tokens, 1),
        }

    def details(self) -> dict[str, Any]:
        """Return the signatures of sacrebleu, the parts of BLEU, and the first translations."""
        texts, references = self._texts_and_references()
        if not texts:
            return {}
        metric = self._kind.metric(references)
        bleu = metric.corpus_score(texts, [references])
        _, chrf_signature = _chrf(texts, references)
        first = zip(sorted(self._texts), texts, references, strict=True)
        return {
            "signatures": {"bleu": str(metric.get_signature()), "chrf": chrf_signature},
            "precisions": list(bleu.precisions),
            "brevity_penalty": bleu.bp,
            "length_ratio": bleu.ratio,
            "translations": [
                {"source": self._column(i, "source"), "translation": text, "reference": reference}
                for i, text, reference in list(first)[:SHOWN]
            ],
        }

    def _column(self, index: int, name: str) -> str:
        assert self._features is not None  # noqa: S101 - there are texts
        return str(self._features.rows[self._features.record(index)][name])

    def _texts_and_references(self) -> tuple[list[str], list[str]]:
        order = sorted(self._texts)
        return [self._texts[i] for i in order], [self._column(i, "target") for i in order]


def _chrf(texts: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Compute chrF; return it with its signature."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    return metric.corpus_score(texts, [references]).score, str(metric.get_signature())
