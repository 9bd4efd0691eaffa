"""Multiple choice: which of several continuations or answers fits a context best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.records import Records, is_missing
from pretune.errors import DataError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import Loss, Prediction, Task, TaskOptions, usual_length
from pretune.tasks.grading import Decision, EachLoss, Grade, Mistake
from pretune.tokenizers.tokenizer import Tokenizer

#: Between choices, where a record has them as one text.
SEPARATOR = "|"


class ChooseOptions(TaskOptions):
    """Options of `choose`."""

    name: Literal["choose"] = Field(
        "choose", description="Which of several choices fits a context?"
    )
    choices: list[str] = Field(
        default=["choices"],
        min_length=1,
        description="The columns with the choices: one with a list, or one for each choice, e.g. "
        "[ending0, ending1, ending2, ending3].",
    )
    stem: bool = Field(
        False,
        description="Each choice goes on from a text in the column stem (SWAG's sent2), which is "
        "put before it.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Before the last layer. Default: the model's own."
    )


@dataclass(frozen=True)
class ChoicePrediction(Prediction):
    """The answer for one example.

    Attributes:
        choice: the number of the most probable choice, from 0.
        score: its probability.
        scores: of each choice, in order.
    """

    choice: int
    score: float
    scores: list[float]

    def ranked(self) -> list[tuple[str, float]]:
        """Every choice with its score, best first."""
        numbered = [(str(i), score) for i, score in enumerate(self.scores)]
        return sorted(numbered, key=lambda item: -item[1])


class Choose(Task[ChooseOptions, ChoicePrediction]):
    """One score a choice, and a softmax over those of an example (Radford et al. 2018, 3.3).

    Each choice is a sequence of its own, `[CLS] context [SEP] stem choice [SEP]`; those of an
    example are one feature, which is never parted.
    """

    name: ClassVar[str] = "choose"
    options_type: ClassVar[type[ChooseOptions]] = ChooseOptions
    head: ClassVar[str] = "multiple_choice"
    best_by: ClassVar[str] = "accuracy"

    @property
    def inputs(self) -> dict[str, str]:
        """`context`, maybe `stem`, and the columns of the choices."""
        stem = {"stem": "what each choice goes on from"} if self.options.stem else {}
        several = len(self.options.choices) > 1
        meaning = "a choice" if several else "the choices: a list, or a text with | between them"
        return {"context": "the context", **stem, **dict.fromkeys(self.options.choices, meaning)}

    def usage(self, run: str) -> str:
        """Choices are given as a table."""
        return f"pretune predict {run} --file FILE"

    @property
    def targets(self) -> dict[str, str]:
        """`label`."""
        return {"label": "the number of the right choice, from 0"}

    def choices(self, records: Records, row: int) -> list[str]:
        """The choices of a record; of several columns the last ones may be empty.

        Raises:
            DataError: fewer than two, or one that is no text; names file and line.
        """
        columns = self.options.choices
        values: Any = [records.rows[row].get(column) for column in columns]
        if len(columns) == 1:
            only = values[0]
            values = only.split(SEPARATOR) if isinstance(only, str) else only
        while isinstance(values, list) and values and is_missing(values[-1]):
            values = values[:-1]
        place = records.where(row, columns[0] if len(columns) == 1 else None)
        if not isinstance(values, list) or len(values) < 2:
            raise DataError(
                f"{place}: expected two choices or more, found {values!r}",
                f"Columns with choices are {', '.join(columns)} (task.choices): give a list there, "
                "or name a column for each choice.",
            )
        for number, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"{place}: choice {number} is no text ({value!r})",
                    "Repair or remove the record; only choices at the end may be missing.",
                )
        return values

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """One feature a record, of as many sequences as it has choices."""
        found = [self.choices(records, row) for row in rows]
        first, second = [], []
        for row, choices in zip(rows, found, strict=True):
            stem = f"{records.text(row, 'stem')} " if self.options.stem else ""
            first += [records.text(row, "context")] * len(choices)
            second += [stem + choice for choice in choices]
        encoded = iter(tokenizer.encode(first, second, max_length=self.options.max_length))
        for row, choices in zip(rows, found, strict=True):
            own = [next(encoded) for _ in choices]
            yield Feature(
                tokens=[token for one in own for token in one.ids],
                segments=[segment for one in own for segment in one.segments],
                targets={"label": self.label(records, row, len(choices))} if with_targets else {},
                record=row,
                truncated=any(one.truncated for one in own),
                choices=[len(one.ids) for one in own],
            )

    def label(self, records: Records, row: int, count: int) -> int:
        """The number of the right choice.

        Raises:
            DataError: it is not the number of one of them; names file and line.
        """
        value = records.rows[row].get("label")
        try:
            number = -1 if isinstance(value, bool) else int(value)  # type: ignore[arg-type]
            known = 0 <= number < count and float(value) == number  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            known = False
        if not known:
            raise DataError(
                f"{records.where(row, 'label')}: expected the number of the right choice, 0 to "
                f"{count - 1}, found {value!r}",
                "Choices are counted from 0; records without an answer (-1) have to be removed.",
            )
        return number

    def build(self, backbone: Backbone) -> nn.Module:
        """The family's classifier with one output."""
        return build_head(backbone, "multiple_choice", dropout=self.options.dropout)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Cross-entropy of the choices, counted in examples."""
        labels = batch.targets["label"]
        return Loss(
            F.cross_entropy(by_example(outputs, batch), labels, reduction="sum"), len(labels)
        )

    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[ChoicePrediction]:
        """Softmax over the choices of each example."""
        assert batch.choices is not None  # noqa: S101 - features have them
        answers = []
        rows = by_example(outputs, batch).softmax(-1).tolist()
        for count, row in zip(batch.choices, rows, strict=True):
            scores = row[:count]
            best = max(range(count), key=scores.__getitem__)
            answers.append(ChoicePrediction(best, scores[best], scores))
        return answers

    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        """Cross-entropy of the choices."""
        labels = batch.targets["label"]
        sums = F.cross_entropy(by_example(outputs.detach(), batch), labels, reduction="none")
        return EachLoss(sums, torch.ones_like(labels))

    def grader(self, records: Records) -> Callable[[ChoicePrediction, int], Grade]:
        """The choice, by its text; counts whether it was right, and 1."""

        def grade(answer: ChoicePrediction, row: int) -> Grade:
            choices = self.choices(records, row)
            truth = self.label(records, row, len(choices))
            right = answer.choice == truth
            mistake = Mistake("another choice", confidence=answer.score)
            return Grade(
                truth=choices[truth],
                answer=choices[answer.choice],
                right=right,
                decisions=(
                    Decision(answer.score, right, tuple(answer.scores), answer.choice, truth),
                ),
                mistakes=() if right else (mistake,),
                counts=(float(right), 1.0),
            )

        return grade

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss and accuracy."""
        return {**super().figures(sums), "accuracy": sums[..., 2] / np.maximum(sums[..., 3], 1)}

    def metrics(self, features: Features | None = None) -> ChoiceMetrics:
        """Accuracy."""
        return ChoiceMetrics()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForMultipleChoice`."""
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith("ForMultipleChoice"):
            return None
        return cls(ChooseOptions(max_length=usual_length(config, 512)))


def by_example(outputs: Tensor, batch: PackedBatch) -> Tensor:
    """`[S, 1]` scores of all sequences as `[B, C]` logits of examples, in float32.

    C is the most choices that an example has; of the choices that others lack, minus infinity.
    """
    assert batch.choices is not None  # noqa: S101 - features have them
    scores = torch.split(outputs[:, 0].float(), list(batch.choices))
    return pad_sequence(list(scores), batch_first=True, padding_value=-torch.inf)


class ChoiceMetrics:
    """Right and all."""

    def __init__(self) -> None:
        self._right = self._count = 0

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Take in one batch of scores `[S, 1]`."""
        labels = batch.targets["label"]
        self._right += int((by_example(outputs, batch).argmax(-1) == labels).sum())
        self._count += len(labels)

    def merge(self, other: Self) -> None:
        """Take in another's."""
        self._right += other._right
        self._count += other._count

    def result(self) -> dict[str, float]:
        """Accuracy."""
        return {"accuracy": self._right / max(self._count, 1)}

    def details(self) -> dict[str, Any]:
        """The figure is all."""
        return {}
