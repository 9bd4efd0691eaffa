"""`translate`: a text in another language, written by an encoder-decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Features
from pretune.data.records import Records
from pretune.tasks.base import TaskOptions, published_architecture
from pretune.tasks.grading import Grade
from pretune.tasks.losses import with_perplexity
from pretune.tasks.translation.rewriting import (
    RewriteOptions,
    Rewriting,
    WrittenMetrics,
    WrittenPrediction,
    checked_options,
    published_options,
)

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

#: How many translations `TranslateMetrics.details` shows.
SHOWN = 10
#: sacrebleu's tokenizers that need nothing else installed.
Tokenization = Literal["13a", "intl", "zh", "char", "none"]
#: How the published classes are called that are read as translators.
_CLASSES = ("MarianMTModel", "ForConditionalGeneration")

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


class TranslateOptions(RewriteOptions):
    """Options of `translate`."""

    name: Literal["translate"] = Field("translate", description="Translate a text.")
    bleu_tokenizer: Tokenization | Literal["auto"] = Field(
        "auto",
        description="sacrebleu's tokenizer; auto: zh if the references are Chinese, else 13a.",
    )
    bleu_lowercase: bool = Field(False, description="Whether BLEU ignores case, as in some papers.")


@dataclass(frozen=True)
class TranslationPrediction(WrittenPrediction):
    """A translation.

    Attributes:
        translation: the best one.
        score: its log-probability over its tokens to the power of `length_penalty`.
        candidates: where several were asked for, each with its score, best first.
    """

    translation: str
    score: float
    candidates: list[tuple[str, float]] = field(default_factory=list)

    @property
    @override
    def best(self) -> str:
        return self.translation


class Translate(Rewriting[TranslateOptions, TranslationPrediction]):
    """A source and a target, read and written by an encoder-decoder; evaluated by BLEU and chrF."""

    name: ClassVar[str] = "translate"
    options_type: ClassVar[type[TaskOptions]] = TranslateOptions
    best_by: ClassVar[str] = "bleu"
    inputs: ClassVar[dict[str, str]] = {"source": "a text"}
    targets: ClassVar[dict[str, str]] = {"target": "its translation"}
    # In this order where each side has a vocabulary of its own.
    text_columns: ClassVar[tuple[str, ...]] = ("source", "target")
    # The same sentence may occur with several translations.
    kept_together: ClassVar[tuple[str, ...]] = ("source", "target")
    metric_options: ClassVar[tuple[str, ...]] = ("bleu_tokenizer", "bleu_lowercase")

    @override
    def answer(
        self, text: str, score: float, candidates: list[tuple[str, float]]
    ) -> TranslationPrediction:
        return TranslationPrediction(text, score, candidates)

    # Scorer

    @override
    def metrics(self, features: Features | None = None) -> TranslateMetrics:
        return TranslateMetrics(features, self._bleu)

    @property
    def _bleu(self) -> BleuKind:
        chosen = self.options.bleu_tokenizer
        return BleuKind(None if chosen == "auto" else chosen, self.options.bleu_lowercase)

    @override
    def grader(self, records: Records) -> Callable[[TranslationPrediction, int], Grade]:
        """Show both texts; the counts are those of BLEU."""
        references = [records.text(row, "target") for row in range(len(records))]
        metric = self._bleu.metric(references)

        def grade(answer: TranslationPrediction, row: int) -> Grade:
            counts = bleu_counts(metric, answer.translation, references[row])
            return Grade(references[row], answer.translation, counts=counts)

        return grade

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        return {**with_perplexity(super().figures(sums)), "bleu": bleu_of(sums[..., 2:])}

    # Described

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        if not published_architecture(config).endswith(_CLASSES):
            return None
        return cls(checked_options(TranslateOptions, published_options(config)))


def tokenization_for(references: Sequence[str]) -> Tokenization:
    """Return `zh` if more than a third of all characters are Chinese, else sacrebleu's default."""
    characters = sum(map(len, references))
    chinese = sum(len(_HAN.findall(text)) for text in references)
    return "zh" if 3 * chinese > characters else "13a"


@dataclass(frozen=True)
class BleuKind:
    """A variant of BLEU; without a tokenization, one is chosen by the references."""

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


class TranslateMetrics(WrittenMetrics):
    """Compare all translations with their references by BLEU and chrF."""

    def __init__(self, features: Features | None, kind: BleuKind) -> None:
        super().__init__(features)
        self._kind = kind

    @override
    def result(self) -> dict[str, float]:
        """Compute the figures: `bleu` and `chrf` from 0 to 100, and those of the tokens."""
        texts, references = self._texts_and_references()
        bleu = chrf = 0.0
        if texts:  # else only the names are wanted, and sacrebleu is slow to import
            bleu = self._kind.metric(references).corpus_score(texts, [references]).score
            chrf, _ = _chrf(texts, references)
        return {"bleu": bleu, "chrf": chrf, **super().result()}

    def details(self) -> dict[str, Any]:
        """Return the signatures of sacrebleu, the parts of BLEU, and the first translations."""
        texts, references = self._texts_and_references()
        if not texts:
            return {}
        metric = self._kind.metric(references)
        bleu = metric.corpus_score(texts, [references])
        _, chrf_signature = _chrf(texts, references)
        names = ("source", "translation", "reference")
        told = self.compared("source", "target")[:SHOWN]
        return {
            "signatures": {"bleu": str(metric.get_signature()), "chrf": chrf_signature},
            "precisions": list(bleu.precisions),
            "brevity_penalty": bleu.bp,
            "length_ratio": bleu.ratio,
            "translations": [dict(zip(names, row, strict=True)) for row in told],
        }

    def _texts_and_references(self) -> tuple[list[str], list[str]]:
        told = self.compared("source", "target")
        return [text for _, text, _ in told], [reference for *_, reference in told]


def _chrf(texts: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Compute chrF; return it with its signature."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    return metric.corpus_score(texts, [references]).score, str(metric.get_signature())
