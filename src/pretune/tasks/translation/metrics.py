"""How good translations are: BLEU and chrF by sacrebleu, perplexity and accuracy of the tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from pretune.data.arrays import Array
from pretune.data.batch import Features, FeatureSet, PackedBatch
from pretune.models.heads.vocabulary import Scores

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU, BLEUScore

#: sacrebleu's ways to take texts apart that need nothing else installed.
Tokenization = Literal["13a", "intl", "zh", "char", "none"]
#: How many translations `details` shows.
SHOWN = 10

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


def tokenization_for(references: Sequence[str]) -> Tokenization:
    """`zh` where more than a third of all characters are Chinese ones, else sacrebleu's usual."""
    every = sum(map(len, references))
    return "zh" if 3 * sum(len(_HAN.findall(text)) for text in references) > every else "13a"


@dataclass(frozen=True)
class BleuKind:
    """Which of sacrebleu's BLEUs.

    Attributes:
        tokenization: how texts are taken apart; None: by the references.
        lowercase: whether capitals count as small letters.
    """

    tokenization: Tokenization | None = None
    lowercase: bool = False

    def metric(self, references: Sequence[str]) -> BLEU:
        """Sacrebleu's object, for these references."""
        from sacrebleu.metrics.bleu import BLEU  # which is slow to import

        tokenization = self.tokenization or tokenization_for(references)
        metric = BLEU(tokenize=tokenization, lowercase=self.lowercase)
        metric.num_refs = 1  # which the signature says, and only a score sets
        return metric


def bleu_counts(metric: BLEU, text: str, reference: str) -> tuple[float, ...]:
    """What BLEU knows of a translation, which adds up over translations: its tokens and those of
    the reference; of its n-grams for n from 1 to 4 how many are in there, and how many there are.
    """
    found = metric.corpus_score([text], [[reference]])
    return (found.sys_len, found.ref_len, *found.counts, *found.totals)


def bleu_of(sums: Array) -> Array:
    """BLEU of sums of `bleu_counts`, `[..., 10]`, as sacrebleu has it (smoothing `exp`)."""
    length, reference = sums[..., 0], sums[..., 1]
    right, every = sums[..., 2:6], sums[..., 6:10]
    halved = np.cumsum((right == 0) & (every > 0), -1)  # the n-th size without a hit: half as much
    hits = np.where(right > 0, right, 0.5**halved)
    logs = np.where(every > 0, np.log(hits / np.maximum(every, 1)), -np.inf)
    brevity = np.minimum(1.0, np.exp(1.0 - reference / np.maximum(length, 1)))
    found: Array = 100.0 * brevity * np.exp(logs.mean(-1)) * (right.sum(-1) > 0)
    return found


class TranslateMetrics:
    """Over all pairs: translations beside their references as they were given.

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
        """Without the features: where this goes to be merged, they are too."""
        return {**vars(self), "_features": None}

    def update(self, outputs: Any, batch: PackedBatch) -> None:
        """Take in one batch of `Translated`."""
        scores: Scores = outputs.scores
        self._nats += float(scores.cross_entropy)
        self._right += scores.right
        self._tokens += scores.count
        for index, found in zip(batch.index.tolist(), outputs.found, strict=True):
            self._texts[index] = found[0].text.strip()

    def merge(self, other: Self) -> None:
        """Take in another's."""
        self._nats += other._nats
        self._right += other._right
        self._tokens += other._tokens
        self._texts |= other._texts

    def result(self) -> dict[str, float]:
        """`bleu` and `chrf` from 0 to 100; `perplexity` a token of the references, and `accuracy`:
        how often the most probable token is theirs."""
        texts, references = self._sides()
        tokens = max(self._tokens, 1)
        return {
            "bleu": self._bleu(texts, references).score if texts else 0.0,
            "chrf": self._chrf(texts, references)[0] if texts else 0.0,
            "perplexity": math.exp(min(self._nats / tokens, 700.0)),
            "accuracy": self._right / tokens,
        }

    def details(self) -> dict[str, Any]:
        """The signatures of sacrebleu, the parts of BLEU, and the first translations."""
        texts, references = self._sides()
        if not texts:
            return {}
        bleu = self._bleu(texts, references)
        metric = self._kind.metric(references)
        first = sorted(self._texts)[:SHOWN]
        return {
            "signatures": {
                "bleu": str(metric.get_signature()),
                "chrf": self._chrf(texts, references)[1],
            },
            "precisions": list(bleu.precisions),
            "brevity_penalty": bleu.bp,
            "length_ratio": bleu.ratio,
            "translations": [
                {
                    "source": self._column(index, "source"),
                    "translation": self._texts[index],
                    "reference": self._column(index, "target"),
                }
                for index in first
            ],
        }

    def _column(self, index: int, name: str) -> str:
        assert self._features is not None  # noqa: S101 - there are texts
        return str(self._features.rows[self._features.record(index)][name])

    def _sides(self) -> tuple[list[str], list[str]]:
        """Translations and references."""
        order = sorted(self._texts)
        return [self._texts[i] for i in order], [self._column(i, "target") for i in order]

    def _bleu(self, texts: Sequence[str], references: Sequence[str]) -> BLEUScore:
        found: BLEUScore = self._kind.metric(references).corpus_score(texts, [references])
        return found

    def _chrf(self, texts: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
        from sacrebleu.metrics.chrf import CHRF

        metric = CHRF()
        return metric.corpus_score(texts, [references]).score, str(metric.get_signature())
