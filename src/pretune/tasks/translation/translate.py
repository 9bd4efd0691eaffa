"""`translate`: a text in another language, written by an encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from tokenizers.processors import TemplateProcessing
from torch import nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch, Skipped
from pretune.data.records import Records
from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Generation, Prompt, Writer
from pretune.errors import DataError, RunError
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
    usual_length,
)
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.losses import NEXT, CrossEntropyOptions, token_losses, with_perplexity
from pretune.tasks.translation.scoring import (
    BleuKind,
    Tokenization,
    TranslateMetrics,
    bleu_counts,
    bleu_of,
)
from pretune.tokenizers.tokenizer import Tokenizer

#: The maximum number of hypotheses that are written at the same time.
ROWS = 320


class TranslateOptions(CrossEntropyOptions):
    """Options of `translate`."""

    name: Literal["translate"] = Field("translate", description="Translate a text.")
    label_smoothing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Spread this share of each target evenly over the vocabulary.",
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
    """Outputs of the model.

    Attributes:
        scores: of the targets, where there are any.
        written: the translations of each source, best first; empty after a forward pass.
    """

    scores: Scores | None
    written: Sequence[Sequence[Generation]] = ()


class Translate(Task[TranslateOptions, TranslationPrediction], UsesTokenizer, WritesAnswers):
    """A source and a target, read and written by an encoder-decoder; evaluated by BLEU and chrF.

    A pair is a feature of two sequences: the source with its end, and the start token with the
    target. Each token of the second has the next one as its target: the text and its end.
    """

    name: ClassVar[str] = "translate"
    options_type: ClassVar[type[TaskOptions]] = TranslateOptions
    head: ClassVar[str] = "translation"
    best_by: ClassVar[str] = "bleu"
    # The same sentence may occur with several translations.
    kept_together: ClassVar[tuple[str, ...]] = ("source", "target")
    metric_options: ClassVar[tuple[str, ...]] = ("bleu_tokenizer", "bleu_lowercase")

    def __init__(self, options: TranslateOptions) -> None:
        super().__init__(options)
        self._training = False
        self._start = self._end = self._source_end = 0
        self._tokenizer: Tokenizer | None = None

    # Preprocessor

    @property
    @override
    def inputs(self) -> dict[str, str]:
        return {"source": "a text"}

    @property
    @override
    def targets(self) -> dict[str, str]:
        return {"target": "its translation"}

    @property
    @override
    def text_columns(self) -> tuple[str, ...]:
        return (*self.inputs, *self.targets)  # in this order where each has a vocabulary of its own

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
    def fit(self, records: Records) -> None:
        """Learn nothing; from now on, evaluations are those of a training."""
        self._training = True

    @property
    def beams(self) -> int:
        """The number of beams of a search."""
        return self.options.validation_beams if self._training else self.options.beams

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """Yield pairs; for training none that is too long: parts do not translate each other."""
        if not with_targets:
            texts = [_text(records, row, "source") for row in rows]
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
        texts = [[_text(records, row, column) for row in rows] for column in self.text_columns]
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
    def forward(self, model: nn.Module, batch: PackedBatch) -> Translated:
        """Score the targets, if there are any."""
        if batch.choices is None:
            return Translated(None)
        labels = batch.pairs[1].targets[NEXT]
        return Translated(model(batch, labels=labels, **self.options.score_options))

    @override
    def loss(self, outputs: Translated, batch: PackedBatch) -> Loss:
        """Compute the cross-entropy with label smoothing, counted in tokens of the targets."""
        assert outputs.scores is not None  # noqa: S101 - there are targets
        scores = outputs.scores
        return Loss(scores.sum, scores.count, self.options.loss_parts(scores))

    # Answers

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
        options, count = self.options, min(self.options.candidates, self.beams)
        # Temperature 0: the search takes the best hypotheses, it does not sample.
        decoding = Decoding(
            max_new_tokens=options.max_length,
            length_ratio=options.length_ratio,
            temperature=0,
            top_p=1.0,
            beams=self.beams,
            length_penalty=options.length_penalty,
            samples=count,
            never=self._never,
        )
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


def _text(records: Records, row: int, column: str) -> str:
    """Return a text that is not blank.

    Raises:
        DataError: the text is blank or missing; names file, line and column.
    """
    text = records.text(row, column)
    if not text.strip():
        where = records.where(row, column)
        raise DataError(f"{where}: blank", "Fill it in, or remove the record.")
    return text
