"""`SentenceTask`: one text, or a pair, read as a whole by a sequence classifier's head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
from pydantic import Field, model_validator
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Feature, PackedBatch, Skipped
from pretune.data.records import Records, is_missing
from pretune.errors import CheckpointError, DataError, WrongValueError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import (
    P,
    Task,
    TaskOptions,
    UsesTokenizer,
    published_architecture,
    usual_length,
)
from pretune.tasks.distillation.teachable import TeachableRecord
from pretune.tasks.labels import label_entries, published_labels
from pretune.tasks.long_texts import LongReading, LongTexts, pooled_logits
from pretune.tokenizers.tokenizer import Tokenizer

#: The values of transformers' `problem_type`: what a sequence classifier is trained for.
CLASSES, LABELS, SCORE = ("single_label_classification", "multi_label_classification", "regression")


class SentenceOptions(TaskOptions):
    """Options of every task that reads one text or a pair as a whole."""

    left_out: ClassVar[frozenset[str]] = frozenset(
        {"metrics", "criterion", "long", "overlap", "max_windows"}
    )

    pair: bool = Field(
        False,
        description="Read two texts per record (columns sentence1, sentence2) instead of one "
        "(text).",
    )
    long: LongTexts = Field(
        "cut",
        description="What becomes of a text of over max_length tokens. cut: its beginning is read; "
        "head_tail: its beginning and its end, as 128 and 382 tokens of 510; windows: all of it, "
        "in sequences that overlap and whose logits are averaged.",
    )
    overlap: int | None = Field(
        None,
        ge=0,
        description="windows: how many tokens two neighbouring windows share. Default: a quarter "
        "of max_length.",
    )
    max_windows: int = Field(
        16, ge=1, description="windows: the most windows of a text; what is longer is cut."
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout before the last layer. Default: the model's own."
    )
    criterion: str | None = Field(
        None,
        min_length=1,
        description="A loss of your own in place of the task's, by the name that your file "
        "(pretune --plugin FILE.py) or an installed package gives it.",
    )

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.long == "windows" and self.pair:
            raise WrongValueError(
                "long: windows reads one text; of the texts of a pair head_tail keeps both ends"
            )
        half = self.max_length // 2
        if self.overlap is not None and self.overlap > half:
            raise WrongValueError(f"overlap must be at most half of max_length: {half}")
        return self


S = TypeVar("S", bound=SentenceOptions)


class SentenceTask(Task[S, P], UsesTokenizer, TeachableRecord):
    """A task with one output vector for each text or pair; `labels` name the head's outputs."""

    head: ClassVar[str] = "sequence_classification"
    #: transformers' name for what the head is trained for.
    problem_type: ClassVar[str]

    def __init__(self, options: S, labels: Iterable[str] = ()) -> None:
        super().__init__(options)
        self.labels = list(labels)

    @property
    @override
    def inputs(self) -> dict[str, str]:
        if self.options.pair:
            return {"sentence1": "the first text", "sentence2": "the second text"}
        return {"text": "the text"}

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        """Make the tokenizer put a token between the texts of a pair, if it does not already.

        A decoder's tokenizer joins them: `a b` + `c` would be the same as `a` + `b c`. The token
        that ends a text comes between them, as the delimiter in GPT's pairs (Radford et al. 2018,
        section 3.3). The change is saved with the tokenizer.

        Raises:
            CheckpointError: the tokenizer has no special token for this.
        """
        if not self.options.pair or tokenizer.engine.num_special_tokens_to_add(True):
            return
        # The second text gets segment 1, as in BERT; backbones without segments do not read it.
        for name in ("sep_token", "eos_token"):
            token, number = tokenizer.special.get(name), tokenizer.special_id(name)
            if token is not None and number is not None:
                tokenizer.engine.post_processor = TemplateProcessing(
                    single="$A", pair=["$A", token, "$B:1"], special_tokens=[(token, number)]
                )
                return
        raise CheckpointError(
            "task.pair: the tokenizer has no special token to put between the two texts",
            "Use one with a sep_token or an eos_token, such as `pretune tokenizer train` makes.",
        )

    @override
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        for column in self.inputs:
            records.text(row, column)
        if with_targets:
            self.check_target(records, row)

    def check_target(self, records: Records, row: int) -> None:
        """Raise a DataError where the target of a record cannot be learned; called before `fit`."""

    @abstractmethod
    def target_reader(self, records: Records) -> Callable[[int], dict[str, Any]]:
        """Return a function that reads the targets of the record in a row, by name.

        The function raises `DataError` for a record whose target cannot be used.
        """

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        read = self.target_reader(records) if with_targets else lambda row: {}

        def targets_of(row: int) -> dict[str, Any]:
            lacking = self.unlabelled and with_targets and not self.has_label(records, row)
            return self.no_label() if lacking else read(row)

        # All texts are tokenized at once, in parallel, to `[CLS] text [SEP]` or `[CLS] a [SEP] b
        # [SEP]`. A decoder's tokenizer puts nothing around a text: there it is `text` or `a END b`.
        columns = list(self.inputs)
        sides = [[records.text(row, column) for row in rows] for column in columns]
        encoded = self.reading.read(tokenizer, *sides)
        for row, text in zip(rows, encoded, strict=True):
            if text.ids:
                yield Feature(
                    *(text.ids, text.segments, targets_of(row), row, text.truncated, text.windows)
                )
            elif with_targets:
                yield Skipped(row, "not a single token in the text")
            # A decoder's tokenizer adds nothing to an empty text: its end stands for it.
            elif tokenizer.end_id is not None:
                alone = None if text.windows is None else (1,)
                yield Feature([tokenizer.end_id], [0], record=row, choices=alone)
            else:
                raise DataError(
                    f"{records.where(row, columns[0])}: not a single token in the text",
                    "Remove the record: this model's tokenizer adds nothing to an empty text.",
                )

    @property
    def reading(self) -> LongReading:
        """How texts of any length are read."""
        own = self.options
        overlap = own.max_length // 4 if own.overlap is None else own.overlap
        return LongReading(own.long, own.max_length, overlap, own.max_windows)

    def places(self, records: Records, row: int, tokenizer: Tokenizer) -> list[int] | None:
        """Return which token of its text each token of a record's feature is.

        None where the feature is one sequence; see `LongReading.places`.
        """
        if self.options.pair:
            return None
        return self.reading.places(tokenizer, records.text(row, *self.inputs))

    @property
    @override
    def truncation_note(self) -> str:
        length, windows = self.options.max_length, self.options.max_windows
        if self.options.long == "windows":
            return f"had more than {windows} windows of {length} tokens; the rest was cut"
        if self.options.long == "head_tail":
            return f"were longer than {length} tokens: their beginning and end were kept"
        return super().truncation_note

    @override
    def forward(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        """Give logits `[B, C]`: of texts that are read in windows the mean over their windows."""
        outputs: Tensor = model(batch)
        return outputs if batch.choices is None else pooled_logits(outputs, batch.choices)

    @override
    def terms(self, batch: PackedBatch) -> Tensor:
        """Return how many terms of the loss each sequence has; windows share the one of a text."""
        if batch.choices is None:
            return super().terms(batch)
        shares = [1 / count for count in batch.choices for _ in range(count)]
        return torch.tensor(shares, device=batch.tokens.device)

    @override
    def has_label(self, records: Records, row: int) -> bool:
        return not any(is_missing(records.rows[row].get(name)) for name in self.targets)

    @override
    def feature_key(self) -> Any:
        return [*super().feature_key(), *(["unlabelled"] if self.unlabelled else [])]

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, self.head, len(self.labels), dropout=self.options.dropout)

    @override
    def config_entries(self) -> dict[str, Any]:
        return {**label_entries(self.labels), "problem_type": self.problem_type}

    @override
    def output_meaning(self) -> dict[str, Any]:
        return {"labels": self.labels}

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        if not published_architecture(config).endswith("ForSequenceClassification"):
            return None
        labels, problem = published_labels(config), config.get("problem_type")
        if problem == SCORE and len(labels) > 1:
            raise CheckpointError(
                f"config.json: problem_type is {SCORE}, with {len(labels)} outputs",
                "Only one score per text is supported.",
            )
        # As transformers does: without a problem_type one output is a score, several are classes.
        if problem not in (CLASSES, LABELS, SCORE):
            problem = SCORE if len(labels) == 1 else CLASSES
        if problem != cls.problem_type:
            return None
        options: Any = cls.options_type(name=cls.name, max_length=usual_length(config, 512))
        return cls(options, labels)
