"""What tasks share that read one text and write another: an encoder-decoder reads pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from tokenizers.processors import TemplateProcessing
from torch import nn
from typing_extensions import override

from pretune.data.batch import Feature, Features, FeatureSet, PackedBatch, Selection, Skipped
from pretune.data.records import Records
from pretune.decoding.continuations import Generation, Prompt
from pretune.decoding.decoding import Decoding
from pretune.decoding.writer import Writer
from pretune.errors import CheckpointError, RunError, WrongValueError, note
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.vocabulary import Scores
from pretune.models.language_model import LanguageModel
from pretune.tasks.base import (
    Loss,
    Prediction,
    Task,
    UsesTokenizer,
    WritesAnswers,
    no_text,
    usual_length,
)
from pretune.tasks.distillation.teachable import TeachableTokens
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import NEXT, CrossEntropyOptions, perplexity, token_losses
from pretune.tokenizers.tokenizer import Tokenizer

#: The maximum number of hypotheses that are written at the same time.
ROWS = 320
#: What `generation_config.json` may ask for that no option follows, and what it is usually.
_NOT_FOLLOWED: Mapping[str, Any] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "forced_bos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
}


class RewriteOptions(CrossEntropyOptions):
    """Options of tasks that write another text than they read."""

    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Spread this share of each target evenly over the vocabulary."
    )
    prefix: str = Field(
        "",
        description="A text to put before each source: what a T5 is to do, such as 'summarize: ', "
        "or the language that an OPUS-MT is to write, such as '>>fra<< '.",
    )
    beams: int = Field(
        5,
        ge=1,
        le=1000,
        description="Beams of the search for a text; 1: always the most probable token.",
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
        "favours longer texts.",
    )
    early_stopping: bool = Field(
        False, description="Whether a search ends as soon as it has as many texts as beams."
    )
    length_ratio: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="What is written has at most this many tokens per token of its source, plus "
        "ten; 0: no such limit.",
    )
    max_written: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="The maximum number of tokens of a target, and of what is written. Default: "
        "max_length.",
    )
    min_written: int = Field(
        0, ge=0, le=1_000_000, description="What is written has at least this many tokens."
    )
    no_repeat_ngram: int = Field(
        0, ge=0, le=1000, description="No so many tokens in a row are written twice; 0: off."
    )
    never: list[int] | None = Field(
        None,
        description="Ids of tokens that are never written. Default: the one that every target "
        "begins with.",
    )
    forced_end: bool = Field(
        False, description="Whether the last token that may be written is always the end."
    )
    renormalize: bool = Field(
        False,
        description="Whether a search scores tokens by their share of what the other limits leave.",
    )
    candidates: int = Field(
        1, ge=1, le=1000, description="How many texts to give, best first; at most beams."
    )

    @field_validator("prefix", mode="before")
    @classmethod
    def _with_its_colon(cls, value: Any) -> Any:
        """Take `summarize: ` as it stands, which YAML reads as a mapping of it to nothing."""
        if isinstance(value, dict) and [*value.values()] == [None]:
            return f"{next(iter(value))}: "
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.candidates > self.beams:
            raise WrongValueError(f"candidates must be at most beams, which is {self.beams}")
        if self.min_written > self.longest_target:
            raise WrongValueError("min_written must be at most max_written, or else max_length")
        return self

    @property
    def longest_target(self) -> int:
        """The maximum number of tokens of a target."""
        return self.max_length if self.max_written is None else self.max_written


@dataclass(frozen=True)
class Rewritten:
    """Outputs of the model: the scores of the targets, if any; then the texts it writes.

    Each source may have several, best first; a forward pass alone writes none.
    """

    scores: Scores | None
    written: Sequence[Sequence[Generation]] = ()


O = TypeVar("O", bound=RewriteOptions)  # noqa: E741 - O for options
P = TypeVar("P", bound=Prediction)


class Rewriting(Task[O, P], UsesTokenizer, WritesAnswers, TeachableTokens):
    """A source and a target, read and written by an encoder-decoder.

    A pair is a feature of two sequences: the source with its end, and the start token with the
    target. Each token of the second has the next one as its target: the text and its end.
    """

    head: ClassVar[str] = "translation"
    #: Whether of a long source the beginning is learned from; else the pair is skipped.
    truncates_in_training: ClassVar[bool] = False

    def __init__(self, options: O) -> None:
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
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        for column in self.text_columns if with_targets else self.inputs:
            records.text(row, column)

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
        """The search for texts. At temperature 0 it takes the best, it does not sample."""
        options = self.options
        return Decoding(
            max_new_tokens=options.longest_target,
            length_ratio=options.length_ratio,
            no_repeat_ngram=options.no_repeat_ngram,
            temperature=0,
            top_p=1.0,
            beams=self.beams,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            samples=min(options.candidates, self.beams),
            never=self.never,
            min_new_tokens=options.min_written,
            forced_end=self._end if options.forced_end else None,
            renormalize=options.renormalize,
        )

    @property
    def source_end(self) -> int:
        """The token that ends each source."""
        return self._source_end

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """Yield pairs; for training none that is too long: half a text stands for no whole."""
        options = self.options
        if not with_targets:
            (column,) = self.inputs
            texts = [records.text(row, column) for row in rows]
            for row, (ids, cut) in zip(rows, self._sources(texts, tokenizer), strict=True):
                yield Feature(tokens=ids, record=row, truncated=cut)
            return
        limit = f"{options.max_length} tokens (task.max_length)"
        if options.max_written is not None:
            limit += f" or {options.max_written} (task.max_written)"
        for feature, cut_target in self._pairs(records, rows, tokenizer):
            if cut_target or (feature.truncated and not self.truncates_in_training):
                sides = "the target" if self.truncates_in_training else "the source or the target"
                yield Skipped(feature.record, f"{sides} has over {limit}")
            else:
                yield feature

    @override
    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """Yield all pairs; long ones are truncated, but not the texts that are compared."""
        return (feature for feature, _ in self._pairs(records, rows, tokenizer))

    def _pairs(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[tuple[Feature, bool]]:
        """Yield all pairs, and whether the target was truncated."""
        texts = [[records.text(row, column) for row in rows] for column in self.text_columns]
        limit = self.options.longest_target - 1
        sources = self._sources(texts[0], tokenizer)
        targets = tokenizer.written.encode_bare(texts[1], offsets=False, literal=True)
        for row, (source, cut), encoding in zip(rows, sources, targets, strict=True):
            target, cut_target = encoding.ids[:limit], len(encoding.ids) > limit
            feature = Feature(
                tokens=[*source, self._start, *target],
                choices=(len(source), 1 + len(target)),
                targets={NEXT: [*(0 for _ in source), *target, self._end]},
                record=row,
                truncated=cut or cut_target,
            )
            yield feature, cut_target

    def _sources(
        self, texts: Sequence[str], tokenizer: Tokenizer
    ) -> Iterable[tuple[list[int], bool]]:
        """Yield the tokens of each text with its end, and whether it was truncated."""
        limit, end = self.options.max_length, [self._source_end]
        given = [self.options.prefix + text for text in texts] if self.options.prefix else texts
        for encoded in tokenizer.encode(given, literal=True):
            ids = encoded.ids if encoded.ids[-1:] == end else encoded.ids + end
            yield (ids, False) if len(ids) <= limit else (ids[: limit - 1] + end, True)

    @override
    def feature_key(self) -> Any:
        return [super().feature_key(), self._start, self._end]

    # Head

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        """Build the model; its config says how targets begin and end.

        Raises:
            CheckpointError: a token that is never to be written is not in the vocabulary.
        """
        model = build_head(backbone, "translation")
        config: Any = backbone.config
        self._start, self._end = config.decoder_start_token_id, config.eos_token_id
        size = backbone.config.target_vocab_size
        wrong = [number for number in self.never if not 0 <= number < size]
        if wrong:
            raise CheckpointError(
                f"never: {wrong[0]} is no token of a vocabulary of {size:,}",
                "See task.never, or bad_words_ids in generation_config.json.",
            )
        return model

    @override
    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> Rewritten:
        """Score the targets, if there are any."""
        if batch.choices is None:
            return Rewritten(None)
        labels = batch.pairs[1].targets[NEXT]
        return Rewritten(model(batch, labels=labels, **self.options.score_options, **more))

    @override
    def loss(self, outputs: Rewritten, batch: PackedBatch) -> Loss:
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
    def token_scores(self, outputs: Rewritten) -> Scores:
        assert outputs.scores is not None  # noqa: S101 - there are targets
        return outputs.scores

    # Answers

    @override
    def write(self, model: nn.Module, outputs: Rewritten, batch: PackedBatch) -> Rewritten:
        """Search for the texts of each source.

        Raises:
            RunError: each process holds only a share of the model.
        """
        if hasattr(model, "reshard"):
            raise RunError(
                "a model that is sharded over processes cannot write texts",
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
        # Every source is a prompt of its own; `count` texts for each come one after another.
        parts = torch.split(sources.tokens.cpu(), list(sources.layout.lengths))
        written = writer.write([Prompt((), part.tolist()) for part in parts], decoding)
        groups = [written[i : i + count] for i in range(0, len(written), count)]
        return replace(outputs, written=groups)

    @override
    def predict(self, outputs: Rewritten, batch: PackedBatch) -> list[P]:
        penalty, answers = self.options.length_penalty, []
        for hypotheses in outputs.written:
            texts = [(own.text.strip(), own.mean_logprob(penalty)) for own in hypotheses]
            answers.append(self.answer(*texts[0], texts if len(texts) > 1 else []))
        return answers

    @abstractmethod
    def answer(self, text: str, score: float, candidates: list[tuple[str, float]]) -> P:
        """Make the answer of the best text with its score, and of all if there are several."""

    @override
    def empty_answer(self) -> P:
        return self.answer("", 0.0, [])

    # Scorer

    @override
    def each_loss(self, outputs: Rewritten, batch: PackedBatch) -> EachLoss:
        assert outputs.scores is not None  # noqa: S101 - there are targets
        return token_losses(outputs.scores, batch.pairs[1].layout)

    # Described

    @property
    def never(self) -> tuple[int, ...]:
        """The tokens that are never written: the start token, padding in published models."""
        if self.options.never is not None:
            return tuple(self.options.never)
        return () if self._start == self._end else (self._start,)

    @override
    def generation_entries(self) -> dict[str, Any]:
        """Describe the same search; transformers by itself stops after 20 tokens."""
        options = self.options
        more: dict[str, Any] = {
            "bad_words_ids": [[token] for token in self.never],
            "early_stopping": options.early_stopping,
            "no_repeat_ngram_size": options.no_repeat_ngram,
            "min_new_tokens": options.min_written,
            "renormalize_logits": options.renormalize,
        }
        chosen = {name: value for name, value in more.items() if value}
        if options.forced_end:
            chosen["forced_eos_token_id"] = self._end
        return {
            "decoder_start_token_id": self._start,
            "eos_token_id": self._end,
            "pad_token_id": self._start,
            "max_new_tokens": options.longest_target,
            "num_beams": options.beams,
            "length_penalty": options.length_penalty,
            **chosen,
        }


def published_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which a published model writes as transformers has it write.

    Args:
        config: the contents of `config.json`, with those of `generation_config.json` under that
            name.

    Raises:
        CheckpointError: an entry makes no sense; names it.
    """
    given = config.get("generation_config")
    entries: dict[str, Any] = given if isinstance(given, dict) else {}
    forced, end = (entries.get(f"{name}eos_token_id") for name in ("forced_", ""))
    end = config.get("eos_token_id") if end is None else end
    _note_unfollowed(entries, forced_end=forced not in (None, end))

    def entry(name: str, usual: Any) -> Any:
        value = entries.get(name)
        return usual if value is None else value

    # Lengths count the start token there, and not here.
    most, least = entry("max_new_tokens", None), entry("min_new_tokens", None)
    if most is None and entry("max_length", None) is not None:
        most = _one_less(entry("max_length", None))
    if least is None:
        least = max(0, _one_less(entry("min_length", 1)))
    words = entry("bad_words_ids", [])
    singles = [own[0] for own in words if isinstance(own, list) and len(own) == 1]
    stopping = entry("early_stopping", False)
    return {
        "max_length": usual_length(config, 512),
        "beams": entry("num_beams", 1),
        "length_penalty": entry("length_penalty", 1.0),
        "early_stopping": stopping if isinstance(stopping, bool) else False,
        "length_ratio": 0.0,
        "max_written": most,
        "min_written": least,
        "no_repeat_ngram": entry("no_repeat_ngram_size", 0),
        "never": singles,
        "forced_end": forced is not None and forced == end,
        "renormalize": entry("renormalize_logits", False),
    }


def checked_options(kind: type[O], values: Mapping[str, Any]) -> O:
    """Make options of what `generation_config.json` says.

    Raises:
        CheckpointError: a value makes no sense; names it.
    """
    try:
        return kind.model_validate(dict(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "generation_config"
        raise CheckpointError(
            f"generation_config.json, or config.json: what it says of {name} makes no sense "
            f"({first['msg']})",
            "Repair it there.",
        ) from None


def _one_less(length: Any) -> Any:
    whole = isinstance(length, int) and not isinstance(length, bool)
    return length - 1 if whole else length


def _note_unfollowed(entries: Mapping[str, Any], *, forced_end: bool) -> None:
    """Tell of what a model's makers chose and no option follows."""
    odd = [name for name, usual in _NOT_FOLLOWED.items() if entries.get(name) not in (None, usual)]
    words = entries.get("bad_words_ids")
    if isinstance(words, list) and any(isinstance(own, list) and len(own) != 1 for own in words):
        odd.append("bad_words_ids of several tokens")
    if not isinstance(entries.get("early_stopping", False), bool | None):
        odd.append("early_stopping")
    if forced_end:
        odd.append("forced_eos_token_id")
    if odd:
        note(f"generation_config.json: not followed here: {', '.join(odd)}")


class WrittenPrediction(Prediction):
    """A text that was written, and where several were asked for the candidates, best first."""

    candidates: list[tuple[str, float]]

    @property
    @abstractmethod
    def best(self) -> str:
        """The text itself."""

    @property
    @override
    def written(self) -> str:
        return "\n".join([text for text, _ in self.candidates] or [self.best])


class WrittenMetrics:
    """Compare all texts that were written with their references as they stand in the data."""

    def __init__(self, features: Features | None) -> None:
        self._features = features if isinstance(features, FeatureSet) else None
        self._texts: dict[int, str] = {}  # by the number of the feature
        self._nats, self._right, self._tokens = 0.0, 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the features, which every process has."""
        return {**vars(self), "_features": None}

    def update(self, outputs: Rewritten, batch: PackedBatch) -> None:
        """Add one batch."""
        scores = outputs.scores
        assert scores is not None  # noqa: S101 - there are targets
        self._nats += float(scores.cross_entropy)
        self._right += scores.right
        self._tokens += scores.count
        for index, written in zip(batch.index.tolist(), outputs.written, strict=True):
            self._texts[index] = written[0].text.strip()

    def merge(self, other: Self) -> None:
        """Add the sums and texts of another process."""
        self._nats += other._nats
        self._right += other._right
        self._tokens += other._tokens
        self._texts |= other._texts

    def result(self) -> dict[str, float]:
        """Compute figures of the references' tokens.

        `perplexity` of a token of the references; `accuracy`, how often the most probable token is
        the reference's.
        """
        return {
            "perplexity": perplexity(self._nats, self._tokens),
            "accuracy": self._right / max(self._tokens, 1),
        }

    def compared(self, given: str, wanted: str) -> list[tuple[str, str, str]]:
        """Return what was read, what was written and its reference, in the order of the data.

        Args:
            given: the column of what is read.
            wanted: the column of the reference.
        """
        return [
            (self._column(i, given), self._texts[i], self._column(i, wanted))
            for i in sorted(self._texts)
        ]

    def _column(self, index: int, name: str) -> str:
        assert self._features is not None  # noqa: S101 - there are texts
        return str(self._features.rows[self._features.record(index)][name])
