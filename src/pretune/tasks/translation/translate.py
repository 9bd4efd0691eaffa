"""`translate`: a text in another language, written by an encoder-decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from tokenizers.processors import TemplateProcessing
from torch import nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, FeatureSet, PackedBatch, Selection, Skipped
from pretune.data.records import Records
from pretune.decoding.continuations import Generation, Prompt
from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Writer
from pretune.errors import RunError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.vocabulary import Scores
from pretune.models.language_model import LanguageModel
from pretune.tasks.base import (
    Loss,
    Prediction,
    Task,
    TaskOptions,
    UsesTokenizer,
    WritesAnswers,
    no_text,
    usual_length,
)
from pretune.tasks.distillation.teachable import TeachableTokens
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.losses import (
    NEXT,
    CrossEntropyOptions,
    perplexity,
    token_losses,
    with_perplexity,
)
from pretune.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

#: The maximum number of hypotheses that are written at the same time.
ROWS = 320
#: How many translations `TranslateMetrics.details` shows.
SHOWN = 10
#: sacrebleu's tokenizers that need nothing else installed.
Tokenization = Literal["13a", "intl", "zh", "char", "none"]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


class TranslateOptions(CrossEntropyOptions):
    """Options of `translate`."""

    name: Literal["translate"] = Field("translate", description="Translate a text.")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Spread this share of each target evenly over the vocabulary."
    )
    beams: int = Field(
        5,
        ge=1,
        le=1000,
        description="Beams of the search for a translation; 1: always the most probable token.",
    )
    validation_beams: int = Field(
        1,
        ge=1,
        le=1000,
        description="The same for the evaluations during training, which should be fast.",
    )
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="The search compares log-probability / tokens**length_penalty: above 0 it "
        "favours longer translations.",
    )
    length_ratio: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="A translation has at most this many tokens per token of its source, plus ten; "
        "0: at most max_length.",
    )
    candidates: int = Field(
        1, ge=1, le=1000, description="How many translations to give, best first; at most beams."
    )
    bleu_tokenizer: Tokenization | Literal["auto"] = Field(
        "auto",
        description="sacrebleu's tokenizer; auto: zh if the references are Chinese, else 13a.",
    )
    bleu_lowercase: bool = Field(False, description="Whether BLEU ignores case, as in some papers.")

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        if self.candidates > self.beams:
            raise ValueError("candidates must be at most beams")
        return self


@dataclass(frozen=True)
class TranslationPrediction(Prediction):
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
    def written(self) -> str:
        return "\n".join([text for text, _ in self.candidates] or [self.translation])


@dataclass(frozen=True)
class Translated:
    """Outputs of the model: the scores of the targets, if any; then the translations it writes.

    Each source may have several, best first; a forward pass alone writes none.
    """

    scores: Scores | None
    written: Sequence[Sequence[Generation]] = ()


class Translate(
    Task[TranslateOptions, TranslationPrediction], UsesTokenizer, WritesAnswers, TeachableTokens
):
    """A source and a target, read and written by an encoder-decoder; evaluated by BLEU and chrF.

    A pair is a feature of two sequences: the source with its end, and the start token with the
    target. Each token of the second has the next one as its target: the text and its end.
    """

    name: ClassVar[str] = "translate"
    options_type: ClassVar[type[TaskOptions]] = TranslateOptions
    head: ClassVar[str] = "translation"
    best_by: ClassVar[str] = "bleu"
    inputs: ClassVar[dict[str, str]] = {"source": "a text"}
    targets: ClassVar[dict[str, str]] = {"target": "its translation"}
    # In this order where each side has a vocabulary of its own.
    text_columns: ClassVar[tuple[str, ...]] = ("source", "target")
    # The same sentence may occur with several translations.
    kept_together: ClassVar[tuple[str, ...]] = ("source", "target")
    metric_options: ClassVar[tuple[str, ...]] = ("bleu_tokenizer", "bleu_lowercase")

    def __init__(self, options: TranslateOptions) -> None:
        super().__init__(options)
        self._training = False
        self._start = self._end = self._source_end = 0
        self._tokenizer: Tokenizer | None = None

    # Preprocessor

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer; make it end each text, also where it is used without pretune."""
        self._tokenizer, number = tokenizer, tokenizer.end_id
        self._source_end = number = self._end if number is None else number
        if number is not None and tokenizer.special_id("pad_token") is None:
            # transformers pads the texts of a batch with it; which token it is does not matter.
            tokenizer.settings.setdefault("pad_token", tokenizer.tokens([number])[0])
        # A tokenizer that does not end a text by itself is made to.
        (probe,) = tokenizer.encode(["a"])
        if probe.ids[-1:] != [number]:
            (end,) = tokenizer.tokens([number])
            ending = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
            tokenizer.engine.post_processor = ending
            # A model's own tokenizer class would replace the post-processor.
            tokenizer.settings["tokenizer_class"] = "PreTrainedTokenizerFast"

    @override
    def without_text(self, row: Mapping[str, Any], *, with_targets: bool) -> bool:
        """Whether the source is blank; of a pair, whether either side is."""
        columns = self.text_columns if with_targets else self.inputs
        return any(no_text(row.get(column)) for column in columns)

    @override
    def fit(self, records: Records) -> None:
        """Learn nothing; from now on, evaluations are those of a training."""
        self._training = True

    @property
    def beams(self) -> int:
        """The number of beams of a search."""
        return self.options.validation_beams if self._training else self.options.beams

    @property
    def decoding(self) -> Decoding:
        """The search for translations. At temperature 0 it takes the best, it does not sample."""
        options = self.options
        return Decoding(
            max_new_tokens=options.max_length,
            length_ratio=options.length_ratio,
            temperature=0,
            top_p=1.0,
            beams=self.beams,
            length_penalty=options.length_penalty,
            samples=min(options.candidates, self.beams),
            never=self._never,
        )

    @property
    def source_end(self) -> int:
        """The token that ends each source."""
        return self._source_end

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """Yield pairs; for training none that is too long: parts do not translate each other."""
        if not with_targets:
            texts = [records.text(row, "source") for row in rows]
            for row, (ids, cut) in zip(rows, self._sources(texts, tokenizer), strict=True):
                yield Feature(tokens=ids, record=row, truncated=cut)
            return
        for feature in self.evaluation_features(records, rows, tokenizer):
            if feature.truncated:
                limit = f"{self.options.max_length} tokens (task.max_length)"
                yield Skipped(feature.record, f"the source or the target has over {limit}")
            else:
                yield feature

    @override
    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """Yield all pairs; long ones are truncated, but not the texts that BLEU compares."""
        texts = [[records.text(row, column) for row in rows] for column in self.text_columns]
        limit = self.options.max_length - 1
        sources = self._sources(texts[0], tokenizer)
        targets = tokenizer.written.encode_bare(texts[1], offsets=False, literal=True)
        for row, (source, cut), encoding in zip(rows, sources, targets, strict=True):
            target = encoding.ids[:limit]
            yield Feature(
                tokens=[*source, self._start, *target],
                choices=(len(source), 1 + len(target)),
                targets={NEXT: [*(0 for _ in source), *target, self._end]},
                record=row,
                truncated=cut or len(encoding.ids) > limit,
            )

    def _sources(
        self, texts: Sequence[str], tokenizer: Tokenizer
    ) -> Iterable[tuple[list[int], bool]]:
        """Yield the tokens of each text with its end, and whether it was truncated."""
        limit, end = self.options.max_length, [self._source_end]
        for encoded in tokenizer.encode(texts, literal=True):
            ids = encoded.ids if encoded.ids[-1:] == end else encoded.ids + end
            yield (ids, False) if len(ids) <= limit else (ids[: limit - 1] + end, True)

    @override
    def feature_key(self) -> Any:
        return [super().feature_key(), self._start, self._end]

    # Head

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        """Build the model; its config says how targets begin and end."""
        model = build_head(backbone, "translation")
        config: Any = backbone.config
        self._start, self._end = config.decoder_start_token_id, config.eos_token_id
        return model

    @override
    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> Translated:
        """Score the targets, if there are any."""
        if batch.choices is None:
            return Translated(None)
        labels = batch.pairs[1].targets[NEXT]
        return Translated(model(batch, labels=labels, **self.options.score_options, **more))

    @override
    def loss(self, outputs: Translated, batch: PackedBatch) -> Loss:
        """Compute the cross-entropy with label smoothing, counted in tokens of the targets."""
        assert outputs.scores is not None  # noqa: S101 - there are targets
        scores = outputs.scores
        return Loss(scores.sum, scores.count, self.options.loss_parts(scores))

    # Learning from a teacher

    @override
    def scored_tokens(self, batch: PackedBatch) -> Selection:
        """Return the tokens of the targets, every other sequence."""
        targets = batch.owners % 2 == 1
        return Selection(targets.nonzero()[:, 0], batch.pairs[1].layout)

    @override
    def token_scores(self, outputs: Translated) -> Scores:
        assert outputs.scores is not None  # noqa: S101 - there are targets
        return outputs.scores

    # Answers

    @override
    def empty_answer(self) -> TranslationPrediction:
        return TranslationPrediction("", 0.0)

    @override
    def write(self, model: nn.Module, outputs: Translated, batch: PackedBatch) -> Translated:
        """Search for the translations of each source.

        Raises:
            RunError: each process holds only a share of the model.
        """
        if hasattr(model, "reshard"):
            raise RunError(
                "a model that is sharded over processes cannot write translations",
                "Set train.parallel=ddp; or evaluate afterwards: data.validation=null.",
            )
        assert self._tokenizer is not None  # noqa: S101 - bound
        sources = batch if batch.choices is None else batch.pairs[0]
        decoding = self.decoding
        count = decoding.samples
        writer = Writer(
            cast(LanguageModel, model),
            self._tokenizer.written,
            device=sources.tokens.device,
            batch_size=ROWS,
            stop_tokens=[self._end],
        )
        # Every source is a prompt of its own; `count` translations of each come one after another.
        parts = torch.split(sources.tokens.cpu(), list(sources.layout.lengths))
        written = writer.write([Prompt((), part.tolist()) for part in parts], decoding)
        groups = [written[i : i + count] for i in range(0, len(written), count)]
        return replace(outputs, written=groups)

    @override
    def predict(self, outputs: Translated, batch: PackedBatch) -> list[TranslationPrediction]:
        penalty, answers = self.options.length_penalty, []
        for hypotheses in outputs.written:
            texts = [(own.text.strip(), own.mean_logprob(penalty)) for own in hypotheses]
            answers.append(TranslationPrediction(*texts[0], texts if len(texts) > 1 else []))
        return answers

    # Scorer

    @override
    def metrics(self, features: Features | None = None) -> TranslateMetrics:
        return TranslateMetrics(features, self._bleu)

    @property
    def _bleu(self) -> BleuKind:
        chosen = self.options.bleu_tokenizer
        return BleuKind(None if chosen == "auto" else chosen, self.options.bleu_lowercase)

    @override
    def each_loss(self, outputs: Translated, batch: PackedBatch) -> EachLoss:
        assert outputs.scores is not None  # noqa: S101 - there are targets
        return token_losses(outputs.scores, batch.pairs[1].layout)

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

    @property
    def _never(self) -> tuple[int, ...]:
        """The tokens that are never written: the start token, padding in published models."""
        return () if self._start == self._end else (self._start,)

    @override
    def generation_entries(self) -> dict[str, Any]:
        """Describe the same search; transformers by itself stops after 20 tokens."""
        return {
            "decoder_start_token_id": self._start,
            "eos_token_id": self._end,
            "pad_token_id": self._start,
            "max_new_tokens": self.options.max_length,
            "num_beams": self.options.beams,
            "length_penalty": self.options.length_penalty,
            **({"bad_words_ids": [[token] for token in self._never]} if self._never else {}),
        }

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        architecture = str((config.get("architectures") or [""])[0])
        if architecture != "MarianMTModel":
            return None
        return cls(TranslateOptions(max_length=usual_length(config, 512)))


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


class TranslateMetrics:
    """Compare all translations with their references as they stand in the data."""

    def __init__(self, features: Features | None, kind: BleuKind) -> None:
        self._features = features if isinstance(features, FeatureSet) else None
        self._kind = kind
        self._texts: dict[int, str] = {}  # by the number of the feature
        self._nats, self._right, self._tokens = 0.0, 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the features, which every process has."""
        return {**vars(self), "_features": None}

    def update(self, outputs: Translated, batch: PackedBatch) -> None:
        """Add one batch."""
        scores = outputs.scores
        assert scores is not None  # noqa: S101 - there are targets
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
