"""`choose`: the one of several continuations or answers that fits a context best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.records import Records, is_missing
from pretune.errors import DataError, describe_value
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import (
    Loss,
    Metrics,
    Prediction,
    Task,
    TaskOptions,
    published_architecture,
    usual_length,
)
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.grading import Decision, EachLoss, Grade, Mistake, TellsTruths
from pretune.tasks.labels import as_number
from pretune.text.terminal import names_in_line
from pretune.tokenizers.tokenizer import Tokenizer


class ChooseOptions(TaskOptions):
    """Options of `choose`."""

    name: Literal["choose"] = Field(
        "choose", description="Which of several choices fits a context?"
    )
    choices: list[str] = Field(
        ["choices"],
        min_length=1,
        description="The columns with the choices: one that has a list, or one per choice, e.g. "
        "[ending0, ending1, ending2, ending3].",
    )
    stem: bool = Field(
        False,
        description="Put the text of the column stem (SWAG's sent2) before each choice, which "
        "continues it.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout before the last layer. Default: the model's own."
    )


@dataclass(frozen=True)
class ChoicePrediction(Prediction):
    """The answer for one example.

    Attributes:
        choice: the number of the most probable choice, from 0.
        score: its probability.
        scores: the probability of each choice, in order.
    """

    choice: int
    score: float
    scores: list[float]

    @override
    def ranked(self) -> list[tuple[str, float]]:
        choices = [(str(number), score) for number, score in enumerate(self.scores)]
        return sorted(choices, key=lambda item: -item[1])


class Choose(Task[ChooseOptions, ChoicePrediction], HasCertainty, TellsTruths):
    """One score per choice, and a softmax over an example's choices (Radford et al. 2018, 3.3).

    Each choice is a sequence, `[CLS] context [SEP] stem choice [SEP]`; the sequences of an example
    are one feature and always in the same batch.
    """

    name: ClassVar[str] = "choose"
    options_type: ClassVar[type[TaskOptions]] = ChooseOptions
    head: ClassVar[str] = "multiple_choice"
    best_by: ClassVar[str] = "accuracy"

    # Preprocessor

    @property
    @override
    def inputs(self) -> dict[str, str]:
        stem = {"stem": "what each choice goes on from"} if self.options.stem else {}
        several = len(self.options.choices) > 1
        meaning = "a choice" if several else "the choices: a list, or a text with | between them"
        return {"context": "the context", **stem, **dict.fromkeys(self.options.choices, meaning)}

    @property
    @override
    def targets(self) -> dict[str, str]:
        return {"label": "the number of the right choice, from 0"}

    def choices(self, records: Records, row: int) -> list[str]:
        """Return the choices of a record; of several columns, the last ones may be empty.

        Raises:
            DataError: fewer than two choices, or one that is no text; names file and line.
        """
        # A list or a text in one column, or one column per choice.
        columns = self.options.choices
        values: Any = [records.rows[row].get(column) for column in columns]
        if len(columns) == 1:
            (values,) = values
            values = values.split("|") if isinstance(values, str) else values
        while isinstance(values, list) and values and is_missing(values[-1]):
            values = values[:-1]
        place = records.where(row, columns[0] if len(columns) == 1 else None)
        if not isinstance(values, list) or len(values) < 2:
            given = describe_value(values)
            if isinstance(values, list):
                given = names_in_line(values) or "an empty list"
            raise DataError(
                f"{place}: expected two choices or more, found {given}",
                f"Columns with choices are {', '.join(columns)} (task.choices): give a list there, "
                "or name a column for each choice.",
            )
        # In between, no choice may be missing: the label counts them.
        for number, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                given = names_in_line([value]) if isinstance(value, str) else describe_value(value)
                raise DataError(
                    f"{place}: choice {number} is no text ({given})",
                    "Correct or remove the record; only choices at the end may be missing.",
                )
        return values

    @override
    def texts(self, records: Records) -> Iterator[str]:
        for row, record in enumerate(records.rows):
            if not self.without_text(record, with_targets=True):
                before = [name for name in self.inputs if name not in self.options.choices]
                yield from (records.text(row, name) for name in before)
                yield from self.choices(records, row)

    @override
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        if self.without_text(records.rows[row], with_targets=with_targets):
            return
        for column in ("context", *(["stem"] if self.options.stem else [])):
            records.text(row, column)
        count = len(self.choices(records, row))
        if with_targets:
            self._label(records, row, count)

    def _label(self, records: Records, row: int, count: int) -> int:
        """Return the number of the right one of `count` choices."""
        # Tables give numbers as text or as floats; 1.5 is refused, and so is true.
        value: Any = records.rows[row].get("label")
        number = as_number(value)
        if number not in range(count):
            raise DataError(
                f"{records.where(row, 'label')}: expected the number of the right choice, 0 to "
                f"{count - 1}, found {value!r}",
                "Choices are counted from 0; remove records without an answer (-1).",
            )
        return int(number)

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        # The choices of all records are tokenized together, each as a pair with its context.
        choices = [self.choices(records, row) for row in rows]
        first, second = [], []
        for row, texts in zip(rows, choices, strict=True):
            stem = f"{records.text(row, 'stem')} " if self.options.stem else ""
            first += [records.text(row, "context")] * len(texts)
            second += [stem + text for text in texts]
        encoded = iter(tokenizer.encode(first, second, max_length=self.options.max_length))
        # Those of a record are joined into one feature.
        for row, texts in zip(rows, choices, strict=True):
            sequences = [next(encoded) for _ in texts]
            yield Feature(
                tokens=[token for sequence in sequences for token in sequence.ids],
                segments=[segment for sequence in sequences for segment in sequence.segments],
                targets={"label": self._label(records, row, len(texts))} if with_targets else {},
                record=row,
                truncated=any(sequence.truncated for sequence in sequences),
                choices=[len(sequence.ids) for sequence in sequences],
            )

    # Head

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, self.head, dropout=self.options.dropout)

    @override
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Compute the cross-entropy of the choices, counted in examples."""
        labels = batch.targets["label"]
        total = F.cross_entropy(by_example(outputs, batch), labels, reduction="sum")
        return Loss(total, len(labels))

    # Answers

    @override
    def usage(self, run: str) -> str:
        return f"pretune predict {run} --file FILE"

    @override
    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[ChoicePrediction]:
        assert batch.choices is not None  # noqa: S101 - features have them
        rows = by_example(outputs, batch).softmax(-1).tolist()
        each = [row[:count] for count, row in zip(batch.choices, rows, strict=True)]
        return [ChoicePrediction(row.index(max(row)), max(row), row) for row in each]

    @override
    def certainty(self, outputs: Tensor, batch: PackedBatch, answered: Tensor) -> Tensor:
        best = by_example(answered, batch).argmax(-1, keepdim=True)
        return by_example(outputs, batch).log_softmax(-1).gather(-1, best).sum()

    # Scorer

    @override
    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        labels = batch.targets["label"]
        sums = F.cross_entropy(by_example(outputs.detach(), batch), labels, reduction="none")
        return EachLoss(sums, torch.ones_like(labels))

    @override
    def grader(self, records: Records) -> Callable[[ChoicePrediction, int], Grade]:
        def grade(answer: ChoicePrediction, row: int) -> Grade:
            choices = self.choices(records, row)
            truth = self._label(records, row, len(choices))
            right, scores = answer.choice == truth, tuple(answer.scores)
            mistake = Mistake("another choice", confidence=answer.score)
            return Grade(
                truth=choices[truth],
                answer=choices[answer.choice],
                right=right,
                decisions=(Decision(answer.score, right, scores, answer.choice, truth),),
                mistakes=() if right else (mistake,),
                counts=(float(right), 1.0),
            )

        return grade

    @override
    def answers_and_truths(
        self, outputs: Tensor, batch: PackedBatch
    ) -> tuple[list[int], list[int]]:
        """Return the numbers of choices, from 0."""
        return by_example(outputs, batch).argmax(-1).tolist(), batch.targets["label"].tolist()

    @override
    def scores_and_targets(self, outputs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return by_example(outputs, batch).softmax(-1), batch.targets["label"]

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        return {**super().figures(sums), "accuracy": sums[..., 2] / np.maximum(sums[..., 3], 1)}

    @override
    def metrics(self, features: Features | None = None) -> ChoiceMetrics:
        return ChoiceMetrics()

    # Described

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        if not published_architecture(config).endswith("ForMultipleChoice"):
            return None
        return cls(ChooseOptions(max_length=usual_length(config, 512)))


def by_example(outputs: Tensor, batch: PackedBatch) -> Tensor:
    """Arrange the scores `[S, 1]` of all sequences as logits `[B, C]` of examples, in float32.

    C is the largest number of choices; an example with fewer has minus infinity in their place.
    """
    assert batch.choices is not None  # noqa: S101 - features have them
    scores = torch.split(outputs[:, 0].float(), list(batch.choices))
    return pad_sequence(list(scores), batch_first=True, padding_value=-torch.inf)


class ChoiceMetrics(Metrics):
    """Accuracy."""

    def __init__(self) -> None:
        self._right = self._count = 0

    @override
    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        labels = batch.targets["label"]
        self._right += int((by_example(outputs, batch).argmax(-1) == labels).sum())
        self._count += len(labels)

    @override
    def merge(self, other: Self) -> None:
        self._right += other._right
        self._count += other._count

    @override
    def result(self) -> dict[str, float]:
        return {"accuracy": self._right / max(self._count, 1)}
