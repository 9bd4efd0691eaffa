"""Translation: one text into another, by a model that reads the one and writes the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator
from tokenizers.processors import TemplateProcessing
from torch import nn

from pretune.data.arrays import Array
from pretune.data.batch import (
    Feature,
    Features,
    PackedBatch,
    Skipped,
)
from pretune.data.records import Records
from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Generation, Prompt, Writer
from pretune.errors import DataError, RunError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.vocabulary import Scores
from pretune.models.language_model import LanguageModel
from pretune.tasks.base import Loss, Prediction, Task, UsesTokenizer, usual_length
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.losses import NEXT, CrossEntropyOptions, token_losses, with_perplexity
from pretune.tasks.translation.metrics import (
    BleuKind,
    Tokenization,
    TranslateMetrics,
    bleu_counts,
    bleu_of,
)
from pretune.tokenizers.tokenizer import Tokenizer

#: Hypotheses that are written side by side.
ROWS = 320


class TranslateOptions(CrossEntropyOptions):
    """Options of `translate`."""

    name: Literal["translate"] = Field("translate", description="One text into another.")
    label_smoothing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="This share of each target is spread evenly over the whole vocabulary.",
    )
    beams: int = Field(
        5,
        ge=1,
        le=1000,
        description="Hypotheses of the search for a translation; 1: always the likeliest token.",
    )
    validation_beams: int = Field(
        1,
        ge=1,
        le=1000,
        description="The same for the evaluations of a training, which shall not take long.",
    )
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="A search compares log-probability / tokens**length_penalty: above 0, longer "
        "translations win more often.",
    )
    length_ratio: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="A translation has at most so many tokens for each of its source's, and ten "
        "more; 0: at most max_length.",
    )
    candidates: int = Field(
        1, ge=1, le=1000, description="How many translations to give, best first; beams at most."
    )
    bleu_tokenizer: Tokenization | Literal["auto"] = Field(
        "auto",
        description="How sacrebleu takes texts apart; auto: zh where the references are Chinese, "
        "else 13a.",
    )
    bleu_lowercase: bool = Field(
        False, description="Whether capitals count as small letters in BLEU, as in some papers."
    )

    @model_validator(mode="after")
    def _candidates_are_found(self) -> Self:
        if self.candidates > self.beams:
            raise ValueError("candidates: a search gives no more of them than it has beams")
        return self


@dataclass(frozen=True)
class TranslationPrediction(Prediction):
    """A translation.

    Attributes:
        translation: the best one.
        score: its log-probability over its tokens to the power of `length_penalty`.
        candidates: where several were asked for: each with its score, best first.
    """

    translation: str
    score: float
    candidates: list[tuple[str, float]] = field(default_factory=list)

    @property
    def written(self) -> str:
        """The translation; of several, one a line."""
        texts = [text for text, _ in self.candidates] or [self.translation]
        return "\n".join(texts)


@dataclass(frozen=True)
class Translated:
    """What the model gives.

    Attributes:
        scores: of the targets, where there are any.
        found: the translations of each source, best first; none in training.
    """

    scores: Scores | None
    found: Sequence[Sequence[Generation]] = ()


class Translate(Task[TranslateOptions, TranslationPrediction], UsesTokenizer):
    """A source and a target; evaluated by BLEU and chrF.

    A pair is a feature of two sequences: the source and its end; the start token and the target.
    What follows the latter's tokens is learned: the target and its end.
    """

    name: ClassVar[str] = "translate"
    options_type: ClassVar[type[TranslateOptions]] = TranslateOptions
    head: ClassVar[str] = "translation"
    best_by: ClassVar[str] = "bleu"
    # A sentence may be there with several translations.
    kept_together: ClassVar[tuple[str, ...]] = ("source", "target")
    metric_options: ClassVar[tuple[str, ...]] = ("bleu_tokenizer", "bleu_lowercase")

    def __init__(self, options: TranslateOptions) -> None:
        super().__init__(options)
        self._training = False
        self._start = self._end = self._source_end = 0
        self._tokenizer: Tokenizer | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """`source`."""
        return {"source": "a text"}

    @property
    def targets(self) -> dict[str, str]:
        """`target`."""
        return {"target": "its translation"}

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Both sides; in this order, where each has a vocabulary of its own."""
        return (*self.inputs, *self.targets)

    def bind(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer; have it end each text, also for those who use it without us."""
        self._tokenizer, number = tokenizer, tokenizer.end_id
        self._source_end = number = self._end if number is None else number
        if number is not None and tokenizer.special_id("pad_token") is None:
            # transformers needs one to lay texts of a batch side by side, and does not read it.
            tokenizer.settings.setdefault("pad_token", tokenizer.tokens([number])[0])
        (probe,) = tokenizer.encode(["a"])
        if probe.ids[-1:] != [number]:
            (end,) = tokenizer.tokens([number])
            ending = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
            tokenizer.engine.post_processor = ending
            # A class for GPT-2's or another model would put its own in this one's place.
            tokenizer.settings["tokenizer_class"] = "PreTrainedTokenizerFast"

    def fit(self, records: Records) -> None:
        """Nothing is learned; evaluations from here on are those of a training."""
        self._training = True

    @property
    def beams(self) -> int:
        """Of the searches from here on."""
        return self.options.validation_beams if self._training else self.options.beams

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """To train on, pairs that are not too long: half a text is no translation of a whole."""
        if not with_targets:
            texts = [_text(records, row, "source") for row in rows]
            for row, (ids, cut) in zip(rows, self._sources(texts, tokenizer), strict=True):
                yield Feature(tokens=ids, record=row, truncated=cut)
            return
        most = self.options.max_length
        for feature in self.evaluation_features(records, rows, tokenizer):
            if feature.truncated:
                why = f"the source or the target has over {most} tokens (task.max_length)"
                yield Skipped(feature.record, why)
            else:
                yield feature

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """All pairs; what is too long is cut, but not the texts that BLEU compares."""
        texts = [[_text(records, row, column) for row in rows] for column in self.text_columns]
        most = self.options.max_length - 1
        sources = self._sources(texts[0], tokenizer)
        targets = tokenizer.written.encode_bare(texts[1], offsets=False, literal=True)
        for row, (source, cut), encoding in zip(rows, sources, targets, strict=True):
            target = encoding.ids[:most]
            yield Feature(
                tokens=[*source, self._start, *target],
                choices=(len(source), 1 + len(target)),
                targets={NEXT: [*(0 for _ in source), *target, self._end]},
                record=row,
                truncated=cut or len(encoding.ids) > most,
            )

    def _sources(
        self, texts: Sequence[str], tokenizer: Tokenizer
    ) -> Iterable[tuple[list[int], bool]]:
        """The tokens of each, its end the last, and whether some were cut off."""
        most = self.options.max_length
        for encoded in tokenizer.encode(texts, literal=True):
            end = [self._source_end]
            ids = encoded.ids if encoded.ids[-1:] == end else encoded.ids + end
            yield (ids, False) if len(ids) <= most else (ids[: most - 1] + end, True)

    def build(self, backbone: Backbone) -> nn.Module:
        """The family's own output layer; its config knows how targets begin and end."""
        model = build_head(backbone, "translation")
        config: Any = backbone.config
        self._start, self._end = config.decoder_start_token_id, config.eos_token_id
        return model

    def forward(self, model: nn.Module, batch: PackedBatch) -> Translated:
        """The scores of the targets; outside of training also translations of the sources."""
        if batch.choices is None:
            return Translated(None, self._translations(model, batch))
        source, target = batch.pairs
        scores = model(batch, labels=target.targets[NEXT], **self.options.score_options)
        if model.training:
            return Translated(scores)
        return Translated(scores, self._translations(model, source))

    def _translations(self, model: nn.Module, sources: PackedBatch) -> list[list[Generation]]:
        """The translations of each source, best first."""
        if hasattr(model, "reshard"):
            raise RunError(
                "a model of which each process holds a share cannot be searched with",
                "Set train.parallel=ddp; or evaluate afterwards: data.validation=null.",
            )
        assert self._tokenizer is not None  # noqa: S101 - bound
        options, count = self.options, min(self.options.candidates, self.beams)
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
        texts = sources.tokens.tolist()
        starts, lengths = sources.layout.starts, sources.layout.lengths
        prompts = [
            Prompt((), texts[start : start + length])
            for start, length in zip(starts, lengths, strict=True)
        ]
        found = writer.write(prompts, decoding)
        return [found[i : i + count] for i in range(0, len(found), count)]

    def loss(self, outputs: Translated, batch: PackedBatch) -> Loss:
        """Cross-entropy with label smoothing, counted in tokens of the targets."""
        assert outputs.scores is not None  # noqa: S101 - there are targets
        scores = outputs.scores
        return Loss(scores.sum, scores.count, self.options.loss_parts(scores))

    def predict(self, outputs: Translated, batch: PackedBatch) -> list[TranslationPrediction]:
        """The translations."""
        return [self._answer(found) for found in outputs.found]

    def _answer(self, found: Sequence[Generation]) -> TranslationPrediction:
        penalty = self.options.length_penalty
        texts = [(one.text.strip(), one.mean_logprob(penalty)) for one in found]
        text, score = texts[0]
        return TranslationPrediction(text, score, texts if len(texts) > 1 else [])

    def metrics(self, features: Features | None = None) -> TranslateMetrics:
        """BLEU and chrF, perplexity and accuracy."""
        return TranslateMetrics(features, self._bleu)

    @property
    def _bleu(self) -> BleuKind:
        chosen = self.options.bleu_tokenizer
        return BleuKind(None if chosen == "auto" else chosen, self.options.bleu_lowercase)

    def each_loss(self, outputs: Translated, batch: PackedBatch) -> EachLoss:
        """Cross-entropy of each target."""
        assert outputs.scores is not None  # noqa: S101 - there are targets
        return token_losses(outputs.scores, batch.pairs[1].layout)

    def grader(self, records: Records) -> Callable[[TranslationPrediction, int], Grade]:
        """The two texts; counts are those of BLEU."""
        references = [records.text(row, "target") for row in range(len(records))]
        metric = self._bleu.metric(references)

        def grade(answer: TranslationPrediction, row: int) -> Grade:
            counts = bleu_counts(metric, answer.translation, references[row])
            return Grade(references[row], answer.translation, counts=counts)

        return grade

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss, perplexity and BLEU."""
        return {**with_perplexity(super().figures(sums)), "bleu": bleu_of(sums[..., 2:])}

    @property
    def _never(self) -> tuple[int, ...]:
        """The start token is for the beginning: in published models it is padding."""
        return () if self._start == self._end else (self._start,)

    def generation_entries(self) -> dict[str, Any]:
        """The same search; transformers itself would end every translation after 20 tokens."""
        return {
            "decoder_start_token_id": self._start,
            "eos_token_id": self._end,
            "pad_token_id": self._start,
            "max_new_tokens": self.options.max_length,
            "num_beams": self.options.beams,
            "length_penalty": self.options.length_penalty,
            **({"bad_words_ids": [[token] for token in self._never]} if self._never else {}),
        }

    def feature_key(self) -> Any:
        """The special tokens are the model's."""
        return [super().feature_key(), self._start, self._end]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `MarianMTModel`."""
        architecture = str((config.get("architectures") or [""])[0])
        if architecture != "MarianMTModel":
            return None
        return cls(TranslateOptions(max_length=usual_length(config, 512)))


def _text(records: Records, row: int, column: str) -> str:
    """A text with something in it.

    Raises:
        DataError: it is blank, or none; names file and line.
    """
    text = records.text(row, column)
    if not text.strip():
        raise DataError(
            f"{records.where(row, column)}: blank",
            "Fill it in, or remove the record.",
        )
    return text
